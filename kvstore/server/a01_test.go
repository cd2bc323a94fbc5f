package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// rawBytes passes messages through unchanged.
type rawBytes struct{}

func (rawBytes) Name() string { return "proto" }

func (rawBytes) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawBytes) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// callRaw makes a call with one message of any bytes and waits for its end or
// first reply.
func callRaw(ctx context.Context, conn *grpc.ClientConn, path string, req []byte) (res []byte, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path, grpc.ForceCodecV2(rawBytes{}))
	if err != nil {
		return nil, err
	}
	_ = s.SendMsg(&req) // RecvMsg tells what is wrong
	_ = s.CloseSend()
	err = s.RecvMsg(&res)
	return res, err
}

// offered are the methods that a reader needs.
func offered() []string {
	return []string{
		pb.KV_Range_FullMethodName, pb.Watch_Watch_FullMethodName, pb.Maintenance_Status_FullMethodName,
		healthpb.Health_Check_FullMethodName, healthpb.Health_Watch_FullMethodName,
	}
}

// deniedMethods are all others of etcd, and those that gRPC servers often have.
func deniedMethods(t *testing.T) []string {
	denied := []string{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
		"/grpc.channelz.v1.Channelz/GetServers", "/grpc.health.v1.Health/List", "/etcdserverpb.KV/RangeStream", "/gofail.Failpoint/Set",
	}
	for path := range methods(t) {
		if !slices.Contains(offered(), path) {
			denied = append(denied, path)
		}
	}
	slices.Sort(denied)
	return denied
}

