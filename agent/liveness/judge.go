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
	return Config{Silent: 8, RoughSilent: 18, Control: 5, Return: 5, Targets: 3, Burst: 6}
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

// Probed is what a round brought of one kind of target: those of the probes sent
// at its beginning, and the answers that came during it to whichever probe.
// Known is how many targets there are to choose from. Probes that failed for
// want of something on this machine are not among Asked.
type Probed struct {
	Asked    []netip.AddrPort
	Answered []Answer
	Known    int
}

// Observation is what a round brought: of the cluster's backends, of its nodes,
// and how the control link stands at its end. Nodes are left out by who does not
// probe them.
type Observation struct {
	Backends, Nodes Probed
	Control         Control
}

// Decision is what is thought after a round, and what the next one is to do.
type Decision struct {
	Verdict     Verdict
	Data        Data // of the path to backends
	Nodes       Data // of the path to nodes
	ControlLost bool
	// Probes is how many backends to probe, NodeProbes how many nodes, Check
	// whether to ask the control link for a sign of life.
	Probes, NodeProbes int
	Check              bool
}

// Judge follows one cluster. Make it with [New].
type Judge struct {
	cfg             Config
	backends, nodes path
	lost            bool // the control link
	owing           int  // rounds in a row that the control link was not up
	steady          int  // rounds in a row that it was
	distance        distance
	round           int
}

// New returns a judge that takes the cluster for alive or, after a restart that
// found it so, for dead.
func New(cfg Config, dead bool) *Judge {
	j := &Judge{cfg: cfg, backends: newPath(), nodes: newPath()}
	if dead {
		j.backends.data, j.lost = DataFailing, true
	}
	return j
}

// Round takes in what a round brought.
func (j *Judge) Round(o Observation) Decision {
	j.backends.hear(&j.cfg, o.Backends)
	j.nodes.hear(&j.cfg, o.Nodes)
	if p := j.measured(); p.answered {
		j.distance.hear(p.rtt.smoothed)
	}
	j.follow(o.Control)
	if !j.lost { // a dead cluster stays dead until it answers
		j.backends.abandon()
		j.nodes.abandon()
	}
	d := Decision{Verdict: j.verdict(), Data: j.backends.data, Nodes: j.nodes.data, ControlLost: j.lost, Probes: 1, NodeProbes: 1}
	if d.Verdict != Dead { // a dead cluster needs no more proof
		d.Probes, d.NodeProbes = j.burst(&j.backends), j.burst(&j.nodes)
	}
	if j.round++; j.spare() && j.round%calmNodes != 0 {
		d.NodeProbes = 0
	}
	d.Check = j.backends.silent > 0 || j.nodes.silent > 0 || j.owing > 0
	return d
}

// calmNodes is in how many rounds a node is probed while backends answer, since
// then nothing rests on nodes.
const calmNodes = 5

func (j *Judge) spare() bool {
	return j.backends.data == DataOK && j.nodes.data == DataOK && j.backends.silent == 0 && j.nodes.silent == 0
}

func (j *Judge) burst(p *path) int {
	if p.silent > 0 {
		return j.cfg.Burst
	}
	return 1
}

func (j *Judge) verdict() Verdict {
	switch failing := j.data() == DataFailing; {
	case failing && j.lost:
		return Dead
	case failing || j.lost:
		return Suspect
	}
	return Alive
}

// data is the state of the path that connections take. Nodes stand for backends
// only where no backend ever answered: nodes that answer do not bring back
// backends that ceased to.
func (j *Judge) data() Data {
	if j.backends.data == DataUnknown {
		return j.nodes.data
	}
	return j.backends.data
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

// measured is the path whose round trip time is the cluster's.
func (j *Judge) measured() *path {
	if b := &j.backends; b.rtt.smoothed == 0 || b.known == 0 && j.nodes.rtt.smoothed > 0 {
		return &j.nodes
	}
	return &j.backends
}

// RTT returns the time from a probe of a backend to its answer in nanoseconds,
// smoothed and least within the last minutes, or zeros while nothing is known.
func (j *Judge) RTT() (smoothed, least int64) { return j.backends.rtt.smoothed, j.backends.rtt.least() }

// NodeRTT returns the smoothed time of nodes.
func (j *Judge) NodeRTT() (smoothed int64) { return j.nodes.rtt.smoothed }

// Distance returns the damped round trip time in nanoseconds, 0 while nothing
// is known: what the order of clusters is made of, see [Ranks]. It is that to
// backends or, where there are none that answered, to nodes. It changes only
// after the smoothed time has differed from it for long, by a good part of it.
// A silent cluster keeps its distance.
func (j *Judge) Distance() int64 { return j.distance.value }

// Moving reports whether times differ notably from the distance, so that it may
// be about to change.
func (j *Judge) Moving() bool { return j.distance.off > 0 }

// Recall gives the judge the distance that a former one had come to, so that a
// restart changes no order.
func (j *Judge) Recall(distance int64) { j.distance.value = max(distance, 0) }
