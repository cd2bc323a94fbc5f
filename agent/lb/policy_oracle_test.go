package lb_test

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// genPolicyService draws a service with any policy. Clusters are c1 to c4, the
// local one is c2.
func genPolicyService(t *rapid.T) lb.Service {
	s := genService(t)
	if len(s.Frontends) > 0 {
		s.Frontends = append(s.Frontends[:1], lb.Frontend{Addr: netip.MustParseAddrPort("10.96.0.9:80"), Protocol: lb.TCP})
	}
	for i := range s.Frontends {
		s.Frontends[i].Kind = rapid.SampledFrom([]lb.Kind{lb.KindClusterIP, lb.KindExternal, lb.KindNodePort}).Draw(t, "kind")
		s.Frontends[i].Scope = rapid.SampledFrom([]lb.Scope{lb.ScopeAny, lb.ScopeAny, lb.ScopeOutside, lb.ScopeHost}).Draw(t, "scope")
	}
	salt := rapid.IntRange(0, 5).Draw(t, "salt")
	for range rapid.IntRange(0, 16).Draw(t, "more") {
		b := genBackend(t)
		b.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(rapid.IntRange(1, 40).Draw(t, "host"))}), 80)
		s.Backends = append(s.Backends, b)
	}
	for i := range s.Backends {
		b := &s.Backends[i]
		place := salt + int(b.ClusterID+b.Addr.Port()) + int(b.Addr.Addr().As16()[15])
		b.State = rapid.SampledFrom([]lb.State{lb.Active, lb.Active, lb.Terminating, lb.NotReady, lb.Quarantined, lb.Maintenance}).Draw(t, "state")
		b.Zone, b.Here = []string{"", "a", "b"}[place%3], b.Local && place%2 == 0
	}
	s.Zone = rapid.SampledFrom([]string{"", "a"}).Draw(t, "myZone")
	s.Distribution = rapid.SampledFrom([]lb.Distribution{lb.DistributionNone, lb.PreferSameZone, lb.PreferSameNode}).Draw(t, "distribution")
	s.NodeOnly = rapid.IntRange(0, 9).Draw(t, "nodeOnly") == 0
	s.Policy = genPolicy(t)
	s.Lost = map[string]uint32{}
	for _, name := range []string{"c1", "c2", "c3", "c4"} {
		if age := rapid.SampledFrom([]uint32{0, 0, 10, 100}).Draw(t, "lost"); age > 0 {
			s.Lost[name] = age
		}
	}
	s.Ranks = map[string]uint8{}
	for _, name := range []string{"c1", "c3", "c4"} {
		if r := rapid.IntRange(-1, 20).Draw(t, "rank"); r >= 0 {
			s.Ranks[name] = uint8(r % 5)
			if r == 20 {
				s.Ranks[name] = 200
			}
		}
	}
	for _, f := range s.Frontends {
		s.Previous = append(s.Previous, lb.FrontendTable{Frontend: f, Spilling: rapid.Uint32Range(0, 7).Draw(t, "spilling")})
	}
	return s
}

func genPolicy(t *rapid.T) lb.Policy {
	var p lb.Policy
	names := []string{"local", "*", "c1", "c2", "c3", "c4"}
	if rapid.Bool().Draw(t, "tiers") {
		left := rapid.Permutation(names).Draw(t, "order")[:rapid.IntRange(1, len(names)).Draw(t, "names")]
		for len(left) > 0 {
			n := rapid.IntRange(1, len(left)).Draw(t, "tier")
			p.Tiers, left = append(p.Tiers, left[:n]), left[n:]
		}
		if rapid.Bool().Draw(t, "by distance") {
			p.Tiers = slices.Insert(p.Tiers, rapid.IntRange(0, len(p.Tiers)).Draw(t, "where"), []string{lb.Nearest})
		}
	}
	if rapid.Bool().Draw(t, "weights") {
		for _, name := range rapid.Permutation(names).Draw(t, "weighted")[:rapid.IntRange(1, len(names)).Draw(t, "some")] {
			p.Weights = append(p.Weights, lb.ClusterWeight{Cluster: name, Weight: rapid.Uint32Range(0, 4).Draw(t, "weight")})
		}
	}
	switch rapid.IntRange(0, 2).Draw(t, "spill") {
	case 1:
		p.Spillover = lb.Spillover{Backends: rapid.Uint32Range(1, 5).Draw(t, "min"), Hysteresis: rapid.Uint32Range(0, 50).Draw(t, "hysteresis")}
	case 2:
		p.Spillover = lb.Spillover{Percent: rapid.Uint32Range(1, 100).Draw(t, "percent"), Hysteresis: rapid.Uint32Range(0, 50).Draw(t, "hysteresis")}
	}
	p.Staleness.DemoteAfter = rapid.SampledFrom([]uint32{0, 10}).Draw(t, "demote")
	p.Staleness.WithdrawAfter = rapid.SampledFrom([]uint32{0, 100}).Draw(t, "withdraw")
	return p
}

