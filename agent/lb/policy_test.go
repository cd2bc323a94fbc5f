package lb_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// TestPolicyIsStable: a decision that is remembered is the same when it is
// taken again, and the order of the inputs does not matter.
func TestPolicyIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genPolicyService(t)
		once := lb.Merge(s)
		s.Previous = lb.Remember(once)
		s.Backends = rapid.Permutation(s.Backends).Draw(t, "shuffled")
		if a, b := lb.Format(once), lb.Format(lb.Merge(s)); a != b {
			t.Fatalf("not stable:\n%s%s", a, b)
		}
	})
}

// TestNeverEmpty: while a cluster that the policy names has a backend that can
// be used at all, one is selected, however long it has been out of contact.
func TestNeverEmpty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genPolicyService(t)
		for _, table := range lb.Merge(s) {
			usable, selected := 0, 0
			for _, c := range table.Backends {
				never := slices.Contains([]string{lb.ReasonNotReady, lb.ReasonMaintenance, lb.ReasonExcluded, lb.ReasonOtherNode, lb.ReasonDuplicate}, c.Reason)
				if !never {
					usable++
				}
				if c.Selected {
					selected++
				}
				if c.Reason == lb.ReasonExcluded && len(s.Policy.Tiers) == 0 || c.Reason == lb.ReasonOtherNode && !nodeOnly(s, table.Frontend) {
					t.Fatalf("no ground for %s\n%s", c.Reason, table)
				}
			}
			if usable > 0 && selected == 0 {
				t.Fatalf("none of %d is selected\n%s", usable, table)
			}
		}
	})
}

// regions is a service with n backends in each of the clusters c1 (local) to
// c<clusters>, all active, and one frontend.
func regions(clusters, n int) lb.Service {
	s := lb.Service{Name: lb.ServiceName{Namespace: "n", Name: "s"},
		Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: lb.TCP}}}
	for c := 1; c <= clusters; c++ {
		for i := range n {
			s.Backends = append(s.Backends, lb.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(c), byte(i >> 8), byte(i)}), 80),
				Protocol: lb.TCP, Cluster: fmt.Sprint("c", c), ClusterID: uint16(c), Local: c == 1})
		}
	}
	return s
}

func clusterShares(table lb.FrontendTable) map[string]float64 {
	out := map[string]float64{}
	byKey := shares(table)
	for _, c := range table.Backends {
		out[c.Cluster] += byKey[keyOf(c.Backend)]
	}
	return out
}

// TestSpilloverIsMonotone takes the first tier's backends away one after the
// other in any order and gives them back: the share of the others never falls
// on the way down and never grows on the way up; it is 0 at the start, 1 at the
// bottom, and 0 again at the end.
func TestSpilloverIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "n")
		s := regions(3, n)
		s.Policy = genPolicy(t)
		s.Policy.Tiers = [][]string{{"local"}, {"c2"}, {"c3"}}
		s.Policy.Weights, s.Policy.Staleness = nil, lb.Staleness{}
		s.Policy.Spillover.Backends = min(s.Policy.Spillover.Backends, uint32(n))
		order := rapid.Permutation(seq(n)).Draw(t, "order")
		away := 0.0
		step := func(i int, state lb.State, down bool) {
			s.Backends[i].State = state
			tables := lb.Merge(s)
			s.Previous = lb.Remember(tables)
			now := 1 - clusterShares(tables[0])["c1"]
			if fell := now < away-1e-9; fell && down || now > away+1e-9 && !down {
				t.Fatalf("share of the next tiers went from %v to %v, down %v\n%s", away, now, down, tables[0])
			}
			away = now
		}
		for _, i := range order {
			step(i, lb.NotReady, true)
		}
		if away != 1 {
			t.Fatalf("share of the next tiers is %v without a healthy backend in the first", away)
		}
		for _, i := range order {
			step(i, lb.Active, false)
		}
		if math.Abs(away) > 1e-9 {
			t.Fatalf("share of the next tiers is %v with all healthy", away)
		}
	})
}

// TestHysteresisDamps flips one backend at the threshold: with hysteresis the
// tiers in use change once, without each time.
func TestHysteresisDamps(t *testing.T) {
	for hysteresis, want := range map[uint32]int{0: 19, 25: 1} {
		s := regions(2, 10)
		s.Policy = lb.Policy{Tiers: [][]string{{"local"}, {"*"}}, Spillover: lb.Spillover{Percent: 80, Hysteresis: hysteresis}}
		changes, was := 0, uint32(0)
		for i := range 20 {
			s.Backends[0].State = []lb.State{lb.Active, lb.NotReady}[i%2]
			s.Backends[1].State, s.Backends[2].State = lb.NotReady, lb.NotReady
			tables := lb.Merge(s)
			if s.Previous = lb.Remember(tables); tables[0].Spilling != was {
				changes++
			}
			was = tables[0].Spilling
		}
		if changes != want {
			t.Errorf("hysteresis %d%%: %d changes, want %d", hysteresis, changes, want)
		}
	}
}

