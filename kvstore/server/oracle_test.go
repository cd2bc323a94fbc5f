package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"google.golang.org/protobuf/proto"
)

// randomOps makes a transaction that changes something.
func randomOps(r *rand.Rand) []kvstore.Op {
	prefixes := []string{"cilium/state/a/", "cilium/state/b/", "cilium/synced/east/", "cilium/synced/west/", "clustermesh/"}
	ops := []kvstore.Op{{Key: "cilium/.heartbeat", Value: fmt.Append(nil, r.Uint64())}}
	seen := map[string]bool{}
	for range r.IntN(6) {
		key := fmt.Sprintf("%s%d", prefixes[r.IntN(len(prefixes))], r.IntN(6))
		if !seen[key] {
			seen[key] = true
			ops = append(ops, kvstore.Op{Key: key, Value: fmt.Append(nil, r.Uint32()), Delete: r.IntN(3) == 0})
		}
	}
	return ops
}

// collect reads events of a watch until revision last is complete.
func collect(t *testing.T, watch clientv3.WatchChan, last int64) (all []string) {
	t.Helper()
	for at := int64(0); at < last; {
		reply, ok := <-watch
		if err := reply.Err(); err != nil || !ok {
			t.Fatalf("watch ended: %v", err)
		}
		for _, ev := range reply.Events {
			all = append(all, show(ev))
			at = ev.Kv.ModRevision
		}
	}
	return all
}

// TestSameEventsAsEtcd compares watches and listings through the gateway with
// those of etcd's own client on the embedded etcd.
func TestSameEventsAsEtcd(t *testing.T) {
	w := start(t)
	oracle := v3client.New(w.s.life.Load().etcd)
	defer oracle.Close()
	subject := w.client("local-" + testCluster)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ctx = clientv3.WithRequireLeader(ctx)
	r := rand.New(rand.NewPCG(1, uint64(t.Name()[0])))
	apply := func() {
		if err := w.s.Store().Apply(ctx, randomOps(r)); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		apply()
	}
	type pair struct{ subject, oracle clientv3.WatchChan }
	var pairs []pair
	ranges := [][]clientv3.OpOption{
		{clientv3.WithPrefix()}, {clientv3.WithPrefix(), clientv3.WithFilterDelete()}, {clientv3.WithPrefix(), clientv3.WithFilterPut()},
		{clientv3.WithPrefix(), clientv3.WithFragment()}, {clientv3.WithPrefix(), clientv3.WithProgressNotify()},
	}
	prefixes := []string{"cilium/state/", "cilium/state/a/", "cilium/.heartbeat", "cilium/synced/", "clustermesh/"}
	for i := range 40 {
		opts := append([]clientv3.OpOption{clientv3.WithRev(1 + r.Int64N(150))}, ranges[i%len(ranges)]...)
		prefix := prefixes[r.IntN(len(prefixes))]
		pairs = append(pairs, pair{subject.Watch(ctx, prefix, opts...), oracle.Watch(ctx, prefix, opts...)})
	}
	for range 300 {
		apply()
	}
	// A last transaction that every watch sees: a put and a deletion everywhere.
	finish(t, w, ctx)
	last := w.s.life.Load().etcd.KV().Rev()
	for i, p := range pairs {
		got, want := collect(t, p.subject, last), collect(t, p.oracle, last)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("watch %d: got %d events, want %d\n%v\n%v", i, len(got), len(want), got, want)
		}
	}
	compareListings(t, ctx, subject, oracle, prefixes, r, last)
}

// finish writes a put and a deletion below every prefix.
func finish(t *testing.T, w *world, ctx context.Context) {
	var first, second []kvstore.Op
	for _, p := range []string{"cilium/.heartbeat", "cilium/state/a/", "cilium/synced/", "clustermesh/"} {
		first = append(first, kvstore.Op{Key: p + "end", Value: []byte("1")})
		second = append(second, kvstore.Op{Key: p + "end", Delete: true}, kvstore.Op{Key: p + "last", Value: []byte("1")})
	}
	for _, ops := range [][]kvstore.Op{first, second} {
		if err := w.s.Store().Apply(ctx, ops); err != nil {
			t.Fatal(err)
		}
	}
}

func compareListings(t *testing.T, ctx context.Context, subject, oracle *clientv3.Client, prefixes []string, r *rand.Rand, last int64) {
	for i := range 200 {
		prefix := prefixes[r.IntN(len(prefixes))]
		opts := []clientv3.OpOption{clientv3.WithPrefix()}
		if r.IntN(2) == 0 {
			opts = append(opts, clientv3.WithRev(1+r.Int64N(last)))
		}
		limit := r.Int64N(8)
		opts = append(opts, clientv3.WithLimit(limit))
		switch r.IntN(4) {
		case 0:
			opts = append(opts, clientv3.WithKeysOnly())
		case 1:
			opts = append(opts, clientv3.WithCountOnly())
		case 2:
			opts = append(opts, clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
		}
		got, err := subject.Get(ctx, prefix, opts...)
		want, err2 := oracle.Get(ctx, prefix, opts...)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if got.More { // then our count is a lower bound, see serveRange
			if got.Count > want.Count || got.Count <= int64(len(got.Kvs)) {
				t.Errorf("listing %d: count %d of %d", i, got.Count, want.Count)
			}
			got.Count = want.Count
		}
		if !proto.Equal((*pb.RangeResponse)(got), (*pb.RangeResponse)(want)) {
			t.Errorf("listing %d of %s:\ngot  %v\nwant %v", i, prefix, got, want)
		}
	}
}
