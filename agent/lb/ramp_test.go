package lb_test

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// ramped is a service of two tiers with n backends each and a ramp.
func ramped(n int, spill lb.Spillover) lb.Service {
	s := regions(2, n)
	s.Policy = lb.Policy{Tiers: [][]string{{"local"}, {"*"}}, Spillover: spill}
	return s
}

// decide merges, remembers, and returns the share of the first tier.
func decide(s *lb.Service, steps uint32) (share float64, table lb.FrontendTable) {
	s.Steps = steps
	tables := lb.Merge(*s)
	s.Previous = lb.Remember(tables)
	return clusterShares(tables[0])["c1"], tables[0]
}

// health makes so many of the first tier's backends healthy.
func health(s *lb.Service, n int) {
	for i := range s.Backends {
		if b := &s.Backends[i]; b.Local {
			b.State = lb.NotReady
			if i < n {
				b.State = lb.Active
			}
		}
	}
}

// TestARampMovesTrafficBitByBit down and up again, a twentieth a step.
func TestARampMovesTrafficBitByBit(t *testing.T) {
	s := ramped(10, lb.Spillover{Backends: 10, Ramp: 60})
	if share, table := decide(&s, 0); math.Abs(share-1) > 1e-9 || table.Ramping {
		t.Fatalf("share %v at first\n%s", share, table)
	}
	health(&s, 4)
	for i := range 14 {
		share, table := decide(&s, uint32(min(i, 1)))
		want := max(1-float64(i)/20, 0.4)
		if math.Abs(share-want) > 1e-6 || table.Ramping != (i < 12) {
			t.Errorf("share %v after %d steps, want %v, ramping %v", share, i, want, table.Ramping)
		}
	}
	health(&s, 10)
	if share, _ := decide(&s, 3); math.Abs(share-0.55) > 1e-6 {
		t.Errorf("share %v three steps after the return", share)
	}
	if share, table := decide(&s, lb.RampSteps); math.Abs(share-1) > 1e-9 || table.Ramping {
		t.Errorf("share %v in the end\n%s", share, table)
	}
}

// TestARampDoesNotWait where there is nobody to wait for: the last healthy backend
// of a tier is gone, the next tier has none; and it begins with a step where a
// tier comes back.
func TestARampDoesNotWait(t *testing.T) {
	s := ramped(4, lb.Spillover{Backends: 4, Ramp: 60})
	decide(&s, 0)
	health(&s, 0)
	if share, table := decide(&s, 0); share > 1e-9 || table.Ramping {
		t.Errorf("share %v of a tier without healthy backends\n%s", share, table)
	}
	health(&s, 4)
	if share, table := decide(&s, 0); math.Abs(share-0.05) > 1e-6 || !table.Ramping {
		t.Errorf("share %v of a tier that came back\n%s", share, table)
	}
	for i := range s.Backends {
		if !s.Backends[i].Local {
			s.Backends[i].State = lb.NotReady
		}
	}
	if share, table := decide(&s, 0); math.Abs(share-1) > 1e-9 || table.Ramping {
		t.Errorf("share %v of the only tier left\n%s", share, table)
	}
}

// TestRampsAreMonotone: while health stays as it is, each step leads a tier's share
// towards what it demands, by a twentieth at most, never past it and never back;
// it is there after 20 steps, and nothing moves any more. Without time nothing
// moves either.
func TestRampsAreMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 10).Draw(t, "n")
		spill := lb.Spillover{Hysteresis: rapid.Uint32Range(0, 50).Draw(t, "hysteresis"), Ramp: 30}
		spill.Backends = rapid.Uint32Range(1, uint32(n)).Draw(t, "min")
		s := ramped(n, spill)
		share, _ := decide(&s, 0)
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			had := share > 0
			health(&s, rapid.IntRange(1, n).Draw(t, "healthy"))
			if share, _ = decide(&s, rapid.Uint32Range(0, 5).Draw(t, "at once")); !had {
				continue
			}
			goal := s
			goal.Policy.Spillover.Ramp = 0
			want := max(clusterShares(lb.Merge(goal)[0])["c1"], 0.05)
			for i := range lb.RampSteps + 1 {
				again, _ := decide(&s, 0)
				if again != share {
					t.Fatalf("share went from %v to %v in no time", share, again)
				}
				next, table := decide(&s, 1)
				if d := math.Abs(next - share); d > 1.0/lb.RampSteps+1e-6 || math.Abs(want-next) > math.Abs(want-share)+1e-9 || (want-share)*(want-next) < -1e-9 {
					t.Fatalf("share went from %v to %v, towards %v\n%s", share, next, want, table)
				}
				if share = next; i == lb.RampSteps && (math.Abs(share-want) > 1e-6 || table.Ramping) {
					t.Fatalf("share is %v after all steps, want %v\n%s", share, want, table)
				}
			}
		}
	})
}

// TestRampsDoNotOscillate: whatever health does, the share of the first tier never
// moves by more than the time that passed allows, but for the moments when a tier
// has no healthy backend; a backend that flips at the threshold moves it by less
// than a step each time.
func TestRampsDoNotOscillate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 10).Draw(t, "n")
		s := ramped(n, lb.Spillover{Percent: rapid.Uint32Range(1, 100).Draw(t, "percent"), Hysteresis: rapid.Uint32Range(0, 50).Draw(t, "hysteresis"), Ramp: 30})
		share, _ := decide(&s, 0)
		for range 40 {
			health(&s, rapid.IntRange(1, n).Draw(t, "healthy"))
			steps := rapid.Uint32Range(0, 2).Draw(t, "steps")
			next, table := decide(&s, steps)
			if math.Abs(next-share) > float64(steps)/lb.RampSteps+1e-6 {
				t.Fatalf("share went from %v to %v in %d steps\n%s", share, next, steps, table)
			}
			share = next
		}
	})
	s := ramped(10, lb.Spillover{Percent: 80, Hysteresis: 25, Ramp: 30})
	decide(&s, 0)
	changes, was := 0, uint32(0)
	for i := range 40 {
		health(&s, 7+i%2)
		if _, table := decide(&s, 1); table.Spilling != was {
			changes, was = changes+1, table.Spilling
		}
	}
	if changes != 1 {
		t.Errorf("the tiers in use changed %d times, want once", changes)
	}
}

// TestNeverEmptyWithARamp is TestNeverEmpty for policies with a ramp in the middle
// of its way.
func TestNeverEmptyWithARamp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genPolicyService(t)
		s.Policy.Spillover.Ramp = 30
		s.Steps = rapid.Uint32Range(0, 25).Draw(t, "steps")
		for i := range s.Previous {
			s.Previous[i].Kept = rapid.SliceOfN(rapid.Uint32Range(0, 1_396_755_360), 0, 16).Draw(t, "kept")
		}
		for _, table := range lb.Merge(s) {
			checkChoices(t, table)
			for _, c := range table.Backends {
				if c.Selected && (c.State == lb.NotReady || c.State == lb.Maintenance) {
					t.Fatalf("used %v\n%s", c, table)
				}
			}
			without := s
			without.Policy.Spillover.Ramp = 0
			before := 0
			for _, plain := range lb.Merge(without) {
				if plain.Frontend == table.Frontend {
					before = len(shares(plain))
				}
			}
			if (before > 0) != (len(shares(table)) > 0) {
				t.Fatalf("%d are used without a ramp\n%s", before, table)
			}
		}
	})
}
