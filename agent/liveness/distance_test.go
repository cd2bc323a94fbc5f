package liveness

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

const ms = 1_000_000

// measure lets a judge hear rounds with an answer each, of backends or nodes.
func measure(j *Judge, rounds int, rtt func() int64) (changes int) {
	target := targets(1)
	for was := j.Distance(); rounds > 0; rounds-- {
		j.Round(Observation{Backends: Probed{Asked: target, Answered: []Answer{{target[0], rtt()}}, Known: 1}})
		if now := j.Distance(); now != was {
			changes, was = changes+1, now
		}
	}
	return changes
}

func always(ns int64) func() int64 { return func() int64 { return ns } }

// noisy is a time that each answer misses by up to 30 %, or that a stretch of
// answers misses by the same up to 30 %.
func noisy(r *rand.Rand, ns int64, stretch int) func() int64 {
	left, by := 0, 1.0
	return func() int64 {
		if left--; left < 0 {
			left, by = stretch-1, 0.7+0.6*r.Float64()
		}
		return int64(float64(ns) * by)
	}
}

// TestNoiseMovesNoDistance: hours of answers that miss the time by 30 % either
// way, each for itself or a second's worth together, change nothing after the
// first distance; a time that nearly doubles for good changes it once.
func TestNoiseMovesNoDistance(t *testing.T) {
	for seed := range uint64(5) {
		for _, stretch := range []int{1, 5} {
			r := rand.New(rand.NewPCG(seed, uint64(stretch)))
			for _, ns := range []int64{ms / 10, ms, 20 * ms, 250 * ms} {
				j := New(Defaults(), false)
				if n := measure(j, *hours*3600*5, noisy(r, ns, stretch)); n != 1 {
					t.Errorf("seed %d: the distance of %d us changed %d times under noise of %d answers", seed, ns/1000, n, stretch)
				}
				if n := measure(j, 10*hold, noisy(r, ns+3*margin(ns), stretch)); n != 1 {
					t.Errorf("seed %d: the distance of %d us changed %d times when it grew", seed, ns/1000, n)
				}
			}
		}
	}
}

// TestADistanceTakesItsTime: it is known after some answers, changes only if the
// time differs for long and by enough, and a peak that ends changes nothing.
func TestADistanceTakesItsTime(t *testing.T) {
	j := New(Defaults(), false)
	if measure(j, settle-1, always(10*ms)); j.Distance() != 0 {
		t.Errorf("known after %d answers", settle-1)
	}
	if measure(j, 1, always(10*ms)); j.Distance() != 10*ms {
		t.Errorf("%d after %d answers", j.Distance(), settle)
	}
	for _, c := range []struct {
		rounds int
		ns     int64
		want   int64
	}{
		{10 * hold, 12 * ms, 10 * ms}, // within the margin
		{hold / 2, 40 * ms, 10 * ms},  // not for long enough
		{hold, 10 * ms, 10 * ms},
		{hold - 1, 40 * ms, 10 * ms},
	} {
		if measure(j, c.rounds, always(c.ns)); j.Distance() != c.want {
			t.Errorf("%d rounds of %d ms: %d, want %d", c.rounds, c.ns/ms, j.Distance(), c.want)
		}
	}
	if n := measure(j, 1, always(40*ms)); n != 1 || j.Distance() < 36*ms {
		t.Errorf("%d changes, to %d", n, j.Distance())
	}
	for range 1000 { // silence is no evidence
		j.Round(Observation{Backends: Probed{Asked: targets(1), Known: 1}})
	}
	if j.Distance() < 36*ms {
		t.Errorf("%d after a silence", j.Distance())
	}
}

// TestNodesGiveADistance where there are no backends that answer, and only there.
func TestNodesGiveADistance(t *testing.T) {
	node := Probed{Asked: targets(1), Answered: []Answer{{targets(1)[0], 5 * ms}}, Known: 1}
	far := Probed{Asked: targets(1), Answered: []Answer{{targets(1)[0], 50 * ms}}, Known: 1}
	j := New(Defaults(), false)
	rounds := func(n int, o Observation) {
		for range n {
			j.Round(o)
		}
	}
	rounds(settle, Observation{Nodes: node})
	if j.Distance() != 5*ms {
		t.Errorf("by nodes: %d", j.Distance())
	}
	rounds(2*hold, Observation{Nodes: node, Backends: far})
	if j.Distance() != 50*ms {
		t.Errorf("by backends: %d", j.Distance())
	}
	rounds(2*hold, Observation{Nodes: node})
	if j.Distance() != 5*ms {
		t.Errorf("by nodes again: %d", j.Distance())
	}
}

// TestARestartKeepsTheDistance until it is measured to be another one.
func TestARestartKeepsTheDistance(t *testing.T) {
	j := New(Defaults(), false)
	j.Recall(10 * ms)
	if n := measure(j, hold-1, always(30*ms)); n != 0 || j.Distance() != 10*ms {
		t.Errorf("%d changes, to %d", n, j.Distance())
	}
	if measure(j, 1, always(30*ms)); j.Distance() != 30*ms {
		t.Errorf("%d in the end", j.Distance())
	}
}

func genDistances(t *rapid.T) map[string]int64 {
	out := map[string]int64{}
	for i := range rapid.IntRange(0, 40).Draw(t, "clusters") {
		out[fmt.Sprint("c", i)] = rapid.Int64Range(0, 400*ms).Draw(t, "ns") >> rapid.IntRange(0, 16).Draw(t, "scale")
	}
	return out
}

