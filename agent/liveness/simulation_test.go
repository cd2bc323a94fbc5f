package liveness

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// The simulation runs a judge in simulated time, in milliseconds, over a path
// that loses each packet in either direction with a probability and stops for a
// second now and then, with TCP's repetitions as Linux makes them.

var hours = flag.Int("hours", 4, "simulated hours of loss and stalls, each with a seed of its own")

// network is what lies between the judge and its cluster.
type network struct {
	rand   *rand.Rand
	loss   float64
	oneWay int // ms
	stall  int // start of the latest stall that has begun or is next
	every  int // mean time between stalls, 0 for none
	holds  bool
	calm   int // loss and stalls are off for so long, then on for as long, and so on; 0 for always on
	cut    int // the path carries nothing between cut and mended
	mended int
}

const stallLength = 1000

// carry returns when a packet sent at a time arrives, or false. A stall drops
// what it meets or holds it until its end.
func (p *network) carry(at int) (int, bool) {
	p.advance(at)
	calm := p.calm > 0 && at/p.calm%2 == 0
	if at >= p.cut && at < p.mended || !calm && p.rand.Float64() < p.loss {
		return 0, false
	}
	if !calm && p.every > 0 && at >= p.stall && at < p.stall+stallLength {
		if !p.holds {
			return 0, false
		}
		at = p.stall + stallLength
	}
	return at + p.oneWay + p.rand.IntN(5), true
}

// advance moves on to the next stall once one is long over.
func (p *network) advance(at int) {
	for p.every > 0 && at > p.stall+5*stallLength {
		p.stall += 6*stallLength + p.rand.IntN(2*p.every)
	}
}

// exchange returns when the reply to a packet sent at a time arrives.
func (p *network) exchange(at int) (int, bool) {
	there, ok := p.carry(at)
	if !ok {
		return 0, false
	}
	return p.carry(there)
}

// probe returns when a TCP connect is answered: the first packet is repeated
// after one second, and after two nobody waits any more.
func (p *network) probe(at int) (int, bool) {
	first, ok := p.exchange(at)
	second, again := p.exchange(at + 1000)
	switch {
	case ok && (!again || first <= second):
		return first, first <= at+2000
	case again:
		return second, second <= at+2000
	}
	return 0, false
}

// deliver carries data of an open connection: repeated after 200 ms and more,
// then after twice as long each time.
func (p *network) deliver(at int) int {
	pause := 200 + 4*p.oneWay
	for {
		if arrives, ok := p.carry(at); ok {
			return arrives
		}
		at, pause = at+pause, min(2*pause, 120_000)
		if at > 1<<40 {
			return at
		}
	}
}

// run is a judge on a path.
type run struct {
	path            *network
	judge           *Judge
	backends, nodes *asker
	now             int
	check           int // when the outstanding check is answered, 0 for none
}

// asker probes one kind of target.
type asker struct {
	sample  *Sample
	answers []arrival
	asked   []netip.AddrPort
}

func newAsker(n int) *asker {
	a := &asker{sample: NewSample(3)}
	a.sample.Refill(targets(n))
	return a
}

// heard is what came until now.
func (a *asker) heard(now int) Probed {
	o := Probed{Asked: a.asked, Known: a.sample.Len()}
	a.answers = slices.DeleteFunc(a.answers, func(x arrival) bool {
		if x.at > now {
			return false
		}
		o.Answered = append(o.Answered, x.Answer)
		return true
	})
	return o
}

func (a *asker) ask(p *network, now, n int) {
	a.asked = a.sample.Next(n)
	for _, t := range a.asked {
		if at, ok := p.probe(now); ok {
			a.answers = append(a.answers, arrival{at, Answer{t, int64(at-now) * 1_000_000}})
		}
	}
}

type arrival struct {
	at int
	Answer
}

func targets(n int) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range n {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 80))
	}
	return out
}

func newRun(p *network, backends, nodes int) *run {
	return &run{path: p, judge: New(Defaults(), false), backends: newAsker(backends), nodes: newAsker(nodes)}
}

// step is one round of 200 ms, give or take a twentieth.
func (r *run) step() Decision {
	r.now += 190 + r.path.rand.IntN(21)
	d := r.judge.Round(Observation{Backends: r.backends.heard(r.now), Nodes: r.nodes.heard(r.now), Control: r.control()})
	r.backends.ask(r.path, r.now, d.Probes)
	r.nodes.ask(r.path, r.now, d.NodeProbes)
	if d.Check && r.check == 0 {
		r.check = r.path.deliver(r.path.deliver(r.now))
	}
	return d
}

