package server

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/kvstore"
)

// putMany writes so many small keys under a prefix, some at a time.
func putMany(t *testing.T, w *world, prefix string, n, atOnce int) {
	t.Helper()
	var ops []kvstore.Op
	for i := range n {
		ops = append(ops, kvstore.Op{Key: fmt.Sprintf("%s%06d", prefix, i), Value: []byte("v")})
	}
	for some := range slices.Chunk(ops, atOnce) {
		if err := w.s.Store().Apply(w.ctx(), some); err != nil {
			t.Fatal(err)
		}
	}
}

// TestA04_WhatIsLookedAtIsPaid asks for what costs the store much and fills few
// replies: a peer that keeps on doing so has to use up what it may take.
func TestA04_WhatIsLookedAtIsPaid(t *testing.T) {
	list := func(r *pb.RangeRequest) func(ctx context.Context, conn *grpc.ClientConn) error {
		return func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := pb.NewKVClient(conn).Range(ctx, r)
			return err
		}
	}
	all := rangeOf("cilium/state/", "cilium/state0")
	counted := &pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd, CountOnly: true}
	for _, test := range []paidTest{
		{"counts", "cilium/state/ip/v1/default/", 50_000, 1000, "west", list(counted)},
		{"counts at an old revision", "cilium/state/ip/v1/default/", 50_000, 1000, "west",
			list(&pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd, CountOnly: true, Revision: 2})},
		{"single keys of an old revision", "cilium/state/ip/v1/default/", 50_000, 1000, "west",
			list(&pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd, Limit: 1, Revision: 2})},
		{"hidden slices", "cilium/state/endpointslices/v1/east/web/other-", 20_000, 1000, "north", list(all)},
		{"single keys beside hidden slices", "cilium/state/endpointslices/v1/east/web/other-", 20_000, 1000, "north",
			list(&pb.RangeRequest{Key: []byte("cilium/state/endpointslices/"), RangeEnd: all.RangeEnd, Limit: 1})},
		{"counts of hidden slices", "cilium/state/endpointslices/v1/east/web/other-", 20_000, 1000, "north", list(counted)},
		{"history of hidden slices", "cilium/state/endpointslices/v1/east/web/other-", 25_600, 128, "north", replay},
	} {
		t.Run(test.name, test.usesUp)
	}
}

// paidTest is a peer that asks for the same over and over, of a store with many
// keys of a prefix.
type paidTest struct {
	name, prefix string
	keys, atOnce int
	peer         string
	ask          func(ctx context.Context, conn *grpc.ClientConn) error
}

func (test paidTest) usesUp(t *testing.T) {
	t.Parallel()
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, generous, func(c *Config) {
		// Nearly nothing comes in: only what is taken counts.
		c.Log, c.Limits.Peer.Share, c.Limits.Peer.Burst = nil, 1e-9, 150*time.Millisecond
	})
	w.put("cilium/state/first=1")
	putMany(t, w, test.prefix, test.keys, test.atOnce)
	conn := w.dialAs(map[string]guest{"west": west, "north": north}[test.peer])
	ctx, cancel := context.WithCancel(w.ctx())
	defer cancel()
	done := make(chan struct{})
	go func() { // a debtor is not answered: it is not waited for
		defer close(done)
		for range 10_000 { // at a few hundred each it is in debt
			if test.ask(ctx, conn) != nil {
				return
			}
		}
	}()
	eventually(t, "the peer has used up what it may take, or is through", func() bool {
		select {
		case <-done:
			return true
		default:
		}
		if w.accountOf(test.peer).purses.Take(0) > 0 { // it is counted when more is asked for
			go func() { _, _ = pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{}) }()
		}
		return w.peerMetric(test.peer, string(refusedProcessor)) > 0
	})
	if w.peerMetric(test.peer, string(refusedProcessor)) == 0 && w.accountOf(test.peer).purses.Take(0) == 0 {
		t.Error("it was all for nothing: the peer owes nothing")
	}
}

// replay has what happened told again to a watch, which sees nothing of it.
func replay(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return err
	}
	for _, r := range []*pb.WatchRequest{
		createRequest(&pb.WatchCreateRequest{Key: []byte("cilium/state/endpointslices/"), RangeEnd: []byte("cilium/state/endpointslices0"), StartRevision: 2}),
		{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}},
	} {
		if err := s.Send(r); err != nil {
			return err
		}
	}
	for { // until it has caught up
		r, err := s.Recv()
		if err != nil || r.WatchId == noWatch {
			return err
		}
	}
}

// TestCountsAreExact counts more keys than are looked at at a time, now and as
// they were, and compares with etcd.
func TestCountsAreExact(t *testing.T) {
	t.Parallel()
	north := northGuest(t)
	w, _ := startPeers(t, []guest{north}, generous)
	w.put("cilium/state/first=1")
	putMany(t, w, "cilium/state/endpointslices/v1/east/shop/s", 1500, 1000)
	putMany(t, w, "cilium/state/endpointslices/v1/east/web/other-", 1500, 1000)
	w.put("cilium/state/endpointslices/v1/east/shop/s000700", "cilium/state/endpointslices/v1/east/web/api-bcdfg=1")
	span := rangeOf("cilium/state/", "cilium/state0")
	for rev := int64(0); rev < 8; rev++ {
		etcd, err := w.s.life.Load().etcd.KV().Range(w.ctx(), span.Key, span.RangeEnd, mvcc.RangeOptions{Rev: rev})
		if err != nil {
			t.Fatal(err)
		}
		shown := int64(0)
		for _, kv := range etcd.KVs {
			if shopSees(string(kv.Key)) {
				shown++
			}
		}
		for who, want := range map[string]int64{"local-" + testCluster: int64(len(etcd.KVs)), "north": shown} {
			conn := w.dialAs(north)
			if who != "north" {
				conn = w.dial(who)
			}
			got, err := pb.NewKVClient(conn).Range(w.ctx(), &pb.RangeRequest{
				Key: span.Key, RangeEnd: span.RangeEnd, CountOnly: true, Limit: 3, Revision: rev,
			})
			if err != nil || got.Count != want || len(got.Kvs) != 0 || got.More || got.Header.Revision != etcd.Rev {
				t.Errorf("%s counts at revision %d: %v, %v, want %d", who, rev, got, err, want)
			}
		}
	}
}