// TestPolicyAgainstOracle compares the shares of all backends with those of
// shareOracle, which follows the documentation one sentence after the other.
func TestPolicyAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genPolicyService(t)
		for _, table := range lb.Merge(s) {
			want, got := shareOracle(s, table.Frontend), shares(table)
			for k, share := range want {
				if share > 0 != (got[k] > 0) || math.Abs(share-got[k]) > 1e-6 {
					t.Fatalf("%v has share %v, want %v\n%+v\n%s", k, got[k], share, s.Policy, table)
				}
			}
			for k := range got {
				if _, ok := want[k]; !ok {
					t.Fatalf("%v is selected\n%+v\n%s", k, s.Policy, table)
				}
			}
			checkChoices(t, table)
		}
	})
}

// shares returns the part of the traffic of each selected backend.
func shares(table lb.FrontendTable) map[key]float64 {
	out, total := map[key]float64{}, 0.0
	for _, c := range table.Backends {
		total += float64(c.Weight)
	}
	for _, c := range table.Backends {
		if c.Selected {
			out[keyOf(c.Backend)] = float64(c.Weight) / total
		}
	}
	return out
}

func checkChoices(t *rapid.T, table lb.FrontendTable) {
	for i, c := range table.Backends {
		if c.Selected != (c.Weight > 0) || c.Selected != lb.Selecting(c.Reason) || c.Reason == "" {
			t.Fatalf("bad choice %+v", c)
		}
		if i > 0 && c.Selected && !table.Backends[i-1].Selected {
			t.Fatalf("bad order\n%s", table)
		}
	}
}

// judged is a backend as the policy sees it.
type judged struct {
	lb.Backend
	rank         int // tier; 100 if its cluster is demoted, 200 if it has weight 0
	weight       float64
	lost         bool
	nodes, zones bool // near by the distribution
}

func judge(s lb.Service, f lb.Frontend, b lb.Backend) (judged, bool) {
	tiers := s.Policy.Tiers
	switch {
	case len(tiers) > 0:
	case s.Affinity == lb.AffinityRemote:
		tiers = [][]string{{"*"}, {"local"}}
	case s.Affinity == lb.AffinityLocal || s.Policy.Spillover != (lb.Spillover{}):
		tiers = [][]string{{"local"}, {"*"}}
	default:
		tiers = [][]string{{"*"}}
	}
	place := map[string]int{}
	for i, tier := range tiers {
		for _, name := range tier {
			place[name] = i
		}
	}
	weights := map[string]float64{}
	for _, w := range s.Policy.Weights {
		weights[w.Cluster] = float64(w.Weight)
	}
	if len(weights) == 0 {
		weights["*"] = 1
	}
	rank, named := best(place, b)
	j := judged{Backend: b, rank: byDistance(s, b, place, rank)}
	j.weight, _ = best(weights, b)
	age, st := s.Lost[b.Cluster], s.Policy.Staleness
	if !b.Local && st.DemoteAfter > 0 && age >= st.DemoteAfter {
		j.rank = 100
	}
	if j.weight == 0 {
		j.rank = 200
	}
	j.lost = !b.Local && st.WithdrawAfter > 0 && age >= st.WithdrawAfter
	j.nodes = s.Distribution == lb.PreferSameNode && b.Here
	j.zones = s.Distribution != lb.DistributionNone && s.Zone != "" && b.Zone == s.Zone
	return j, named && (!nodeOnly(s, f) || b.Here)
}

// nodeOnly reports whether a frontend keeps to this node.
func nodeOnly(s lb.Service, f lb.Frontend) bool {
	return f.Scope == lb.ScopeOutside || s.NodeOnly && f.Kind == lb.KindClusterIP
}

// byDistance makes room in the ranks for those that nearest stands for: of the 16
// that there can be it has all that are left, the last for clusters without a
// distance.
func byDistance(s lb.Service, b lb.Backend, place map[string]int, rank int) int {
	at, asked := place[lb.Nearest]
	if !asked || rank < at {
		return rank
	}
	room := 17 - len(s.Policy.Tiers)
	if rank > at {
		return rank + room - 1
	}
	r, known := s.Ranks[b.Cluster]
	if !known {
		return at + room - 1
	}
	return at + min(int(r), room-2)
}

// best looks a cluster up by its name, else as local or nearest, else as other.
func best[V any](m map[string]V, b lb.Backend) (V, bool) {
	names := []string{b.Cluster, lb.Nearest, "*"}
	if b.Local {
		names = []string{b.Cluster, "local", "*"}
	}
	for _, name := range names {
		if v, ok := m[name]; ok {
			return v, true
		}
	}
	var none V
	return none, false
}

