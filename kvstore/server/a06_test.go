package server

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/kvstore"
)

func smallWindows() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(64 << 10)}
}

// TestA06_SlowReaders lets watches of one peer sleep while much is written:
// another peer gets everything at once, the sleepers cost little and are cut,
// and when they come back they are told exactly where they stand.
func TestA06_SlowReaders(t *testing.T) {
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, func(c *Config) {
		c.Log = nil
		c.Limits.SendTimeout, c.Limits.RingBytes = 8*time.Second, 8<<20
	})
	sleepers := campaign(20, 200)
	for range sleepers {
		openWatch(t, w.dialAs(west, smallWindows()...))
	}
	reader := openWatch(t, w.dialAs(north))
	const writes = 300 // 30 MB: far beyond the ring
	value := []byte(strings.Repeat("v", 100<<10))
	worst := time.Duration(0)
	for i := range writes {
		begin := time.Now()
		if err := w.s.Store().Apply(w.ctx(), []kvstore.Op{{Key: "cilium/state/services/v1/east/shop/k", Value: fmt.Append(value, i)}}); err != nil {
			t.Fatal(err)
		}
		if r := reader.recv(); len(r.Events) != 1 {
			t.Fatalf("event %d: %v", i, r)
		}
		worst = max(worst, time.Since(begin))
	}
	asleep := heap()
	eventually(t, "all sleepers are cut", func() bool {
		return w.peerMetric("west", "unread") == float64(sleepers) && w.metric("clustermesh_gateway_connections", "") == 1
	})
	per := (asleep - heap()) / sleepers
	t.Logf("%d sleeping watches: the other peer's slowest event took %v; each sleeper held %d KiB until it was cut", sleepers, worst, per>>10)
	if per > 2<<20 {
		t.Errorf("each sleeper costs %d bytes", per)
	}
	if n := w.peerMetric("north", "unread"); n != 0 {
		t.Errorf("the reader that reads was cut %v times", n)
	}
	comeBack(t, w, west)
}

func heap() int {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// comeBack resumes at a revision that is long gone, and at one that is not.
func comeBack(t *testing.T, w *world, g guest) {
	conn := w.dialAs(g)
	again := func(rev int64) *pb.WatchResponse {
		s, err := pb.NewWatchClient(conn).Watch(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		c := watchCall{t, s}
		c.create(&pb.WatchCreateRequest{StartRevision: rev})
		return c.recv()
	}
	r := again(3)
	if !r.Canceled || r.CompactRevision <= 3 {
		t.Fatalf("a reader that missed something was not told to list again: %v", r)
	}
	if r := again(r.CompactRevision); r.Canceled || len(r.Events) == 0 || r.Events[0].Kv.ModRevision != r.Header.Revision-int64(len(r.Events))+1 {
		t.Fatalf("a reader that missed nothing: %v", r.Header)
	}
}

// TestA06_ListingLeftUnread asks once and never reads: the memory of the reply
// must not stay.
func TestA06_ListingLeftUnread(t *testing.T) {
	t.Parallel()
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, func(c *Config) { c.Limits.SendTimeout = 5 * time.Second })
	fillServices(t, w, 5000)
	s, err := w.dialAs(west, smallWindows()...).NewStream(w.ctx(), &grpc.StreamDesc{ServerStreams: true}, pb.KV_Range_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(rangeOf("cilium/state/", "cilium/state0")); err != nil {
		t.Fatal(err)
	}
	account := w.s.gateway.conns.registry.accounts["west"]
	eventually(t, "the reply waits", func() bool { return account.unread.n.Load() > 1<<20 })
	eventually(t, "the connection is cut", func() bool { return w.peerMetric("west", "unread") == 1 })
	eventually(t, "nothing is kept", func() bool { return account.unread.n.Load() == 0 })
}

// TestA06_PeerThatLeavesMuchUnread fills the peer's budget on one connection; a
// listing on another has to wait until the first is cut.
func TestA06_PeerThatLeavesMuchUnread(t *testing.T) {
	t.Parallel()
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, func(c *Config) {
		c.Limits.SendTimeout, c.Limits.Peer.UnreadBytes = 8*time.Second, 1<<20
	})
	fillServices(t, w, 5000)
	s, err := w.dialAs(west, smallWindows()...).NewStream(w.ctx(), &grpc.StreamDesc{ServerStreams: true}, pb.KV_Range_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(rangeOf("cilium/state/", "cilium/state0")); err != nil {
		t.Fatal(err)
	}
	account := w.s.gateway.conns.registry.accounts["west"]
	eventually(t, "the budget is used up", func() bool { return account.unread.n.Load() > 1<<20 })
	if _, err := pb.NewKVClient(w.dialAs(north)).Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0")); err != nil {
		t.Errorf("another peer: %v", err)
	}
	if w.peerMetric("west", "unread") != 0 {
		t.Error("the other peer had to wait for the cut")
	}
	if _, err := pb.NewKVClient(w.dialAs(west)).Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0"), grpc.MaxCallRecvMsgSize(64<<20)); err != nil {
		t.Errorf("the peer's other connection: %v", err)
	}
	if w.peerMetric("west", "unread") != 1 {
		t.Error("the peer's other connection did not wait")
	}
}
