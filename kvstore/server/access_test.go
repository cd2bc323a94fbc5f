package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// methods lists every method of every service of etcd's API.
func methods(t *testing.T) map[string]protoreflect.MethodDescriptor {
	all := map[string]protoreflect.MethodDescriptor{}
	for _, file := range []protoreflect.FileDescriptor{pb.File_rpc_proto, v3lockpb.File_v3lock_proto, v3electionpb.File_v3election_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				all["/"+string(service.FullName())+"/"+string(m.Name())] = m
			}
		}
	}
	if len(all) < 45 {
		t.Fatalf("found only %d methods", len(all))
	}
	return all
}

// newMessage makes an empty message of a method's type.
func newMessage(t *testing.T, d protoreflect.MessageDescriptor) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return kind.New().Interface()
}

// call makes a call with one request and waits for its end or first reply.
func call(ctx context.Context, conn *grpc.ClientConn, path string, req, res proto.Message) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
	if err != nil {
		return err
	}
	if err := s.SendMsg(req); err != nil && !errors.Is(err, io.EOF) { // EOF: RecvMsg tells why
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(res)
}

func TestOnlyReadersMethodsExist(t *testing.T) {
	w := start(t)
	w.put("cilium/state/a=1")
	// etcd itself writes its cluster's version once after each start.
	eventually(t, "etcd's cluster has a version", func() bool { return w.s.life.Load().etcd.ClusterVersion() != nil })
	offered := map[string]codes.Code{
		pb.KV_Range_FullMethodName:           status.Code(rpctypes.ErrGRPCEmptyKey),
		pb.Watch_Watch_FullMethodName:        codes.OK,
		pb.Maintenance_Status_FullMethodName: codes.OK,
	}
	for _, name := range []string{"remote", "remote-west", "local-" + testCluster} {
		conn := w.dial(name)
		before := w.s.life.Load().etcd.CommittedIndex()
		for path, m := range methods(t) {
			want, ok := offered[path]
			if !ok {
				want = codes.Unimplemented
			}
			req := newMessage(t, m.Input())
			if path == pb.Watch_Watch_FullMethodName {
				req = &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{}}}
			}
			if err := call(w.ctx(), conn, path, req, newMessage(t, m.Output())); status.Code(err) != want {
				t.Errorf("%s as %s: %v, want code %v", path, name, err, want)
			}
		}
		if after := w.s.life.Load().etcd.CommittedIndex(); after != before {
			t.Errorf("%s moved etcd's log from %d to %d", name, before, after)
		}
	}
	if rev := w.s.life.Load().etcd.KV().Rev(); rev != 2 {
		t.Errorf("revision moved to %d", rev)
	}
	if n := w.metric("clustermesh_gateway_refusals_total", "unimplemented"); n < 3*40 {
		t.Errorf("%v refusals counted", n)
	}
}

func TestMethodNamesAreExact(t *testing.T) {
	w := start(t)
	conn := w.dial("remote")
	for _, path := range []string{
		"/etcdserverpb.KV/range", "/etcdserverpb.kv/Range", "//etcdserverpb.KV/Range", "/etcdserverpb.KV/Range/", "/etcdserverpb.KV//Range",
		"/etcdserverpb.KV/Put", "/etcdserverpb.KV", "/", "//", "/x", "/etcdserverpb.KV/Range%00", "/etcdserverpb.KV/../KV/Put",
		"/grpc.health.v1.Health/List", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	} {
		if err := call(w.ctx(), conn, path, &pb.PutRequest{Key: []byte("k")}, &pb.PutResponse{}); err == nil {
			t.Errorf("%q was answered", path)
		}
	}
	if n := w.metric("clustermesh_gateway_requests_total", "range"); n != 0 {
		t.Errorf("%v calls reached a handler", n)
	}
}

// access is a request and whether the two roles may make it.
type access struct {
	key, end      string
	remote, local bool
}