// TestRanks: a nearer cluster is never ranked behind a farther one; one that is
// notably farther is ranked behind, as long as there are ranks; those of one
// rank are no farther than its margin from the nearest of it; ranks have no gaps;
// unknown ones have none.
func TestRanks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		distances := genDistances(t)
		ranks := Ranks(distances)
		last := uint8(0)
		seen := map[uint8]bool{}
		for name, r := range ranks {
			last, seen[r] = max(last, r), true
			for other, s := range ranks {
				d, o := distances[name], distances[other]
				if d < o && r > s {
					t.Fatalf("%d is ranked %d, %d %d", d, r, o, s)
				}
				if o > d+margin(d) && s <= r && r < maxRanks-1 {
					t.Fatalf("%d is ranked %d, %d, which is notably farther, %d", d, r, o, s)
				}
			}
		}
		if len(seen) != int(last)+1 && len(ranks) > 0 {
			t.Fatalf("ranks have gaps: %v", ranks)
		}
		for name, d := range distances {
			if _, ranked := ranks[name]; ranked != (d > 0) {
				t.Fatalf("%d is ranked: %v", d, ranked)
			}
		}
	})
}

// TestRanksAreMonotone: a cluster that comes nearer is not ranked behind where it
// was, while the others stay where they are.
func TestRanksAreMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		distances := genDistances(t)
		known := slices.Sorted(maps.Keys(Ranks(distances)))
		if len(known) == 0 {
			return
		}
		name := rapid.SampledFrom(known).Draw(t, "who")
		before := Ranks(distances)[name]
		distances[name] = rapid.Int64Range(1, distances[name]).Draw(t, "nearer")
		if after := Ranks(distances)[name]; after > before {
			t.Fatalf("ranked %d, before %d", after, before)
		}
	})
}

// TestTimesThatGrowTogether: when every time grows by the same or by its half at
// once, under noise, and falls again, the order goes straight from what it was to
// what it then is.
func TestTimesThatGrowTogether(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 9))
		c := newCrowd(r, []int64{4 * ms, 9 * ms, 20 * ms, 45 * ms})
		c.run(200)
		was := c.order.Ranks()
		if len(was) != 4 || was["c3"] != 3 {
			t.Fatalf("ranks %v at first", was)
		}
		for _, grow := range []func(int64) int64{
			func(ns int64) int64 { return 3 * ns },
			func(ns int64) int64 { return 3*ns + 90*ms },
			func(ns int64) int64 { return ns },
		} {
			c.grow = grow
			if n := c.run(6 * hold); n > 1 {
				t.Errorf("seed %d: the order changed %d times, to %v", seed, n, c.order.Ranks())
			}
		}
		if !maps.Equal(was, c.order.Ranks()) {
			t.Errorf("seed %d: ranks went from %v to %v in the end", seed, was, c.order.Ranks())
		}
	}
}

// crowd is clusters with an order.
type crowd struct {
	judges map[string]*Judge
	times  map[string]func() int64
	grow   func(int64) int64
	order  *Order
}

func newCrowd(r *rand.Rand, times []int64) *crowd {
	c := &crowd{judges: map[string]*Judge{}, times: map[string]func() int64{}, grow: func(ns int64) int64 { return ns }, order: NewOrder(nil)}
	for i, ns := range times {
		name := fmt.Sprint("c", i)
		c.judges[name] = New(Defaults(), false)
		c.times[name] = func() int64 { return int64(float64(c.grow(ns)) * (0.8 + 0.4*r.Float64())) }
	}
	return c
}

// run runs rounds and counts the changes of the ranks.
func (c *crowd) run(rounds int) (changes int) {
	for range rounds {
		was, moving := c.order.Ranks(), false
		for name, j := range c.judges {
			measure(j, 1, c.times[name])
			c.order.Set(name, j.Distance())
			moving = moving || j.Moving()
		}
		if c.order.Round(moving) && !maps.Equal(was, c.order.Ranks()) {
			changes++
		}
	}
	return changes
}

// TestAnOrderWaitsNotForever for a distance that never comes to rest.
func TestAnOrderWaitsNotForever(t *testing.T) {
	o := NewOrder(map[string]int64{"near": ms, "far": 9 * ms})
	o.Set("far", ms/2)
	for i := range hold {
		if taken := o.Round(true); taken != (i == hold-1) {
			t.Fatalf("taken in round %d: %v", i, taken)
		}
	}
	if r := o.Ranks(); r["far"] != 0 || r["near"] != 0 {
		t.Errorf("ranks %v", r)
	}
	o.Set("near", 0)
	if !o.Round(false) || len(o.Ranks()) != 1 || o.Distance("near") != 0 || len(o.Distances()) != 1 {
		t.Errorf("ranks %v of %v", o.Ranks(), o.Distances())
	}
}

// TestOrderDoesNotFlap puts clusters at any distances under noise and counts how
// often their ranks change after the first ones: never.
func TestOrderDoesNotFlap(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 10 {
		judges, times := map[string]*Judge{}, map[string]func() int64{}
		for i := range 8 {
			name := fmt.Sprint("c", i)
			judges[name] = New(Defaults(), false)
			times[name] = noisy(r, int64(ms/4+r.IntN(40*ms)), 1+r.IntN(5))
		}
		var was map[string]uint8
		for step := range 400 {
			distances := map[string]int64{}
			for name, j := range judges {
				measure(j, settle, times[name])
				distances[name] = j.Distance()
			}
			now := Ranks(distances)
			if step > 0 && !maps.Equal(now, was) {
				t.Fatalf("ranks went from %v to %v in step %d", was, now, step)
			}
			was = now
		}
	}
}
