package bpf

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// vip is the frontend of the tests that look at how a backend is chosen.
const vip = "10.96.0.1:53"

// newChooser is a fixture with an agent's reconciler on it.
func newChooser(t testing.TB) (*fixture, *datapath.Reconciler) {
	f := newPlace(t)
	f.opts.MaxRecords = 1 << 16
	f.load()
	return f, datapath.New(f.dp)
}

// table has one backend per weight, each in a cluster of its own: what is chosen
// shows in the hits by cluster. Nobody listens there, which UDP does not mind.
func table(weights ...uint32) lb.FrontendTable {
	t := lb.FrontendTable{
		Service:  lb.ServiceName{Namespace: "shop", Name: "cart"},
		Frontend: lb.Frontend{Addr: netip.MustParseAddrPort(vip), Protocol: lb.UDP},
	}
	for i, w := range weights {
		t.Backends = append(t.Backends, lb.Choice{Selected: true, Weight: w, Reason: "test", Backend: lb.Backend{
			Addr:     netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 53),
			Protocol: lb.UDP, Cluster: "c", ClusterID: uint16(i + 1),
		}})
	}
	return t
}

func even(n int) []uint32 { return slices.Repeat([]uint32{1}, n) }

func (f *fixture) set(r *datapath.Reconciler, t lb.FrontendTable) {
	f.Helper()
	if _, err := r.Set(t.Service, []lb.FrontendTable{t}); err != nil {
		f.Fatal(err)
	}
}

// restart replaces the datapath and its reconciler, which must find all as it was.
func (f *fixture) restart(t lb.FrontendTable) *datapath.Reconciler {
	f.Helper()
	f.close()
	f.load()
	r := datapath.New(f.dp)
	if loaded, err := r.Load(); err != nil || len(loaded.Repairs) > 0 {
		f.Fatalf("load: %v, repairs %v", err, loaded.Repairs)
	}
	if report, err := r.Set(t.Service, []lb.FrontendTable{t}); err != nil || report.Changed() {
		f.Errorf("a restart writes: %+v, %v", report, err)
	}
	return r
}

// hits are the choices during work, by the cluster of the backend.
func (f *fixture) hits(work func()) map[uint16]uint64 {
	f.Helper()
	before := f.clusterHits()
	work()
	after := f.clusterHits()
	for id := range after {
		if after[id] -= before[id]; after[id] == 0 {
			delete(after, id)
		}
	}
	return after
}

func (f *fixture) clusterHits() map[uint16]uint64 {
	f.Helper()
	hits, err := f.dp.ClusterHits()
	if err != nil {
		f.Fatal(err)
	}
	return hits
}

// connects connects one UDP socket to the vip n times.
func (f *fixture) connects(n int) map[uint16]uint64 {
	f.Helper()
	return f.hits(func() { f.ask(request{Socket: "4 udp", Targets: []string{vip}, N: n}) })
}

// sockets connects n sockets of a client to the vip, once each, and returns the
// cluster that all of them went to, 0 if they went to several.
func (f *fixture) sockets(c *client, n int, steps ...string) uint16 {
	f.Helper()
	got := f.hits(func() {
		if _, err := c.ask(request{Socket: "4 udp", Steps: append(steps, "connect "+vip), N: n}); err != nil {
			f.Fatal(err)
		}
	})
	if len(got) != 1 {
		return 0
	}
	for id, hits := range got {
		if hits == uint64(n) {
			return id
		}
	}
	f.Errorf("%d sockets made the hits %v", n, got)
	return 0
}

