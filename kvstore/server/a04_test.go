package server

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/kvstore"
)

func fillServices(t *testing.T, w *world, n int) {
	var ops []kvstore.Op
	for i := range n {
		ops = append(ops, kvstore.Op{Key: fmt.Sprintf("cilium/state/services/v1/east/bank/s%04d", i), Value: make([]byte, 500)})
	}
	if err := w.s.Store().Apply(w.ctx(), ops); err != nil {
		t.Fatal(err)
	}
}

// TestA04_LimitsOfAPeer reaches each limit of a peer as a whole by means of
// several connections.
func TestA04_LimitsOfAPeer(t *testing.T) {
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, func(c *Config) {
		c.Limits.Peer = PeerLimits{Connections: 2, Streams: 3, Watches: 2, CreatesPerSecond: 1e9}
	})
	seed(w)
	a, b := w.dialAs(west), w.dialAs(west)
	list := func(conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0"))
		return err
	}
	open := func(conn *grpc.ClientConn) watchCall {
		s, err := pb.NewWatchClient(conn).Watch(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		return watchCall{t, s}
	}
	first, second := open(a), open(b)
	if r := first.create(&pb.WatchCreateRequest{}); r.Canceled {
		t.Fatal(r)
	}
	if r := second.create(&pb.WatchCreateRequest{}); r.Canceled {
		t.Fatal(r)
	}
	if r := second.create(&pb.WatchCreateRequest{}); !r.Canceled {
		t.Error("a third watch of the peer was created")
	}
	third := open(a)
	third.progress() // an idle call that is no watch
	eventually(t, "the third call runs", func() bool { return w.s.gateway.conns.registry.accounts["west"].streams.Load() == 3 })
	if err := list(b); err == nil {
		t.Error("a fourth call of the peer was served")
	}
	if err := list(w.dialAs(west)); err == nil {
		t.Error("a third connection of the peer was served")
	}
	if err := list(w.dialAs(north)); err != nil {
		t.Errorf("another peer: %v", err)
	}
	for why, want := range map[refusal]float64{refusedWatches: 1, refusedStreams: 1} {
		if n := w.peerMetric("west", string(why)); n != want {
			t.Errorf("%v refusals for %s, want %v", n, why, want)
		}
	}
	if w.peerMetric("west", string(refusedConnections)) == 0 {
		t.Error("the third connection is not counted")
	}
	a.Close()
	eventually(t, "a closed connection gives back all it had", func() bool {
		acc := w.s.gateway.conns.registry.accounts["west"]
		return acc.conns.Load() == 1 && acc.watches.Load() == 1 && acc.streams.Load() == 1
	})
	if err := list(w.dialAs(west)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestA04_RequestsArePaced asks faster than allowed: the excess waits, and what
// would wait for long is refused.
func TestA04_RequestsArePaced(t *testing.T) {
	t.Parallel()
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, func(c *Config) { c.Limits.Peer.RequestsPerSecond = 20 })
	seed(w)
	kv := pb.NewKVClient(w.dialAs(west))
	var served, refused atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range 100 {
		wg.Go(func() {
			if _, err := kv.Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0")); err != nil {
				refused.Add(1)
			} else {
				served.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(begin).Seconds()
	if n := float64(served.Load()); n < 40 || n > 40+20*(took+1) {
		t.Errorf("%v of 100 requests in %.1f s were served, 40 may come at once and 20 per second", n, took)
	}
	if refused.Load() == 0 || w.peerMetric("west", "requests") != float64(refused.Load()) {
		t.Errorf("%d refused, %v counted", refused.Load(), w.peerMetric("west", "requests"))
	}
}
