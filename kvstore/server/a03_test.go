package server

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/peers"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// trickKeys are keys and bounds at every edge of what may be seen.
func trickKeys() []string {
	keys := []string{"", "\x00", "\xff", "a", "zzz", "cilium/", "cilium0", "clustermesh/", "root"}
	for _, p := range []string{
		"cilium/.heartbeat", "cilium/state/", "cilium/state/services/v1/east/", "cilium/state/services/v1/east/shop/", "cilium/state/services/v1/east/web/api",
		"cilium/state/endpointslices/v1/east/web/api-bcdfg", "cilium/state/endpointslices/v1/east/web/", "cilium/state/endpointslices/v1/east/shop/x",
		"cilium/state/nodes/v1/east/", "cilium/state/ip/v1/default/", "cilium/state/identities/v1/id/", "cilium/cluster-config/east", "cilium/synced/east/",
	} {
		short := p[:len(p)-1]
		keys = append(keys, p, short, short+string(p[len(p)-1]+1), p+"\x00", p+"\xff", short+string(p[len(p)-1]-1))
	}
	for _, n := range []int{maxKey, maxKey + 1} {
		keys = append(keys, "cilium/state/"+strings.Repeat("k", n-len("cilium/state/")))
	}
	return keys
}

// longNames are services of web, the first and third of which are in shopOnly. The
// names of the second's slices are cut so that they look like those of the first.
func longNames() []string {
	return []string{strings.Repeat("l", 57), strings.Repeat("l", 57) + "-x", strings.Repeat("m", 56), strings.Repeat("m", 56) + "-x"}
}

// generated is a name that Kubernetes makes for a slice of a service: of the
// service's name and '-' it keeps 58 bytes (k8s.io/apiserver/pkg/storage/names).
func generated(service string) string {
	base := service + "-"
	return base[:min(len(base), 58)] + "bcdfg"
}

// fillTricky writes keys inside, beside and between all views.
func fillTricky(t *testing.T, w *world) {
	var names []string
	for _, kind := range []string{"services", "endpointslices", "serviceexports"} {
		for _, name := range []string{
			"shop/cart", "shop/cart-bcdfg", "shopping/x", "sho/x", "web/api", "web/api-bcdfg", "web/api-z2x4w", "web/api-v2", "web/api-v2-bcdfg",
			"web/api-aeiou", "web/ap", "web/apiary", "web/api/x", "web/api-bcdf", "bank/vault", "bank/api-bcdfg",
		} {
			names = append(names, "cilium/state/"+kind+"/v1/east/"+name)
		}
		for _, service := range longNames() {
			names = append(names, "cilium/state/"+kind+"/v1/east/web/"+service, "cilium/state/"+kind+"/v1/east/web/"+generated(service))
		}
		names = append(names, "cilium/state/"+kind+"/v1/west/shop/x", "cilium/state/"+kind+"/v2/east/shop/x")
	}
	for i := range 3 {
		names = append(names, fmt.Sprintf("cilium/state/nodes/v1/east/n%d", i), fmt.Sprintf("cilium/state/ip/v1/default/10.0.0.%d", i),
			fmt.Sprintf("cilium/state/identities/v1/id/%d", i), fmt.Sprintf("cilium/synced/east/%d", i), fmt.Sprintf("clustermesh/secret/%d", i))
	}
	var ops []kvstore.Op
	for _, k := range append(names, trickKeys()...) {
		if k != "" && !slices.ContainsFunc(ops, func(o kvstore.Op) bool { return o.Key == k }) {
			ops = append(ops, kvstore.Op{Key: k, Value: []byte("v of " + k)})
		}
	}
	if err := w.s.Store().Apply(w.ctx(), ops); err != nil {
		t.Fatal(err)
	}
}