func (r *run) control() Control {
	if r.check > 0 && r.check <= r.now {
		r.check = 0
	}
	if r.check > 0 {
		return ControlWaiting
	}
	return ControlUp
}

const hour = 3_600_000

func lossyPath(seed uint64, loss float64) *network {
	p := &network{rand: rand.New(rand.NewPCG(seed, 7)), loss: loss, oneWay: 1 + int(seed%50), every: 20_000, holds: seed%2 == 0, cut: hour, mended: hour}
	p.stall = p.rand.IntN(20_000)
	return p
}

// TestAnHourOfLossAndStallsKillsNobody: 30 % loss in each direction, which
// loses half of all exchanges, and a stall of a second twice a minute or more;
// less loss; and minutes of it between calm ones, in which the path earned trust.
// Clusters without backends are judged by their nodes instead.
func TestAnHourOfLossAndStallsKillsNobody(t *testing.T) {
	for row, c := range []struct {
		loss                  float64
		backends, nodes, calm int
	}{{0, 1, 0, 0}, {0.01, 3, 0, 0}, {0.05, 50, 9, 0}, {0.3, 1, 1, 0}, {0.3, 3, 0, 0}, {0.3, 50, 3, 0}, {0.3, 0, 1, 0}, {0.3, 0, 50, 0}, {0.3, 3, 0, 60_000}, {0.05, 0, 3, 60_000}} {
		var sum tally
		for seed := range uint64(*hours) {
			p := lossyPath(uint64(row)<<32|seed, c.loss)
			p.calm = c.calm
			sum.add(newRun(p, c.backends, c.nodes))
		}
		t.Logf("%2.0f%% loss each way, %2d backends, %2d nodes, calm for %2d s in turn: %d h, %d stalls: path to backends taken for failing %d times, to nodes %d times, control link for lost %d times, cluster for dead %d times",
			100*c.loss, c.backends, c.nodes, c.calm/1000, *hours, sum.stalls, sum.failing, sum.nodes, sum.lost, sum.dead)
		if sum.dead > 0 {
			t.Errorf("%d living clusters were taken for dead", sum.dead)
		}
	}
}

// TestAnHourThatKilled is one in which a living cluster was taken for dead, when a
// silence was met with four probes a round.
func TestAnHourThatKilled(t *testing.T) {
	p := lossyPath(8<<32|251, 0.3)
	p.calm = 60_000
	var sum tally
	if sum.add(newRun(p, 3, 0)); sum.dead > 0 {
		t.Error("a living cluster was taken for dead")
	}
}

// tally counts what happens in an hour.
type tally struct{ dead, failing, nodes, lost, stalls int }

func (s *tally) add(r *run) {
	var was Decision
	for stall := -1; r.now < hour; {
		d := r.step()
		s.dead += count(d.Verdict == Dead && was.Verdict != Dead)
		s.failing += count(d.Data == DataFailing && was.Data != DataFailing)
		s.nodes += count(d.Nodes == DataFailing && was.Nodes != DataFailing)
		s.lost += count(d.ControlLost && !was.ControlLost)
		s.stalls += count(r.path.stall != stall)
		stall, was = r.path.stall, d
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestDeathIsSeenInTime cuts everything after a minute on a smooth path: the
// verdict comes within two seconds, and goes two seconds after the repair.
func TestDeathIsSeenInTime(t *testing.T) {
	var detected, returned []int
	for seed := range uint64(200) {
		p := lossyPath(seed, 0)
		p.every = 0
		p.cut = 60_000 + p.rand.IntN(1000)
		p.mended = p.cut + 30_000
		r := newRun(p, 1+int(seed%5), int(seed%3))
		if seed%4 == 0 {
			r = newRun(p, 0, 1+int(seed%5))
		}
		r.until(t, p.cut+5000, Dead)
		detected = append(detected, r.now-p.cut)
		r.until(t, p.mended+5000, Alive, Suspect)
		returned = append(returned, r.now-p.mended)
	}
	slices.Sort(detected)
	slices.Sort(returned)
	t.Logf("a cut is seen after %d ms in the median and %d ms at most; the return after %d and %d ms",
		detected[100], detected[199], returned[100], returned[199])
	if detected[199] > 1950 {
		t.Errorf("a cut was seen only after %d ms", detected[199])
	}
}

// until runs until the verdict is one of those wanted.
func (r *run) until(t *testing.T, latest int, wanted ...Verdict) {
	t.Helper()
	for !slices.Contains(wanted, r.step().Verdict) {
		if r.now > latest {
			t.Fatalf("no verdict %v until %d", wanted, latest)
		}
	}
}