// TestDrawnShares draws 100,000 connections from the alias table of each policy
// and compares the clusters' shares with what the policy says, within 2 %.
func TestDrawnShares(t *testing.T) {
	for _, tt := range []struct {
		annotations map[string]string
		down        string // the clusters' backends that are not ready
		want        map[string]float64
	}{
		{map[string]string{}, "", map[string]float64{"c1": 0.25, "c2": 0.25, "c3": 0.25, "c4": 0.25}},
		{map[string]string{"weights": "c1=3,c2=1"}, "", map[string]float64{"c1": 0.75, "c2": 0.25}},
		{map[string]string{"weights": "local=3,c2=1"}, "c1 c1 c1", map[string]float64{"c1": 0.75, "c2": 0.25}},
		{map[string]string{"weights": "c1=3,c2=1"}, "c1 c1 c1 c1", map[string]float64{"c2": 1}},
		{map[string]string{"weights": "c1=3,c2=1,*=2"}, "", map[string]float64{"c1": 0.375, "c2": 0.125, "c3": 0.25, "c4": 0.25}},
		{map[string]string{"weights": "c1=99,c2=1"}, "", map[string]float64{"c1": 0.99, "c2": 0.01}},
		{map[string]string{"spillover": "min=4"}, "c1", map[string]float64{"c1": 0.75, "c2": 0.25 / 3, "c3": 0.25 / 3, "c4": 0.25 / 3}},
		{map[string]string{"tiers": "c1;c2;*", "spillover": "min=100%"}, "c1 c1 c2", map[string]float64{"c1": 0.5, "c2": 0.375, "c3": 0.0625, "c4": 0.0625}},
		{map[string]string{"tiers": "c1;c2,c3", "weights": "c2=4,c3=1,c1=1", "spillover": "min=50%"}, "c1 c1 c1", map[string]float64{"c1": 0.5, "c2": 0.4, "c3": 0.1}},
	} {
		s := regions(4, 4)
		p, wrong := lb.ParsePolicy(tt.annotations)
		if s.Policy = p; len(wrong) > 0 {
			t.Fatal(wrong[0])
		}
		for _, name := range strings.Fields(tt.down) {
			i := slices.IndexFunc(s.Backends, func(b lb.Backend) bool { return b.Cluster == name && b.State == lb.Active })
			s.Backends[i].State = lb.NotReady
		}
		table := lb.Merge(s)[0]
		got := draw(table, 100_000)
		for _, c := range []string{"c1", "c2", "c3", "c4"} {
			if math.Abs(got[c]-tt.want[c]) > 0.02 || tt.want[c] == 0 && got[c] > 0 {
				t.Errorf("%v without %q: %s has %.4f, want %.4f\n%s", tt.annotations, tt.down, c, got[c], tt.want[c], table)
			}
		}
	}
}

// draw picks as a program would and returns each cluster's part.
func draw(table lb.FrontendTable, n int) map[string]float64 {
	var weights []uint32
	for _, c := range table.Backends {
		if c.Selected {
			weights = append(weights, c.Weight)
		}
	}
	slots, random, out := lb.Alias(weights), rand.New(rand.NewPCG(1, 2)), map[string]float64{}
	for range n {
		i := random.IntN(len(slots))
		if random.Uint32() >= slots[i].Threshold {
			i = int(slots[i].Alias)
		}
		out[table.Backends[i].Cluster] += 1 / float64(n)
	}
	return out
}

// TestAffinityIsACaseOfTiers: the affinities none and local select the same
// backends with the same weights as the tiers they stand for.
func TestAffinityIsACaseOfTiers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genPolicyService(t)
		s.Policy.Tiers, s.Policy.Spillover = nil, lb.Spillover{}
		s.Affinity = rapid.SampledFrom([]lb.Affinity{lb.AffinityNone, lb.AffinityLocal}).Draw(t, "which")
		tiered := s
		tiered.Affinity, tiered.Policy.Tiers = lb.AffinityNone, map[lb.Affinity][][]string{lb.AffinityNone: {{"*"}}, lb.AffinityLocal: {{"local"}, {"*"}}}[s.Affinity]
		a, b := lb.Merge(s), lb.Merge(tiered)
		for i := range a {
			if got, want := shares(b[i]), shares(a[i]); !reflect.DeepEqual(got, want) {
				t.Fatalf("affinity %s has %v, its tiers %v", s.Affinity, want, got)
			}
		}
	})
}

// TestNoShareIsLostToRounding: a backend that is to have a share has one,
// however small it is next to the others'.
func TestNoShareIsLostToRounding(t *testing.T) {
	s := regions(2, 9)
	s.Policy.Weights = []lb.ClusterWeight{{Cluster: "c1", Weight: 1}, {Cluster: "c2", Weight: 1<<32 - 1}}
	if got := shares(lb.Merge(s)[0]); len(got) != 18 {
		t.Errorf("%d of 18 are selected", len(got))
	}
}