// fits holds counts against shares by a chi-square test that right shares fail
// once in a million runs, and each within two percent of all.
func (f *fixture) fits(got map[uint16]uint64, weights []uint32) {
	f.Helper()
	var runs, sum, x float64
	for _, n := range got {
		runs += float64(n)
	}
	for _, w := range weights {
		sum += float64(w)
	}
	kinds := -1.0
	for i, w := range weights {
		n, expected := float64(got[uint16(i+1)]), runs*float64(w)/sum
		if math.Abs(n-expected) > runs/50 || w == 0 && n > 0 {
			f.Errorf("backend %d of weight %d of %.0f got %.0f of %.0f", i, w, sum, n, runs)
		}
		if w > 0 {
			kinds++
			x += (n - expected) * (n - expected) / expected
		}
	}
	if bound := chiSquareBound(kinds); x > bound {
		f.Errorf("chi-square %.1f over %.1f: %v for weights %v", x, bound, got, weights)
	}
}

// chiSquareBound is what a chi-square of that many degrees of freedom exceeds with
// probability 10^-6 (E. B. Wilson and M. M. Hilferty, 1931).
func chiSquareBound(k float64) float64 {
	const z = 4.7534
	return k * math.Pow(1-2/(9*k)+z*math.Sqrt(2/(9*k)), 3)
}

func TestWeightedShares(t *testing.T) {
	f, r := newChooser(t)
	many := make([]uint32, 300)
	for i := range many {
		many[i] = uint32(i%7) * 10
	}
	for _, weights := range [][]uint32{
		{1, 1, 1}, {90, 10}, {1, 0, 3}, {0, 1}, {5, 4, 3, 2, 1, 1000}, {1 << 31, 1 << 31, 1<<32 - 1},
	} {
		f.set(r, table(weights...))
		f.fits(f.connects(campaign(20_000, 1_000_000)), weights)
	}
	f.set(r, table(many...))
	f.fits(f.connects(100_000), many)
	f.set(r, table(3, 1))
	sent := f.hits(func() { f.run(20_000, "4 udp", "sendto "+vip) })
	f.fits(sent, []uint32{3, 1})
}

// TestWeightsAmongSurvivors withdraws clusters: the others keep their ratio while
// they hold most of the weight, and take over whatever their weight.
func TestWeightsAmongSurvivors(t *testing.T) {
	f, r := newChooser(t)
	f.set(r, table(1, 6, 3, 0))
	f.dp.StoreCluster(1, layout.Cluster{State: layout.ClusterWithdrawn})
	got := f.connects(50_000)
	if ratio := float64(got[2]) / float64(got[3]); got[1] != 0 || ratio < 1.9 || ratio > 2.1 {
		t.Errorf("hits %v, ratio %.2f", got, ratio)
	}
	for _, id := range []uint16{2, 3} {
		f.dp.StoreCluster(id, layout.Cluster{State: layout.ClusterWithdrawn})
	}
	if got := f.connects(2000); len(got) != 1 || got[4] != 2000 {
		t.Errorf("hits %v, want 4 alone", got)
	}
	if c := f.counters(); c.Swept < 2000 || c.Refused != 0 {
		t.Errorf("counters %+v", c)
	}
}

func TestCountersAreExact(t *testing.T) {
	f, r := newChooser(t)
	f.set(r, table(1, 2))
	got := f.connects(3000)
	if c := f.counters(); c != (Counters{Hits: 3000}) || got[1]+got[2] != 3000 {
		t.Errorf("counters %+v, by cluster %v", c, got)
	}
	far := record(netip.MustParseAddrPort("127.0.0.2:53"))
	far.Cluster = 60_000 // the maps count 512
	f.nextID, f.next = 40, 30_000
	f.service("10.96.0.2:53", udp, far)
	if got := f.hits(func() { f.run(1000, "4 udp", "connect 10.96.0.2:53") }); len(got) != 0 {
		t.Errorf("hits of unknown clusters: %v", got)
	}
	f.set(r, table())
	f.run(5, "4 udp", "connect "+vip)
	f.set(r, table(1))
	f.dp.StoreCluster(1, layout.Cluster{State: layout.ClusterWithdrawn})
	f.run(7, "4 udp", "connect "+vip)
	want := Counters{Hits: 4000, Refused: 12, Retries: 7, Reasons: Reasons{Empty: 5, Swept: 7}}
	if got := f.counters(); got != want {
		t.Errorf("counters: got %+v, want %+v", got, want)
	}
}