func accesses() []access {
	return []access{
		{"cilium/.heartbeat", "cilium/.heartbeau", true, true},
		{"cilium/.heartbeat", "", true, true},
		{"cilium/.heartbea", "", false, false},
		{"cilium/state/", "cilium/state0", true, true},
		{"cilium/state/services/v1/east/", "cilium/state/services/v1/east0", true, true},
		{"cilium/state/a\x00", "cilium/state0", true, true}, // the next page
		{"cilium/state", "cilium/statf", false, false},
		{"cilium/state/", "cilium/state1", false, false},
		{"cilium/state.", "cilium/state0", false, false},
		{"cilium/state/", "\x00", false, false},
		{"cilium/state/b", "cilium/state/a", false, false},
		{"cilium/state/b", "cilium/state/b", false, false},
		{"cilium/", "cilium0", false, false},
		{"\x00", "\x00", false, false},
		{"\x00", "", false, false},
		{"a", "z", false, false},
		{"cilium/cluster-config/east", "", true, true},
		{"cilium/cluster-config/west", "", false, true},
		{"cilium/cluster-config/east", "cilium/cluster-config/easu", false, true},
		{"cilium/cluster-config/", "cilium/cluster-config0", false, true},
		{"cilium/synced/east/", "cilium/synced/east0", true, true},
		{"cilium/synced/west/", "cilium/synced/west0", false, true},
		{"cilium/synced/", "cilium/synced0", false, true},
		{"cilium/synced/eastern/", "cilium/synced/eastern0", false, true},
		{"cilium/cache/", "cilium/cache0", false, true},
		{"clustermesh/", "clustermesh0", false, true},
		{"clustermesh/local/services/v1/east/ns/x", "", false, true},
		{"cilium/.initlock/", "cilium/.initlock0", false, false},
		{"cilium/kvstoremesh-lock/1", "", false, false},
	}
}

func TestGrants(t *testing.T) {
	w := start(t)
	for _, role := range []struct {
		name  string
		local bool
	}{{"remote", false}, {"remote-west", false}, {"local-" + testCluster, true}} {
		conn := w.dial(role.name)
		for _, a := range accesses() {
			want := codes.PermissionDenied
			if a.remote && !role.local || a.local && role.local {
				want = codes.OK
			}
			_, err := pb.NewKVClient(conn).Range(w.ctx(), &pb.RangeRequest{Key: []byte(a.key), RangeEnd: []byte(a.end)})
			if status.Code(err) != want || want != codes.OK && !errors.Is(err, rpctypes.ErrGRPCPermissionDenied) {
				t.Errorf("%s lists [%q, %q): %v, want %v", role.name, a.key, a.end, err, want)
			}
			if got := watchAllowed(t, w, conn, a); got != (want == codes.OK) {
				t.Errorf("%s watches [%q, %q): allowed is %v", role.name, a.key, a.end, got)
			}
		}
	}
	if w.metric("clustermesh_gateway_refusals_total", "permission") == 0 {
		t.Error("no refusal counted")
	}
}

func watchAllowed(t *testing.T, w *world, conn *grpc.ClientConn, a access) bool {
	req := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte(a.key), RangeEnd: []byte(a.end)},
	}}
	res := new(pb.WatchResponse)
	if err := call(w.ctx(), conn, pb.Watch_Watch_FullMethodName, req, res); err != nil {
		t.Fatal(err)
	}
	if res.Canceled && !strings.Contains(res.CancelReason, "permission denied") {
		t.Errorf("watch [%q, %q) canceled for %q", a.key, a.end, res.CancelReason)
	}
	return !res.Canceled
}

func TestNamesThatHaveNoGrant(t *testing.T) {
	for _, name := range []string{
		"", "root", "admin-east", "local", "local-", "local-west", "remote-", "remote-UPPER", "remote-default", "Remote", " remote", "remote ",
		"remote-" + strings.Repeat("x", 33), "local-east\x00", "local-eastern",
	} {
		if _, err := grantFor(testCluster, name); err == nil {
			t.Errorf("%q was granted something", name)
		}
	}
}

func TestUnsupportedOptionsAreRefused(t *testing.T) {
	w := start(t)
	c := w.client("remote")
	for what, opt := range map[string]clientv3.OpOption{
		"descending":   clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend),
		"by value":     clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend),
		"min mod rev":  clientv3.WithMinModRev(1),
		"max make rev": clientv3.WithMaxCreateRev(1),
	} {
		if _, err := c.Get(w.ctx(), "cilium/state/", clientv3.WithPrefix(), opt); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	reply := <-c.Watch(w.ctx(), "cilium/state/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	if reply.Err() == nil {
		t.Error("a watch with previous values was accepted")
	}
	if _, err := c.Get(w.ctx(), "cilium/state/", clientv3.WithPrefix(), clientv3.WithRev(1000)); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Errorf("a revision of the future: %v", err)
	}
}
