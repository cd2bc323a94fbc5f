package lb_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
)

func nearestPolicy(t testing.TB, annotations map[string]string) lb.Policy {
	t.Helper()
	p, wrong := lb.ParsePolicy(annotations)
	if len(wrong) > 0 {
		t.Fatal(wrong[0])
	}
	return p
}

// used are the clusters that take new connections, with the reasons of the
// others.
func used(table lb.FrontendTable) (clusters []string, reasons map[string]string) {
	reasons = map[string]string{}
	for _, c := range table.Backends {
		switch {
		case !c.Selected:
			reasons[c.Cluster] = c.Reason
		case !slices.Contains(clusters, c.Cluster):
			clusters = append(clusters, c.Cluster)
		}
	}
	slices.Sort(clusters)
	return clusters, reasons
}

// TestNearestFirst fails the clusters one after the other: each time the nearest
// ones that are left are used, those of one rank together, unknown ones last,
// and what comes behind nearest after these.
func TestNearestFirst(t *testing.T) {
	for _, c := range []struct {
		tiers string
		ranks map[string]uint8
		order [][]string // of fallback
	}{
		{"local; nearest", map[string]uint8{"c2": 1, "c3": 0, "c4": 2}, [][]string{{"c1"}, {"c3"}, {"c2"}, {"c4"}, {"c5"}}},
		{"local; nearest", map[string]uint8{"c2": 0, "c3": 0, "c5": 1}, [][]string{{"c1"}, {"c2", "c3"}, {"c5"}, {"c4"}}},
		{"nearest; *", map[string]uint8{"c2": 11, "c3": 0}, [][]string{{"c3"}, {"c2"}, {"c4", "c5"}, {"c1"}}},
		{"c4; nearest; local", map[string]uint8{"c4": 9, "c5": 3, "c2": 2}, [][]string{{"c4"}, {"c2"}, {"c5"}, {"c3"}, {"c1"}}},
		{"nearest", nil, [][]string{{"c2", "c3", "c4", "c5"}}},
		{"local; nearest; c2", map[string]uint8{"c2": 0, "c3": 1}, [][]string{{"c1"}, {"c3"}, {"c4", "c5"}, {"c2"}}},
	} {
		s := regions(5, 2)
		s.Policy, s.Ranks = nearestPolicy(t, map[string]string{"tiers": c.tiers}), c.ranks
		for i, want := range c.order {
			got, _ := used(lb.Merge(s)[0])
			if !slices.Equal(got, want) {
				t.Errorf("%q with ranks %v: %v are used in step %d, want %v", c.tiers, c.ranks, got, i, want)
			}
			for j := range s.Backends {
				if slices.Contains(want, s.Backends[j].Cluster) {
					s.Backends[j].State = lb.NotReady
				}
			}
		}
	}
}

// TestEveryRankFailsOver: whatever ranks there are and whichever clusters fail, a
// healthy cluster that the policy names is used, none is used while a nearer one
// is healthy, and nearer ones of the policy's tiers have lower numbers.
func TestEveryRankFailsOver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := regions(8, 1)
		s.Policy.Tiers = rapid.SampledFrom([][][]string{{{"local"}, {"nearest"}}, {{"nearest"}}, {{"nearest"}, {"local"}}, {{"local"}, {"c5"}, {"nearest"}, {"*"}}}).Draw(t, "tiers")
		s.Ranks = map[string]uint8{}
		for i := range s.Backends {
			b := &s.Backends[i]
			if r := rapid.IntRange(0, 9).Draw(t, "rank"); !b.Local && r < 9 {
				s.Ranks[b.Cluster] = uint8(r)
			}
			if rapid.Bool().Draw(t, "down") {
				b.State = lb.NotReady
			}
		}
		first := 0
		for _, b := range s.Backends {
			if tier := s.Tier(b.Cluster, b.Local); tier > 0 && b.State == lb.Active && (first == 0 || tier < first) {
				first = tier
			}
		}
		for _, c := range lb.Merge(s)[0].Backends {
			want := c.State == lb.Active && first > 0 && s.Tier(c.Cluster, c.Local) == first
			if c.Selected != want {
				t.Fatalf("%s of tier %d is used: %v, the first tier with healthy ones is %d\n%v\n%s", c.Cluster, s.Tier(c.Cluster, c.Local), c.Selected, first, s.Ranks, lb.Merge(s)[0])
			}
		}
	})
}

// TestTiersOfNearestAsPeopleCount: each rank is a tier, the unknown are one, and
// what comes behind follows.
func TestTiersOfNearestAsPeopleCount(t *testing.T) {
	s := lb.Service{Ranks: map[string]uint8{"c2": 0, "c3": 1, "c4": 1}}
	s.Policy = nearestPolicy(t, map[string]string{"tiers": "local; nearest; c9"})
	got := ""
	for _, c := range []string{"c1", "c2", "c3", "c4", "c5", "c9"} {
		got += fmt.Sprintf("%s %d %v, ", c, s.Tier(c, c == "c1"), s.IsNearest(c))
	}
	if want := "c1 1 true, c2 2 true, c3 3 true, c4 3 true, c5 4 true, c9 5 false, "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestSpilloverToTheNearest: a tier that has too few healthy backends gets help of
// the nearest cluster, not of all.
func TestSpilloverToTheNearest(t *testing.T) {
	s := regions(4, 4)
	s.Policy = nearestPolicy(t, map[string]string{"tiers": "local; nearest", "spillover": "min=4"})
	s.Ranks = map[string]uint8{"c2": 1, "c3": 0, "c4": 2}
	s.Backends[0].State = lb.NotReady
	table := lb.Merge(s)[0]
	if got := clusterShares(table); got["c1"] != 0.75 || got["c3"] != 0.25 {
		t.Errorf("shares %v\n%s", got, table)
	}
	if _, reasons := used(table); reasons["c2"] != lb.ReasonTier || table.Spilling != 1 {
		t.Errorf("reasons %v, spilling %b", reasons, table.Spilling)
	}
}