// TestVersionFollowsFlags: maps are passed on as version 1 as long as an agent
// that knows no other can read them.
func TestVersionFollowsFlags(t *testing.T) {
	f, r := newChooser(t)
	version := func(want uint32) {
		t.Helper()
		var info clustermeshCmInfo
		if err := f.dp.coll.Maps[clustermeshMapCmInfo].Lookup(uint32(0), &info); err != nil || info.Layout != want {
			t.Errorf("version %d, %v, want %d", info.Layout, err, want)
		}
	}
	weighted, sticky := table(1, 2), table(1, 2)
	sticky.SessionAffinity = 10
	f.set(r, weighted)
	version(1)
	f.restart(weighted)
	version(1)
	r = datapath.New(f.dp)
	if _, err := r.Load(); err != nil {
		t.Fatal(err)
	}
	f.set(r, sticky)
	version(2)
	r = f.restart(sticky)
	version(2)
	f.set(r, weighted)
	version(2) // programs may still read the flags
	f.restart(weighted)
	version(1)
}

// TestConsistent: a client has the backend that the table gives it, on every
// socket, after a restart, and in the namespace's own way if it has no address.
func TestConsistent(t *testing.T) {
	f, r := newChooser(t)
	set := table(1, 2, 3, 4)
	set.Consistent = true
	f.set(r, set)
	first, second := f.benchClient(f.opts.Cgroup, ""), f.startClient(f.opts.Cgroup)
	addrs := make([]netip.AddrPort, len(set.Backends))
	for i := range addrs {
		addrs[i] = set.Backends[i].Addr
	}
	slots := lb.Maglev(addrs, []uint32{1, 2, 3, 4}, lb.MaglevSize(4))
	seen := map[uint16]bool{}
	for i := range 40 {
		addr := netip.AddrFrom4([4]byte{127, 9, 9, byte(i)})
		want := slots[layout.ClientSlot(addr.As16(), uint32(len(slots)))] + 1
		for _, c := range []*client{first, second} { // as on two nodes
			if got := f.sockets(c, 3, "bind "+addr.String()+":0"); got != want {
				t.Errorf("%s goes to %d, its slot is of %d", addr, got, want)
			}
		}
		seen[want] = true
	}
	if len(seen) != 4 {
		t.Errorf("40 clients went to %v only", slices.Collect(maps.Keys(seen)))
	}
	own := f.sockets(first, 20)
	r = f.restart(set)
	if got := f.sockets(first, 20); own == 0 || got != own {
		t.Errorf("went to %d before a restart and to %d after", own, got)
	}
	f.dp.StoreCluster(own, layout.Cluster{State: layout.ClusterWithdrawn})
	if got := f.sockets(first, 20); got == 0 || got == own {
		t.Errorf("went to %d when %d was withdrawn, want one other", got, own)
	}
	f.set(r, table(1, 1)) // no longer consistent
	if got := f.connects(1000); len(got) < 2 && own > 2 {
		t.Errorf("hits %v of an even set", got)
	}
}

// TestConsistentShares has many clients.
func TestConsistentShares(t *testing.T) {
	f, r := newChooser(t)
	weights := []uint32{1, 2, 3, 4}
	set := table(weights...)
	set.Consistent = true
	f.set(r, set)
	const clients = 2000
	got := f.hits(func() {
		for i := range clients {
			f.run(1, "4 udp", "bind "+netip.AddrFrom4([4]byte{127, 8, byte(i >> 8), byte(i)}).String()+":0", "connect "+vip)
		}
	})
	for i, w := range weights {
		if share := float64(got[uint16(i+1)]) / clients; math.Abs(share-float64(w)/10) > 0.06 {
			t.Errorf("backend %d of weight %d has %.3f of the clients", i, w, share)
		}
	}
}
