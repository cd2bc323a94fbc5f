package liveness

import "net/netip"

// Config sets how much silence means what, in rounds. The zero value is not
// usable; take [Defaults].
type Config struct {
	// Silent is for how many rounds in a row no probe may be answered before the
	// data path counts as failing, if it was smooth before.
	Silent int
	// RoughSilent takes its place if answers went missing lately.
	RoughSilent int
	// Control is for how many rounds in a row the control link may be down, or
	// owe an answer, before it counts as lost.
	Control int
	// Return is for how many rounds in a row either must be good to count as
	// good again.
	Return int
	// Targets is how many different targets must have been asked in vain; all
	// of them if there are fewer.
	Targets int
	// Burst is how many probes a round sends while answers are missing; it
	// sends one otherwise.
	Burst int
}

// Defaults suit rounds of 200 ms: a cluster that falls silent on a smooth path
// is dead after 1.6 to 1.8 s, one on a rough path after 3.6 s, and it is back
// a second after its first answer. The simulation in this package's tests shows
// what loss and stalls they endure.
func Defaults() Config {
	return Config{Silent: 8, RoughSilent: 18, Control: 5, Return: 5, Targets: 3, Burst: 4}
}

// Verdict is what is thought of a cluster.
type Verdict uint8

// Alive lacks nothing. Suspect lacks the control link or the data path, which
// changes nothing but what status says. Dead lacks both.
const (
	Alive Verdict = iota
	Suspect
	Dead
)

// String is the verdict as logs spell it.
func (v Verdict) String() string { return [...]string{"alive", "suspect", "dead"}[v] }

// Data is the state of the data path.
type Data uint8

// DataUnknown is the data path that never answered: no target can be probed, or
// something on the way refuses probes. It never counts as failing.
const (
	DataUnknown Data = iota
	DataOK
	DataFailing
)

// String is the state as status output spells it.
func (d Data) String() string { return [...]string{"unknown", "ok", "failing"}[d] }

// Control is how the control link stands at the end of a round.
type Control uint8

// ControlUp is a connection that owes nothing. ControlWaiting is one that was
// asked for a sign of life before the round and has given none. ControlDown is
// none.
const (
	ControlUp Control = iota
	ControlWaiting
	ControlDown
)

// Answer is a probe that was answered, by acceptance or refusal alike. RTT is
// in nanoseconds.
type Answer struct {
	Target netip.AddrPort
	RTT    int64
}

// Observation is what a round brought: the targets of the probes sent at its
// beginning, the answers that came during it to whichever probe, and how the
// control link stands at its end. Known is how many targets there are to
// choose from. Probes that failed for want of something on this machine are not
// among Asked.
type Observation struct {
	Asked    []netip.AddrPort
	Answered []Answer
	Control  Control
	Known    int
}

// Decision is what is thought after a round, and what the next one is to do.
type Decision struct {
	Verdict     Verdict
	Data        Data
	ControlLost bool
	// Probes is how many to send, Check whether to ask the control link for a
	// sign of life.
	Probes int
	Check  bool
}

// Judge follows one cluster. Make it with [New].
type Judge struct {
	cfg    Config
	data   Data
	lost   bool                        // the control link
	silent int                         // rounds in a row without an answer
	asked  map[netip.AddrPort]struct{} // during the silence; no more than needed
	good   int                         // rounds in a row with an answer
	rough  int                         // share of rounds without an answer of late, of whole
	owing  int                         // rounds in a row that the control link was not up
	steady int                         // rounds in a row that it was
	rtt    rtt
}

// New returns a judge that takes the cluster for alive or, after a restart that
// found it so, for dead.
func New(cfg Config, dead bool) *Judge {
	j := &Judge{cfg: cfg, asked: map[netip.AddrPort]struct{}{}, rough: roughStart}
	if dead {
		j.data, j.lost = DataFailing, true
	}
	return j
}

// Round takes in what a round brought.
func (j *Judge) Round(o Observation) Decision {
	j.hear(o)
	j.follow(o.Control)
	d := Decision{Verdict: j.verdict(), Data: j.data, ControlLost: j.lost, Probes: 1}
	if j.silent > 0 && d.Verdict != Dead { // a dead cluster needs no more proof
		d.Probes = j.cfg.Burst
	}
	d.Check = j.silent > 0 || j.owing > 0
	return d
}

func (j *Judge) verdict() Verdict {
	switch {
	case j.data == DataFailing && j.lost:
		return Dead
	case j.data == DataFailing || j.lost:
		return Suspect
	}
	return Alive
}

// hear follows the data path.
func (j *Judge) hear(o Observation) {
	switch {
	case len(o.Answered) > 0:
		j.smooth()
		j.silent = 0
		clear(j.asked)
		j.good++
	case len(o.Asked) > 0:
		j.good = 0
		j.silent++
		j.note(o.Asked)
	}
	for _, a := range o.Answered {
		j.rtt.add(a.RTT)
	}
	switch {
	case j.good >= j.cfg.Return:
		j.data = DataOK
	case j.data == DataOK && j.silent >= j.patience() && len(j.asked) >= min(j.cfg.Targets, o.Known):
		j.data = DataFailing
	}
}

// note remembers which targets did not answer.
func (j *Judge) note(asked []netip.AddrPort) {
	for _, a := range asked {
		if len(j.asked) < j.cfg.Targets {
			j.asked[a] = struct{}{}
		}
	}
}

// follow follows the control link.
func (j *Judge) follow(c Control) {
	if c == ControlUp {
		j.owing = 0
		j.steady++
	} else {
		j.owing++
		j.steady = 0
	}
	switch {
	case j.owing >= j.cfg.Control:
		j.lost = true
	case j.steady >= j.cfg.Return:
		j.lost = false
	}
}

// How rough a path is, is a moving mean over about memory rounds in parts of
// whole. One round without an answer makes it rough for some seconds, a stall
// for half a minute. It starts as rough: a path has to earn trust.
const (
	whole      = 1 << 16
	memory     = 64
	roughLimit = whole / 100
	roughStart = 3 * roughLimit / 2
)

// smooth counts the rounds since the last answer. It waits for an answer to do
// so: a silence that has not ended must not make itself count for less.
func (j *Judge) smooth() {
	for range min(j.silent, 4*memory) {
		j.rough += (whole - j.rough) / memory
	}
	j.rough -= j.rough / memory
}

func (j *Judge) patience() int {
	if j.rough > roughLimit {
		return j.cfg.RoughSilent
	}
	return j.cfg.Silent
}

// RTT returns the time from a probe to its answer in nanoseconds, smoothed and
// least within the last minutes, or zeros while nothing is known. It is what a
// rule that prefers near clusters can compare.
func (j *Judge) RTT() (smoothed, least int64) { return j.rtt.smoothed, j.rtt.least() }
