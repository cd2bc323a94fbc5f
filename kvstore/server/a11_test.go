package server

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/clustermesh/clustermesh/kvstore"
)

// clientOf connects etcd's own client as a peer.
func (w *world) clientOf(g guest) *clientv3.Client {
	w.t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + w.s.Addr().String()}, TLS: w.with(g.cert()), Logger: zap.NewNop(), DialTimeout: patience,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// TestA11_RestrictedPeerSeesTheGoldenList compares what arrives with a list
// written by hand.
func TestA11_RestrictedPeerSeesTheGoldenList(t *testing.T) {
	north := northGuest(t)
	w, _ := startPeers(t, []guest{north}, generous)
	fillTricky(t, w)
	r, err := w.clientOf(north).Get(w.ctx(), "cilium/state/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, kv := range r.Kvs {
		if k := string(kv.Key); !strings.ContainsAny(k, "\x00\xff") && !slices.Contains(trickKeys(), k) {
			got = append(got, strings.TrimPrefix(k, "cilium/state/"))
		}
	}
	long := longNames()
	want := []string{
		"endpointslices/v1/east/shop/cart", "endpointslices/v1/east/shop/cart-bcdfg",
		"endpointslices/v1/east/web/api", "endpointslices/v1/east/web/api-z2x4w",
		"endpointslices/v1/east/web/" + long[0], // its generated name could be one of long[1]
		"endpointslices/v1/east/web/" + long[2], "endpointslices/v1/east/web/" + long[2] + "-bcdfg",
		"nodes/v1/east/n0", "nodes/v1/east/n1", "nodes/v1/east/n2",
		"serviceexports/v1/east/shop/cart", "serviceexports/v1/east/shop/cart-bcdfg", "serviceexports/v1/east/web/api",
		"serviceexports/v1/east/web/" + long[0], "serviceexports/v1/east/web/" + long[2],
		"services/v1/east/shop/cart", "services/v1/east/shop/cart-bcdfg",
		"services/v1/east/web/" + long[0], "services/v1/east/web/" + long[2],
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestA11_RestrictedWatchesAndPages writes at random and compares what a
// restricted peer hears and lists with a filter over everything.
func TestA11_RestrictedWatchesAndPages(t *testing.T) {
	north := northGuest(t)
	w, _ := startPeers(t, []guest{north}, generous)
	fillTricky(t, w)
	start := w.s.life.Load().etcd.KV().Rev() + 1
	c, r := w.clientOf(north), rand.New(rand.NewPCG(11, 11))
	prefixes := []string{"cilium/state/", "cilium/state/services/v1/east/", "cilium/state/endpointslices/v1/east/web/", "cilium/state/ip/v1/"}
	watches := map[string]clientv3.WatchChan{}
	for _, p := range prefixes {
		watches[p] = c.Watch(t.Context(), p, clientv3.WithPrefix(), clientv3.WithRev(start))
	}
	have, heard := contents(t, w), map[string][]string{}
	for i := range campaign(300, 20_000) {
		ops := randomChange(r, have, i)
		if err := w.s.Store().Apply(w.ctx(), ops); err != nil {
			t.Fatal(err)
		}
		for _, p := range prefixes {
			for _, o := range ops {
				if strings.HasPrefix(o.Key, p) && shopSees(o.Key) {
					heard[p] = append(heard[p], fmt.Sprintf("%s %v %s", o.Key, o.Delete, o.Value))
				}
			}
		}
		if i%50 == 0 {
			comparePages(t, w, c, r.Int64N(5)+1, prefixes[i/50%len(prefixes)])
		}
	}
	for _, p := range prefixes {
		var got []string
		for len(got) < len(heard[p]) {
			reply, ok := <-watches[p]
			if !ok || reply.Err() != nil {
				t.Fatalf("%s: %v", p, reply.Err())
			}
			for _, ev := range reply.Events {
				got = append(got, fmt.Sprintf("%s %v %s", ev.Kv.Key, ev.Type == clientv3.EventTypeDelete, ev.Kv.Value))
			}
		}
		if !slices.Equal(got, heard[p]) {
			t.Errorf("%s: heard %d changes, want %d", p, len(got), len(heard[p]))
		}
	}
}

// randomChange changes some existing keys: each deletion is of a key that is
// there.
func randomChange(r *rand.Rand, keys []string, i int) []kvstore.Op {
	var ops []kvstore.Op
	for _, at := range r.Perm(len(keys))[:1+r.IntN(4)] {
		ops = append(ops, kvstore.Op{Key: keys[at], Value: fmt.Appendf(nil, "%d", i)})
	}
	return ops
}

func comparePages(t *testing.T, w *world, c *clientv3.Client, limit int64, prefix string) {
	t.Helper()
	all, err := w.s.Store().Range(w.ctx(), prefix, clientv3.GetPrefixRangeEnd(prefix), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, kv := range all.KVs {
		if shopSees(kv.Key) {
			want = append(want, fmt.Sprintf("%s=%s@%d", kv.Key, kv.Value, kv.ModRevision))
		}
	}
	for next, more, rev := prefix, true, int64(0); more; {
		r, err := c.Get(w.ctx(), next, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(limit), clientv3.WithRev(rev))
		if err != nil {
			t.Fatal(err)
		}
		if r.More && int64(len(r.Kvs)) != limit {
			t.Errorf("a page of %d keys says that there are more", len(r.Kvs))
		}
		for _, kv := range r.Kvs {
			got = append(got, fmt.Sprintf("%s=%s@%d", kv.Key, kv.Value, kv.ModRevision))
			next = string(kv.Key) + "\x00"
		}
		more, rev = r.More, r.Header.Revision
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s in pages of %d:\n got %q\nwant %q", prefix, limit, got, want)
	}
}

// TestA11_RestrictedWatchKeepsItsPlace checks the revisions of a watch that sees
// nothing of what happens: progress goes on, compaction is reported.
func TestA11_RestrictedWatchKeepsItsPlace(t *testing.T) {
	north := northGuest(t)
	w, _ := startPeers(t, []guest{north}, func(c *Config) { c.Limits.RingRevisions = 8 })
	s, err := pb.NewWatchClient(w.dialAs(north)).Watch(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	c := watchCall{t, s}
	c.create(&pb.WatchCreateRequest{})
	for i := range 5 {
		w.put(fmt.Sprintf("cilium/state/services/v1/east/bank/vault=%d", i))
	}
	c.progress()
	if r := c.recv(); len(r.Events) != 0 || r.Header.Revision != 6 {
		t.Errorf("progress: %v", r)
	}
	for i := range 20 { // beyond the ring: a watch that is awake has its place all the same
		w.put(fmt.Sprintf("cilium/state/services/v1/east/bank/vault=%d", i))
		c.progress()
		c.recv()
	}
	w.put("cilium/state/services/v1/east/shop/cart=1")
	if r := c.recv(); keys(r.Events) != "+services/v1/east/shop/cart@27" {
		t.Errorf("after the ring has turned: %v", r)
	}
	c.create(&pb.WatchCreateRequest{StartRevision: 2})
	if r := c.recv(); !r.Canceled || r.CompactRevision != 20 {
		t.Errorf("a start that is gone: %v", r)
	}
	if _, err := w.clientOf(north).Get(w.ctx(), "cilium/state/services/v1/east/bank/", clientv3.WithPrefix(), clientv3.WithRev(1000)); err == nil {
		t.Error("a revision of the future was listed although nothing is seen")
	}
}

// TestA11_StatusTellsNothingOfTheRest asks for the store's status: a restricted
// peer does not learn how large the whole is, or how much goes on in it.
func TestA11_StatusTellsNothingOfTheRest(t *testing.T) {
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north})
	seed(w)
	ask := func(g guest) *pb.StatusResponse {
		r, err := pb.NewMaintenanceClient(w.dialAs(g)).Status(w.ctx(), &pb.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Header.GetRevision() == 0 || r.Header.GetRaftTerm() == 0 || r.Version == "" || r.Leader == 0 {
			t.Errorf("%s: incomplete: %v", g.peer.Name, r)
		}
		return r
	}
	if r := ask(north); r.DbSize|r.DbSizeInUse|r.DbSizeQuota != 0 || r.RaftIndex|r.RaftAppliedIndex != 0 {
		t.Errorf("a restricted peer is told of the whole store: %v", r)
	}
	if r := ask(west); r.DbSize == 0 || r.DbSizeInUse == 0 || r.DbSizeQuota == 0 || r.RaftIndex == 0 || r.RaftAppliedIndex == 0 {
		t.Errorf("a peer that sees everything: %v", r)
	}
}

// TestA11_LogsHoldNoContent reads the whole log at its most detailed level.
func TestA11_LogsHoldNoContent(t *testing.T) {
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, generous)
	w.put("cilium/state/services/v1/east/bank/vault=TOPSECRET", "clustermesh/x=TOPSECRET")
	for _, g := range []guest{west, north} {
		kv := pb.NewKVClient(w.dialAs(g))
		for _, p := range []string{"cilium/state/", "clustermesh/"} {
			_, _ = kv.Range(w.ctx(), rangeOf(p, clientv3.GetPrefixRangeEnd(p)))
		}
		_, _ = kv.Put(w.ctx(), &pb.PutRequest{Key: []byte("a"), Value: []byte("TOPSECRET")})
	}
	stranger := newAuthority(t)
	_ = shake(w, w.with(stranger.client("", identify(west.peer.Identity))))
	eventually(t, "the refusals are logged", func() bool { return strings.Count(w.log.String(), "refused") >= 2 })
	for _, secret := range []string{"TOPSECRET", "BEGIN ", "PRIVATE"} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}