// TestPreviousIsByFrontend: what is remembered of one frontend does not concern
// another one of the same address, and an address has one meaning.
func TestPreviousIsByFrontend(t *testing.T) {
	s := regions(2, 2)
	s.Backends[0].State = lb.NotReady
	s.Policy = lb.Policy{Tiers: [][]string{{"local"}, {"*"}}, Spillover: lb.Spillover{Percent: 50, Hysteresis: 100}}
	for addr, want := range map[string]uint32{"10.96.0.1:80": 1, "[::ffff:10.96.0.1]:80": 1, "10.96.0.2:80": 0, "10.96.0.1:81": 0} {
		f := lb.Frontend{Addr: netip.MustParseAddrPort(addr), Protocol: lb.TCP}
		s.Previous = []lb.FrontendTable{{Frontend: f, Spilling: 1}}
		if got := lb.Merge(s)[0].Spilling; got != want {
			t.Errorf("previous %s: spilling %d, want %d", addr, got, want)
		}
		s.Previous[0].Frontend.Protocol = lb.UDP
		if got := lb.Merge(s)[0].Spilling; got != 0 {
			t.Errorf("previous %s/UDP: spilling %d, want 0", addr, got)
		}
	}
}

// TestHereIsOrdered: of two records of one backend the one on this node counts.
func TestHereIsOrdered(t *testing.T) {
	s := regions(1, 1)
	s.NodeOnly = true
	here := s.Backends[0]
	here.Here = true
	for _, order := range [][]lb.Backend{{here, s.Backends[0]}, {s.Backends[0], here}} {
		s.Backends = order
		if got := shares(lb.Merge(s)[0]); len(got) != 1 {
			t.Errorf("selected %v", got)
		}
	}
}

// TestFrontendsOfScopes: what is for clients outside keeps to this node, whatever
// the service says of clients inside, and the other way round.
func TestFrontendsOfScopes(t *testing.T) {
	s := regions(1, 2)
	s.Backends[0].Here = true
	at := netip.MustParseAddrPort("192.0.2.1:80")
	s.Frontends = append(s.Frontends,
		lb.Frontend{Addr: at, Protocol: lb.TCP, Kind: lb.KindExternal},
		lb.Frontend{Addr: at, Protocol: lb.TCP, Kind: lb.KindExternal, Scope: lb.ScopeOutside},
		lb.Frontend{Addr: at, Protocol: lb.TCP, Kind: lb.KindNodePort, Scope: lb.ScopeHost})
	for nodeOnly, want := range map[bool][]int{false: {2, 2, 1, 2}, true: {1, 2, 1, 2}} {
		s.NodeOnly = nodeOnly
		tables := lb.Merge(s)
		var got []int
		for _, table := range tables {
			got = append(got, len(shares(table)))
		}
		if !slices.Equal(got, want) {
			t.Errorf("internal policy Local %v: %v backends, want %v\n%s", nodeOnly, got, want, lb.Format(tables))
		}
	}
}

// TestManyTiers: tiers beyond those that ParsePolicy accepts are one tier.
func TestManyTiers(t *testing.T) {
	s := regions(20, 1)
	for i := range s.Backends {
		s.Policy.Tiers = append(s.Policy.Tiers, []string{s.Backends[i].Cluster})
		s.Backends[i].State = lb.NotReady
	}
	s.Backends[17].State, s.Backends[19].State = lb.Active, lb.Active
	if got := shares(lb.Merge(s)[0]); len(got) != 2 {
		t.Errorf("selected %v", got)
	}
}

func TestRememberKeepsOnlySpilling(t *testing.T) {
	f := lb.Frontend{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: lb.TCP}
	got := lb.Remember([]lb.FrontendTable{{Frontend: f}, {Frontend: f, Spilling: 2, Backends: make([]lb.Choice, 3)}})
	if len(got) != 1 || got[0].Spilling != 2 || got[0].Frontend != f || got[0].Backends != nil {
		t.Errorf("kept %+v", got)
	}
	if lb.Remember(make([]lb.FrontendTable, 3)) != nil {
		t.Error("kept tables that do not spill")
	}
}

func TestStalenessNext(t *testing.T) {
	for _, tt := range []struct {
		s          lb.Staleness
		lost, want uint32
	}{
		{lb.Staleness{}, 0, 0}, {lb.Staleness{DemoteAfter: 5}, 0, 5}, {lb.Staleness{DemoteAfter: 5}, 4, 5}, {lb.Staleness{DemoteAfter: 5}, 5, 0},
		{lb.Staleness{WithdrawAfter: 9}, 8, 9}, {lb.Staleness{WithdrawAfter: 9}, 9, 0},
		{lb.Staleness{DemoteAfter: 5, WithdrawAfter: 9}, 4, 5}, {lb.Staleness{DemoteAfter: 5, WithdrawAfter: 9}, 5, 9}, {lb.Staleness{DemoteAfter: 5, WithdrawAfter: 9}, 9, 0},
	} {
		if got := tt.s.Next(tt.lost); got != tt.want {
			t.Errorf("%+v after %d: %d, want %d", tt.s, tt.lost, got, tt.want)
		}
	}
}
