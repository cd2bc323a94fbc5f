package lb_test

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
)

func genService(t *rapid.T) lb.Service {
	s := lb.Service{
		Name:     lb.ServiceName{Namespace: "n", Name: "s"},
		Affinity: rapid.SampledFrom([]lb.Affinity{lb.AffinityNone, lb.AffinityLocal, lb.AffinityRemote}).Draw(t, "affinity"),
	}
	s.Frontends = rapid.SliceOfN(rapid.Custom(genFrontend), 0, 4).Draw(t, "frontends")
	s.Backends = rapid.SliceOfN(rapid.Custom(genBackend), 0, 12).Draw(t, "backends")
	return s
}

func genFrontend(t *rapid.T) lb.Frontend {
	return lb.Frontend{
		Addr:     netip.AddrPortFrom(genAddr(t, "10.96.0.1", "10.96.0.2", "::ffff:10.96.0.1", "fd00:96::1"), 80),
		Protocol: rapid.SampledFrom([]lb.Protocol{lb.TCP, lb.UDP}).Draw(t, "proto"),
		PortName: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "name"),
	}
}

func genBackend(t *rapid.T) lb.Backend {
	id := rapid.Uint16Range(1, 4).Draw(t, "cluster")
	return lb.Backend{
		Addr:      netip.AddrPortFrom(genAddr(t, "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "fd00::1"), rapid.Uint16Range(1, 2).Draw(t, "port")),
		Protocol:  rapid.SampledFrom([]lb.Protocol{lb.TCP, lb.TCP, lb.UDP}).Draw(t, "proto"),
		Names:     rapid.SampledFrom([][]string{nil, {"a"}, {"b"}, {"a", "b"}}).Draw(t, "names"),
		Cluster:   "c" + string('0'+rune(id)),
		ClusterID: id,
		Local:     id == 2, // not the lowest id, so that locality and id differ
		State:     rapid.SampledFrom([]lb.State{lb.Active, lb.Terminating, lb.NotReady}).Draw(t, "state"),
	}
}

func genAddr(t *rapid.T, of ...string) netip.Addr {
	return netip.MustParseAddr(rapid.SampledFrom(of).Draw(t, "addr"))
}

// TestOrderIndependent: any permutation of the inputs gives the same text, and
// the inputs are not changed.
func TestOrderIndependent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genService(t)
		shuffled := s
		shuffled.Backends = rapid.Permutation(s.Backends).Draw(t, "shuffled")
		shuffled.Frontends = rapid.Permutation(s.Frontends).Draw(t, "shuffledFrontends")
		before := slices.Clone(s.Backends)
		a, b := lb.Format(lb.Merge(s)), lb.Format(lb.Merge(shuffled))
		if a != b {
			t.Fatalf("order matters:\n%s\n%s", a, b)
		}
		if !slices.EqualFunc(before, s.Backends, func(x, y lb.Backend) bool { return x.Addr == y.Addr && x.ClusterID == y.ClusterID }) {
			t.Fatal("the input was reordered")
		}
	})
}

// TestAgainstOracle compares the selected set with one written straight from
// the affinity table, and checks the order and the reasons.
func TestAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genService(t)
		for _, table := range lb.Merge(s) {
			want := oracle(s, table.Frontend)
			got := map[key]lb.Backend{}
			for _, c := range table.Backends {
				if c.Selected {
					got[keyOf(c.Backend)] = c.Backend
				}
			}
			if len(got) != len(want) {
				t.Fatalf("selected %v, want %v\n%s", got, want, table)
			}
			for k, b := range want {
				if g, ok := got[k]; !ok || g.ClusterID != b.ClusterID || g.State != b.State {
					t.Fatalf("for %v: %v, want %v\n%s", k, g, b, table)
				}
			}
			checkShape(t, s, table)
		}
	})
}

type key struct {
	addr  netip.AddrPort
	proto lb.Protocol
}

func keyOf(b lb.Backend) key {
	return key{netip.AddrPortFrom(b.Addr.Addr().Unmap(), b.Addr.Port()), b.Protocol}
}

// owners returns, per address, the backend that owns it among those matching f.
func owners(s lb.Service, f lb.Frontend) map[key]lb.Backend {
	own := map[key]lb.Backend{}
	for _, b := range s.Backends {
		named := f.PortName != "" && len(b.Names) > 0
		if f.Addr.Addr().Is4() != b.Addr.Addr().Unmap().Is4() || f.Protocol != b.Protocol || named && !slices.Contains(b.Names, f.PortName) {
			continue
		}
		old, taken := own[keyOf(b)]
		if !taken || slices.Compare(claim(s, f, b), claim(s, f, old)) < 0 {
			own[keyOf(b)] = b
		}
	}
	return own
}

