package conformance

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/features"
	"go.uber.org/zap"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// etcd is a complete etcd server behind its own gRPC API, with the users and
// roles that Cilium's etcdinit makes. It serves a world's content.
type etcd struct {
	*world
	server *etcdserver.EtcdServer
}

func newEtcd(t *testing.T) *etcd {
	t.Helper()
	w := newWorld(t, "east")
	urls, err := types.NewURLs([]string{"http://127.0.0.1:1"}) // nobody dials it
	must(t, err)
	s, err := etcdserver.NewServer(config.ServerConfig{
		Name: "test", DataDir: t.TempDir(), PeerURLs: urls, InitialPeerURLsMap: types.URLsMap{"test": urls}, InitialClusterToken: rand.Text(),
		NewCluster: true, UnsafeNoFsync: true, Logger: zap.NewNop(), ServerFeatureGate: features.NewDefaultServerFeatureGate("test", zap.NewNop()),
		TickMs: 20, ElectionTicks: 10, SnapshotCount: 2000, MaxTxnOps: 1000, MaxRequestBytes: 1 << 20, MaxLearners: 1,
		ClientCertAuthEnabled: true, AuthToken: "simple", TokenTTL: 300, BcryptCost: 4, Metrics: "basic",
		WarningApplyDuration: time.Minute, WarningUnaryRequestDuration: time.Minute,
	})
	must(t, err)
	s.Start()
	t.Cleanup(s.Stop)
	select {
	case <-s.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatal("etcd is never ready")
	}
	return &etcd{w, s}
}

// Apply implements kvstore.Writer.
func (e *etcd) Apply(ctx context.Context, ops []kvstore.Op) error {
	for _, op := range ops {
		var err error
		if op.Delete {
			_, err = e.server.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(op.Key)})
		} else {
			_, err = e.server.Put(ctx, &pb.PutRequest{Key: []byte(op.Key), Value: op.Value})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// serve publishes, compacts, restricts readers, and opens the port.
func (e *etcd) serve() {
	ctx, t := e.t.Context(), e.t
	e.fill(e)
	revision := e.server.KV().Rev()
	_, err := e.server.Compact(ctx, &pb.CompactionRequest{Revision: revision, Physical: true})
	must(t, err)
	must(t, e.Apply(ctx, []kvstore.Op{{Key: schema.HeartbeatKey, Value: schema.EncodeTime(time.Now().Unix())}, {Key: doomed, Delete: true}}))
	e.restrict(ctx)
	api := v3rpc.Server(e.server, e.front.tls, nil)
	go api.Serve(e.front.Listener) //nolint:errcheck // it ends with the test
	t.Cleanup(api.Stop)
}

func (e *etcd) restrict(ctx context.Context) {
	for _, name := range []string{"root", "remote"} {
		_, err := e.server.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Options: &authpb.UserAddOptions{NoPassword: true}})
		must(e.t, err)
		_, err = e.server.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: name})
		must(e.t, err)
		_, err = e.server.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: name})
		must(e.t, err)
	}
	for _, r := range newStandin("east").granted {
		_, err := e.server.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{
			Name: "remote", Perm: &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte(r.start), RangeEnd: []byte(r.end)},
		})
		must(e.t, err)
	}
	_, err := e.server.AuthEnable(ctx, &pb.AuthEnableRequest{})
	must(e.t, err)
}

func (e *etcd) unchangedSince(revision int64) {
	e.t.Helper()
	if now := e.server.KV().Rev(); now != revision {
		e.t.Errorf("revision %d before the run, %d after it", revision, now)
	}
	e.server.AuthStore().AuthDisable() // or etcd asks who is asking
	leases, err := e.server.LeaseLeases(context.Background(), &pb.LeaseLeasesRequest{})
	if err != nil || len(leases.Leases) > 0 {
		e.t.Errorf("%d leases after the run (%v)", len(leases.GetLeases()), err)
	}
}

// TestBareEtcd runs the suite against etcd itself. It passes everything but
// what no role of etcd's can forbid: whoever may connect may take leases. The
// probes of writes change nothing there.
func TestBareEtcd(t *testing.T) {
	e := newEtcd(t)
	e.serve()
	before := e.server.KV().Rev()
	e.opts.Wait = false
	e.compare(expect(map[string]Outcome{"deny-lease": Fail, "ping-tolerated": Skip, "heartbeat-put": Skip}))
	e.unchangedSince(before)
}

// TestWriteProbesHaveNoEffect runs the probes as a user who may do everything.
func TestWriteProbesHaveNoEffect(t *testing.T) {
	e := newEtcd(t)
	e.fill(e)
	before := e.server.KV().Rev()
	api := v3rpc.Server(e.server, e.front.tls, nil)
	go api.Serve(e.front.Listener) //nolint:errcheck // it ends with the test
	t.Cleanup(api.Stop)
	e.opts.Wait = false
	found, _ := e.outcomes()
	for _, id := range []string{"deny-put", "deny-delete", "deny-txn", "deny-lease", "deny-config-list", "deny-other-keys"} {
		if found[id] != Fail {
			t.Errorf("%s: %s, want fail without access control", id, found[id])
		}
	}
	e.unchangedSince(before)
}