func where(all []judged, ok func(judged) bool) []judged {
	return slices.DeleteFunc(slices.Clone(all), func(j judged) bool { return !ok(j) })
}

func shareOracle(s lb.Service, f lb.Frontend) map[key]float64 {
	var all []judged
	for _, b := range owners(s, f) {
		if j, ok := judge(s, f, b); ok {
			all = append(all, j)
		}
	}
	in := func(state lb.State, lost bool) []judged {
		return where(all, func(j judged) bool { return j.State == state && j.lost == lost })
	}
	first := func(of []judged) []judged { return where(of, func(j judged) bool { return j.rank == 0 }) }
	out := map[key]float64{}
	switch active := in(lb.Active, false); {
	case s.Affinity == lb.AffinityRemote && len(s.Policy.Tiers) == 0 && len(first(active)) == 0 && len(first(in(lb.Terminating, false))) > 0:
		spread(s, out, first(in(lb.Terminating, false)), 1)
	case len(active) > 0:
		pour(s, f, out, all, active)
	case len(in(lb.Terminating, false)) > 0:
		spread(s, out, in(lb.Terminating, false), 1)
	case len(in(lb.Active, true)) > 0:
		spread(s, out, near(s, in(lb.Active, true)), 1)
	case len(in(lb.Terminating, true)) > 0:
		spread(s, out, in(lb.Terminating, true), 1)
	default:
		spread(s, out, append(in(lb.Quarantined, false), in(lb.Quarantined, true)...), 1)
	}
	return out
}

// pour lets the traffic run down the ranks.
func pour(s lb.Service, f lb.Frontend, out map[key]float64, all, active []judged) {
	spill, left := s.Policy.Spillover, 1.0
	var ranks []int
	for _, j := range active {
		ranks = append(ranks, j.rank)
	}
	slices.Sort(ranks)
	ranks = slices.Compact(ranks)
	for i, rank := range ranks {
		of := where(active, func(j judged) bool { return j.rank == rank })
		known := where(all, func(j judged) bool { return j.rank == rank && !j.lost })
		have, want := float64(len(of)), float64(spill.Backends)+float64(spill.Percent)*float64(len(known))/100
		raised := min(want*(1+float64(spill.Hysteresis)/100), max(want, float64(len(known))))
		was := slices.ContainsFunc(s.Previous, func(p lb.FrontendTable) bool {
			a := p.Frontend.Addr
			return a.Addr().Unmap() == f.Addr.Addr() && a.Port() == f.Addr.Port() && p.Frontend.Protocol == f.Protocol && firstPrevious(s, p) && p.Spilling&(1<<rank) != 0
		})
		enough := have >= want-1e-9
		if was {
			enough = have >= raised-1e-9
		}
		last := i == len(ranks)-1 || ranks[i+1] >= 100
		if spill == (lb.Spillover{}) || rank >= 100 || enough || last {
			spread(s, out, near(s, of), left)
			return
		}
		spread(s, out, near(s, of), left*have/raised)
		left -= left * have / raised
	}
}

// firstPrevious reports whether p is the first of those for its frontend.
func firstPrevious(s lb.Service, p lb.FrontendTable) bool {
	for _, q := range s.Previous {
		if q.Frontend.Addr.Addr().Unmap() == p.Frontend.Addr.Addr().Unmap() && q.Frontend.Addr.Port() == p.Frontend.Addr.Port() && q.Frontend.Protocol == p.Frontend.Protocol {
			return q.Spilling == p.Spilling
		}
	}
	return false
}

// near keeps the nearest of each group that shares traffic: the backends of one
// cluster if there are weights that count, else all.
func near(s lb.Service, of []judged) []judged {
	byCluster := len(s.Policy.Weights) > 0 && slices.ContainsFunc(of, func(j judged) bool { return j.weight > 0 })
	return where(of, func(j judged) bool {
		return !slices.ContainsFunc(of, func(o judged) bool {
			return (!byCluster || o.Cluster == j.Cluster) && distance(o) < distance(j)
		})
	})
}

func distance(j judged) int {
	switch {
	case j.nodes:
		return 0
	case j.zones:
		return 1
	}
	return 2
}

// spread divides a share by weight among clusters, then evenly.
func spread(s lb.Service, out map[key]float64, of []judged, share float64) {
	weights, counts, total := map[string]float64{}, map[string]float64{}, 0.0
	for _, j := range of {
		weights[j.Cluster] = j.weight
		counts[j.Cluster]++
	}
	for _, w := range weights {
		total += w
	}
	for _, j := range of {
		switch {
		case len(s.Policy.Weights) == 0 || total == 0:
			out[keyOf(j.Backend)] += share / float64(len(of))
		case j.weight > 0:
			out[keyOf(j.Backend)] += share * j.weight / total / counts[j.Cluster]
		}
	}
}