// claim orders backends of one address, that which owns it first.
func claim(s lb.Service, f lb.Frontend, b lb.Backend) []int {
	f.Scope, s.NodeOnly = lb.ScopeAny, false
	j, named := judge(s, f, b)
	order := []int{int(b.ClusterID), int(b.State)}
	switch {
	case b.Local:
		return append([]int{0, 0}, order...)
	case !named:
		return append([]int{9, 0}, order...)
	case b.State == lb.NotReady || b.State == lb.Maintenance:
		return append([]int{8, 0}, order...)
	case b.State == lb.Quarantined:
		return append([]int{5, j.rank}, order...)
	case j.lost && b.State == lb.Terminating:
		return append([]int{4, j.rank}, order...)
	case j.lost:
		return append([]int{3, j.rank}, order...)
	case b.State == lb.Terminating:
		return append([]int{2, j.rank}, order...)
	}
	return append([]int{1, j.rank}, order...)
}

// oracle is the affinity table of Cilium, row by row, then Kubernetes' rule.
func oracle(s lb.Service, f lb.Frontend) map[key]lb.Backend {
	own := owners(s, f)
	any := func(local bool, states ...lb.State) bool {
		for _, b := range own {
			if b.Local == local && slices.Contains(states, b.State) {
				return true
			}
		}
		return false
	}
	local, remote := true, true
	switch s.Affinity {
	case lb.AffinityLocal:
		remote = !any(true, lb.Active) && any(false, lb.Active, lb.Terminating)
	case lb.AffinityRemote:
		local = !any(false, lb.Active, lb.Terminating) && any(true, lb.Active, lb.Terminating)
	}
	wanted := lb.Terminating
	if local && any(true, lb.Active) || remote && any(false, lb.Active) {
		wanted = lb.Active
	}
	out := map[key]lb.Backend{}
	for k, b := range own {
		if (b.Local && local || !b.Local && remote) && b.State == wanted {
			out[k] = b
		}
	}
	return out
}

// checkShape: selected first, local first, cluster, address; a reason always;
// never empty while anything healthy matches; nothing unready selected.
func checkShape(t *rapid.T, s lb.Service, table lb.FrontendTable) {
	healthy, selected := 0, 0
	for _, b := range owners(s, table.Frontend) {
		if b.State != lb.NotReady {
			healthy++
		}
	}
	for i, c := range table.Backends {
		if c.Reason == "" || c.Selected != lb.Selecting(c.Reason) || c.Selected && c.State == lb.NotReady {
			t.Fatalf("bad choice %+v", c)
		}
		if c.Selected {
			selected++
		}
		if i > 0 && rank(table.Backends[i-1]) > rank(c) {
			t.Fatalf("bad order\n%s", table)
		}
	}
	if healthy > 0 && selected == 0 {
		t.Fatalf("empty although %d are healthy\n%s", healthy, table)
	}
}

func rank(c lb.Choice) int {
	r := int(c.ClusterID)
	if !c.Local {
		r += 100
	}
	if !c.Selected {
		r += 1000
	}
	return r
}

func benchmarkMerge(b *testing.B, backends int, p lb.Policy) {
	s := lb.Service{Policy: p,
		Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: lb.TCP, PortName: "http"}}}
	for i := range backends {
		id := uint16(i%3 + 1)
		addr := netip.AddrFrom4([4]byte{10, byte(id), byte(i >> 8), byte(i)})
		s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(addr, 8080), Protocol: lb.TCP,
			Names: []string{"http"}, Cluster: "c", ClusterID: id, Local: id == 1})
	}
	b.ReportAllocs()
	for b.Loop() {
		if got := lb.Merge(s); len(got[0].Backends) != backends {
			b.Fatal("lost backends")
		}
	}
}

func BenchmarkMerge10(b *testing.B)   { benchmarkMerge(b, 10, lb.Policy{}) }
func BenchmarkMerge1000(b *testing.B) { benchmarkMerge(b, 1000, lb.Policy{}) }

// BenchmarkMergePolicy10 spills by tiers and weights.
func BenchmarkMergePolicy10(b *testing.B) {
	p, wrong := lb.ParsePolicy(map[string]string{"tiers": "local; c; *", "weights": "local=1, *=2", "spillover": "min=5,hysteresis=10%"})
	if len(wrong) > 0 {
		b.Fatal(wrong[0])
	}
	benchmarkMerge(b, 10, p)
}