// condition is everything of a store that a remote call could have changed.
func condition(t *testing.T, w *world) string {
	l := w.s.life.Load()
	eventually(t, "etcd has written its own version", func() bool { return l.etcd.ClusterVersion() != nil })
	leases, err := l.etcd.LeaseLeases(w.ctx(), &pb.LeaseLeasesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	hash, rev, err := l.etcd.KV().HashStorage().Hash()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("hash %d at revision %d, %d leases, %d members, auth %v, %d alarms, version %v",
		hash, rev, len(leases.Leases), len(l.etcd.Cluster().Members()), l.etcd.AuthStore().IsAuthEnabled(), len(l.etcd.Alarms()), l.etcd.ClusterVersion())
}

func seed(w *world) {
	w.put("cilium/.heartbeat=1", "cilium/cluster-config/east={}", "cilium/cluster-config/west={}", "cilium/synced/east/a=1", "cilium/synced/west/a=1",
		"cilium/state/services/v1/east/shop/cart=1", "cilium/state/services/v1/east/web/api=1", "cilium/state/services/v1/east/bank/vault=secret",
		"cilium/state/nodes/v1/east/n1=1", "cilium/state/ip/v1/default/10.0.0.1=1", "cilium/state/identities/v1/id/7=1",
		"cilium/cache/services/v1/north/a/b=1", "clustermesh/local/services/v1/east/bank/vault=secret", "root=secret", "zzz=secret")
}

// TestA01_OnlyReadsSucceed calls, with every class of valid certificate, every
// method there is, and then paths and messages that are made up.
func TestA01_OnlyReadsSucceed(t *testing.T) {
	worlds, all := classes(t, generous)
	var before []string
	for _, w := range worlds {
		seed(w)
		before = append(before, condition(t, w))
	}
	denied, calls := deniedMethods(t), 0
	for _, c := range all {
		for _, path := range denied {
			for _, req := range [][]byte{nil, plausible(t, path)} {
				_, err := callRaw(worlds[0].ctx(), c.conn, path, req)
				if status.Code(err) != codes.Unimplemented {
					t.Errorf("%s: %s: %v", c.name, path, err)
				}
				calls++
			}
		}
		for _, path := range offered() {
			if _, err := callRaw(worlds[0].ctx(), c.conn, path, ordinary(t, path)); err != nil {
				t.Errorf("%s: %s: %v", c.name, path, err)
			}
		}
	}
	fuzzed, replies := fuzzCalls(t, all, campaign(6_000, 120_000))
	for i, w := range worlds {
		if after := condition(t, w); after != before[i] {
			t.Errorf("the store changed from\n%s to\n%s", before[i], after)
		}
	}
	t.Logf("%d classes of certificates, %d methods beside the %d offered: %d calls, 0 succeeded; %d fuzzed calls (%d replies, all of them reads); revision unmoved",
		len(all), len(denied), len(offered()), calls, fuzzed, replies)
}

// plausible is a message that a method would act on.
func plausible(t *testing.T, path string) []byte {
	m, ok := methods(t)[path]
	if !ok {
		return []byte{0x0a, 1, 'x'}
	}
	msg := newMessage(t, m.Input())
	fillIn(msg.ProtoReflect(), rand.New(rand.NewPCG(1, 2)), 2)
	b, err := proto.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ordinary is a message that an offered method answers.
func ordinary(t *testing.T, path string) []byte {
	var m proto.Message
	switch path {
	case pb.KV_Range_FullMethodName:
		m = rangeOf("cilium/state/", "cilium/state0")
	case pb.Watch_Watch_FullMethodName:
		m = createRequest(&pb.WatchCreateRequest{Key: []byte("cilium/state/"), RangeEnd: []byte("cilium/state0")})
	default:
		return nil
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fillIn sets a message's fields to values that etcd knows.
func fillIn(m protoreflect.Message, r *rand.Rand, depth int) {
	words := []string{"cilium/state/a", "cilium/state0", "\x00", "root", "remote", "7", "cilium/state/services/v1/east/bank/vault"}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		word := words[r.IntN(len(words))]
		switch {
		case f.IsMap():
		case f.IsList():
			if f.Kind() == protoreflect.MessageKind && depth > 0 {
				fillIn(m.Mutable(f).List().AppendMutable().Message(), r, depth-1)
			}
		case f.Kind() == protoreflect.MessageKind:
			if depth > 0 && (f.ContainingOneof() == nil || r.IntN(2) == 0) {
				fillIn(m.Mutable(f).Message(), r, depth-1)
			}
		case f.Kind() == protoreflect.BytesKind:
			m.Set(f, protoreflect.ValueOfBytes([]byte(word)))
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(word))
		case f.Kind() == protoreflect.Int64Kind:
			m.Set(f, protoreflect.ValueOfInt64(r.Int64N(9)-1))
		case f.Kind() == protoreflect.BoolKind:
			m.Set(f, protoreflect.ValueOfBool(r.IntN(2) == 0))
		}
	}
}

// fuzzCalls makes n calls with paths and messages that are made up, and checks
// every reply.
func fuzzCalls(t *testing.T, all []class, n int) (calls, replies int64) {
	paths := append(deniedMethods(t), offered()...)
	var done, replied atomic.Int64
	var wg sync.WaitGroup
	const workers = 8
	for i := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(4, uint64(i)))
			for done.Add(1) <= int64(n) {
				c := all[r.IntN(len(all))]
				path, like := fuzzPath(r, paths), paths
				if r.IntN(3) == 0 { // a real one, with a message of its own kind
					path = offered()[r.IntN(len(offered()))]
					like = []string{path}
				}
				if fuzzCall(t, c, path, fuzzMessage(t, r, like)) {
					replied.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return int64(n), replied.Load()
}

func fuzzCall(t *testing.T, c class, path string, req []byte) (replied bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	res, err := callRaw(ctx, c.conn, path, req)
	if code := status.Code(err); code == codes.DeadlineExceeded || code == codes.Unavailable && !strings.Contains(err.Error(), "malformed") {
		t.Errorf("%s: %q with %x: %v", c.name, path, req, err)
	}
	if err != nil {
		return false
	}
	if !slices.Contains(offered(), path) {
		t.Errorf("%s: %q was answered", c.name, path)
	}
	for _, key := range keysIn(path, res) {
		if !c.sees(key) {
			t.Errorf("%s got key %q by %s", c.name, key, path)
		}
	}
	return true
}

// keysIn returns the keys in a reply.
func keysIn(path string, res []byte) (keys []string) {
	switch path {
	case pb.KV_Range_FullMethodName:
		var r pb.RangeResponse
		if proto.Unmarshal(res, &r) == nil {
			for _, kv := range r.Kvs {
				keys = append(keys, string(kv.Key))
			}
		}
	case pb.Watch_Watch_FullMethodName:
		var r pb.WatchResponse
		if proto.Unmarshal(res, &r) == nil {
			for _, ev := range r.Events {
				keys = append(keys, string(ev.Kv.Key))
			}
		}
	}
	return keys
}

// fuzzPath changes a real path a little, or not at all.
func fuzzPath(r *rand.Rand, paths []string) string {
	p := []byte(paths[r.IntN(len(paths))])
	for range r.IntN(4) {
		i := 1 + r.IntN(len(p)-1)
		switch r.IntN(7) {
		case 0:
			p[i] ^= 0x20
		case 1:
			p = slices.Insert(p, i, '/')
		case 2:
			p = slices.Insert(p, i, []byte("%2f")...)
		case 3:
			p = append(p, "/../../etcdserverpb.KV/Put"...)
		case 4:
			p = slices.Delete(p, i, i+1)
		case 5:
			p = slices.Insert(p, i, byte(' '+1+r.IntN(90)))
		case 6:
			other := paths[r.IntN(len(paths))]
			p = append(p[:i:i], other[strings.LastIndex(other, "/"):]...)
		}
		if len(p) < 2 {
			return "/x"
		}
	}
	return string(p)
}

// fuzzMessage makes a message of any method and may damage it.
func fuzzMessage(t *testing.T, r *rand.Rand, paths []string) []byte {
	m, ok := methods(t)[paths[r.IntN(len(paths))]]
	if !ok {
		m = methods(t)[pb.KV_Range_FullMethodName]
	}
	msg := newMessage(t, m.Input())
	fillIn(msg.ProtoReflect(), r, 3)
	b, err := proto.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	for range r.IntN(4) {
		if len(b) == 0 {
			break
		}
		switch i := r.IntN(len(b)); r.IntN(3) {
		case 0:
			b[i] = byte(r.Uint32())
		case 1:
			b = b[:i]
		case 2:
			b = slices.Insert(b, i, byte(r.Uint32()))
		}
	}
	return b
}

// TestA01_RefusedCallsAreCountedByPeer checks the label.
func TestA01_RefusedCallsAreCountedByPeer(t *testing.T) {
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, generous)
	conn := w.dialAs(west)
	_, err := pb.NewKVClient(conn).Put(w.ctx(), &pb.PutRequest{Key: []byte("a")})
	if status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	if _, err := pb.NewKVClient(conn).Range(w.ctx(), rangeOf("clustermesh/", "clustermesh0")); status.Code(err) != status.Code(rpctypes.ErrGRPCPermissionDenied) {
		t.Fatal(err)
	}
	eventually(t, "counted", func() bool {
		return w.peerMetric("west", "unimplemented") == 1 && w.peerMetric("west", "permission") == 1
	})
}