// contents lists all keys of a store.
func contents(t *testing.T, w *world) []string {
	r, err := w.s.Store().Range(w.ctx(), "\x00", "\x00", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, kv := range r.KVs {
		keys = append(keys, kv.Key)
	}
	sort.Strings(keys)
	return keys
}

// TestA03_RangeTricks asks every class of certificate for ranges at all edges,
// with all options, and compares each reply with a filter over all keys.
func TestA03_RangeTricks(t *testing.T) {
	worlds, all := classes(t, generous)
	var have []string
	for _, w := range worlds {
		fillTricky(t, w)
		have = contents(t, w)
	}
	tricks, r := trickKeys(), rand.New(rand.NewPCG(3, 3))
	asked, denied := campaign(4_000, 100_000), 0
	for range asked {
		c := all[r.IntN(len(all))]
		req := rangeOf(tricks[r.IntN(len(tricks))], tricks[r.IntN(len(tricks))])
		if r.IntN(2) == 0 {
			req.RangeEnd = []byte(schema.PrefixEnd(string(req.Key)))
		}
		req.Limit = r.Int64N(8) - 1
		req.KeysOnly, req.CountOnly = r.IntN(4) == 0, r.IntN(4) == 0
		req.Serializable = r.IntN(2) == 0
		if r.IntN(8) == 0 {
			req.Revision = r.Int64N(5) - 1
		}
		if r.IntN(16) == 0 {
			req.SortTarget, req.MinModRevision = pb.RangeRequest_SortTarget(r.IntN(5)), r.Int64N(3)
		}
		if !checkRange(t, worlds[0], c, req, have) {
			denied++
		}
	}
	t.Logf("%d ranges at all edges, %d of them refused, no key of another's view in any reply", asked, denied)
}

// checkRange makes one request; it returns false if it was refused.
func checkRange(t *testing.T, w *world, c class, req *pb.RangeRequest, have []string) bool {
	t.Helper()
	res, err := pb.NewKVClient(c.conn).Range(w.ctx(), req)
	if err != nil {
		switch status.Code(err) {
		case codes.PermissionDenied, codes.InvalidArgument, codes.OutOfRange:
			return false
		}
		t.Fatalf("%s: %v: %v", c.name, req, err)
	}
	if len(req.Key) > maxKey || len(req.RangeEnd) > maxKey {
		t.Errorf("%s: a key or range end of more than %d bytes was taken: %v", c.name, maxKey, req)
	}
	end := string(req.RangeEnd)
	if end == "" {
		end = string(req.Key) + "\x00"
	}
	var want []string
	for _, k := range have {
		if c.sees(k) && string(req.Key) <= k && k < end {
			want = append(want, k)
		}
	}
	if req.Revision == 1 {
		want = nil // before the first write
	}
	whole := int64(len(want))
	if req.CountOnly {
		if res.Count != whole || len(res.Kvs) != 0 {
			t.Errorf("%s: %v: count %d, want %d", c.name, req, res.Count, whole)
		}
		return true
	}
	more := req.Limit > 0 && whole > req.Limit
	if more {
		want = want[:req.Limit]
	}
	if got := keysOf(res); !slices.Equal(got, want) || res.More != more || !more && res.Count != whole {
		t.Errorf("%s: %v: more %v, count %d\n got %q\nwant %q", c.name, req, res.More, res.Count, got, want)
	}
	return true
}

func keysOf(r *pb.RangeResponse) (keys []string) {
	for _, kv := range r.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// TestA03_LongKeysAreNotKept creates as many watches as a connection may have,
// each of a range as long as a request can be: none is kept, and each is told why.
func TestA03_LongKeysAreNotKept(t *testing.T) {
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, generous)
	long := []byte("cilium/state/" + strings.Repeat("k", 30<<10))
	create := func(key, end []byte) *pb.WatchResponse {
		c := openCall(t, w.dialAs(west))
		return c.create(&pb.WatchCreateRequest{Key: key, RangeEnd: end})
	}
	if r := create(long, []byte("cilium/state0")); !r.Canceled || !strings.Contains(r.CancelReason, "key of 30733 bytes") {
		t.Errorf("a long key: %v", r)
	}
	if r := create([]byte("cilium/state/"), long); !r.Canceled || !strings.Contains(r.CancelReason, "range_end of 30733 bytes") {
		t.Errorf("a long end: %v", r)
	}
	conn, before := w.dialAs(west), heap()
	var calls []watchCall
	for range 4 {
		c := openCall(t, conn)
		for range 64 {
			c.create(&pb.WatchCreateRequest{Key: long, RangeEnd: append(long, 'x')})
		}
		calls = append(calls, c)
	}
	if grown := heap() - before; grown > 4<<20 && !raceEnabled {
		t.Errorf("%d calls with 256 refused watches of 60 KiB hold %d KiB", len(calls), grown>>10)
	}
	if n := w.accountOf("west").watches.Load(); n != 0 {
		t.Errorf("%d watches are kept", n)
	}
}

func openCall(t *testing.T, conn *grpc.ClientConn) watchCall {
	s, err := pb.NewWatchClient(conn).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return watchCall{t, s}
}

// FuzzView compares the windows of a view with what the view says, for any key
// and range.
func FuzzView(f *testing.F) {
	g := grant{restricted: true, windows: windowsOf(testCluster, shopOnly)}
	all := grant{restricted: true, windows: windowsOf(testCluster, peers.View{Namespaces: []string{"a", "b", "a"}, Identities: true, Addresses: true})}
	for _, k := range trickKeys() {
		f.Add(k, "cilium/state/", "cilium/state0")
	}
	f.Fuzz(func(t *testing.T, key, start, end string) {
		if g.sees(key) != shopSees(key) {
			t.Fatalf("%q is seen: %v", key, g.sees(key))
		}
		for _, g := range []grant{g, all} {
			last, inside := "", false
			var windows []window
			cost.Bounded(t, len(start)+len(end), 0, func() { windows = g.visible(span{start, end}) })
			for _, w := range windows {
				if w.start < last || w.end <= w.start || w.start < start || w.end > end {
					t.Fatalf("window [%q, %q) of [%q, %q) after %q", w.start, w.end, start, end, last)
				}
				last = w.end
				inside = inside || w.has(key) && w.shows(key)
			}
			if want := g.sees(key) && start <= key && key < end; inside != want {
				t.Fatalf("%q in [%q, %q): %v", key, start, end, inside)
			}
		}
	})
}

// FuzzSpan checks that whatever range is granted lies inside what may be asked.
func FuzzSpan(f *testing.F) {
	for _, k := range trickKeys() {
		f.Add([]byte(k), []byte("\x00"))
		f.Add([]byte("cilium/state/"), []byte(k))
	}
	g := grant{spans: remoteSpans(testCluster)}
	f.Fuzz(func(t *testing.T, key, end []byte) {
		var s span
		var ok bool
		cost.Bounded(t, len(key)+len(end), 0, func() { s, ok = spanOf(key, end) })
		if !ok || !g.allows(s) {
			return
		}
		for _, k := range []string{s.start, s.start + "\xff", strings.TrimSuffix(s.end, "\x00")} {
			if s.has(k) && !remoteSees(k) {
				t.Fatalf("[%q, %q) is granted and holds %q", key, end, k)
			}
		}
	})
}
