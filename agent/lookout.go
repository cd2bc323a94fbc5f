package agent

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/agent/liveness"
	"github.com/clustermesh/clustermesh/agent/liveness/probe"
	"github.com/clustermesh/clustermesh/agent/mesh"
)

// prober asks a target whether it can be reached.
type prober func(ctx context.Context, target netip.AddrPort) (rtt time.Duration, outcome probe.Outcome)

// lookout probes the remote clusters and has each judged once a round. Its
// round runs on the core's goroutine; the probes have goroutines of their own.
type lookout struct {
	ctx     context.Context // of the probes
	probe   prober
	watched map[string]*watched
	results chan result // as many as may be under way fit in
	flying  int
	probes  *prometheus.CounterVec
}

// watched is one remote cluster as the lookout sees it.
type watched struct {
	judge *liveness.Judge
	kinds [kinds]targets
	seen  bool
}

// targets are those of one kind: of which a few are probed in turn.
type targets struct {
	sample *liveness.Sample
	asked  []netip.AddrPort // since the last round
	heard  []liveness.Answer
	refill int // rounds until they are looked up again
}

// kind is what a probe is sent to.
type kind uint8

const (
	backend kind = iota
	node
	kinds
)

// String is the kind as metrics spell it.
func (k kind) String() string { return [...]string{"backend", "node"}[k] }

type result struct {
	cluster string
	kind    kind
	target  netip.AddrPort
	rtt     time.Duration
	outcome probe.Outcome
}

const (
	// maxProbes bounds the sockets of probes that are under way at a time.
	maxProbes = 1024
	// sampleSize is how many targets of a cluster and kind are probed in calm, and
	// poolSize how many more can take their places.
	sampleSize, poolSize = 3, 64
	// refillRounds is how often a cluster's targets are looked up; while there
	// are none that is done each refillSoon rounds.
	refillRounds, refillSoon = 50, 5
)

func newLookout(ctx context.Context, p prober, registry prometheus.Registerer) *lookout {
	l := &lookout{ctx: ctx, probe: p, watched: map[string]*watched{}, results: make(chan result, maxProbes)}
	l.probes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "clustermesh_agent_probes_total",
		Help: "Probes of remote clusters, by result and kind of target; untold ones could not be sent by this node.",
	}, []string{"result", "target"})
	for _, o := range []probe.Outcome{probe.Answered, probe.Failed, probe.Untold} {
		for k := range kinds {
			l.probes.WithLabelValues(o.String(), k.String())
		}
	}
	registry.MustRegister(l.probes)
	return l
}

// lookOut runs rounds until ctx ends. Their pace varies a little, so that nodes
// do not probe in step.
func (a *Agent) lookOut(ctx context.Context) error {
	if !a.cfg.Probe {
		return nil
	}
	l := newLookout(ctx, a.probe, a.cfg.Registry)
	pause := a.cfg.ProbeInterval
	timer := time.NewTimer(rand.N(pause))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			timer.Reset(pause - pause/20 + rand.N(pause/10+1))
			_ = a.core.do(ctx, l.round)
		}
	}
}

// round hears the answers, has every remote cluster judged, and sends the next
// probes.
func (l *lookout) round(c *core) {
	l.collect()
	for _, s := range c.mesh.Status() {
		if s.Local || !s.Configured || c.links[s.Name] == nil {
			continue
		}
		w := l.watched[s.Name]
		if w == nil {
			w = newWatched(s.Dead, c.order.Distance(s.Name))
			l.watched[s.Name] = w
		}
		w.seen = true
		l.judge(c, w, s)
	}
	moving := false
	for name, w := range l.watched {
		if !w.seen {
			delete(l.watched, name)
		}
		moving = moving || w.seen && w.judge.Moving()
		w.seen = false
	}
	c.reorder(moving)
}

func newWatched(dead bool, distance int64) *watched {
	w := &watched{judge: liveness.New(liveness.Defaults(), dead)}
	w.judge.Recall(distance)
	for k := range w.kinds {
		w.kinds[k].sample = liveness.NewSample(sampleSize)
	}
	return w
}

// collect hands the results that came in to their clusters.
func (l *lookout) collect() {
	for {
		select {
		case r := <-l.results:
			l.flying--
			l.probes.WithLabelValues(r.outcome.String(), r.kind.String()).Inc()
			if w := l.watched[r.cluster]; w != nil {
				w.kinds[r.kind].take(r)
			}
		default:
			return
		}
	}
}

func (t *targets) take(r result) {
	switch r.outcome {
	case probe.Answered:
		t.heard = append(t.heard, liveness.Answer{Target: r.target, RTT: int64(r.rtt)})
	case probe.Failed:
		t.sample.Failed(r.target)
	case probe.Untold:
		for i, a := range t.asked {
			if a == r.target {
				t.asked = append(t.asked[:i], t.asked[i+1:]...)
				break
			}
		}
	}
}

func (t *targets) probed() liveness.Probed {
	return liveness.Probed{Asked: t.asked, Answered: t.heard, Known: t.sample.Len()}
}

func (l *lookout) judge(c *core, w *watched, s mesh.ClusterStatus) {
	link := c.links[s.Name]
	d := w.judge.Round(liveness.Observation{
		Backends: w.kinds[backend].probed(), Nodes: w.kinds[node].probed(), Control: link.checks.control(s.State),
	})
	for k := range w.kinds {
		t := &w.kinds[k]
		t.asked, t.heard = t.asked[:0], t.heard[:0]
	}
	if d.Check {
		link.checks.request()
	}
	for k, n := range [kinds]int{backend: d.Probes, node: d.NodeProbes} {
		w.kinds[k].lookUp(c, s.Name, kind(k))
		l.send(s.Name, &w.kinds[k], kind(k), n)
	}
	c.order.Set(s.Name, w.judge.Distance())
	smoothed, least := w.judge.RTT()
	c.noteLife(s.Name, signs{Decision: d, rtt: time.Duration(smoothed), least: time.Duration(least), nodeRTT: time.Duration(w.judge.NodeRTT())})
}

// lookUp renews the targets now and then.
func (t *targets) lookUp(c *core, cluster string, k kind) {
	if t.refill--; t.refill > 0 {
		return
	}
	switch t.refill = refillRounds; {
	case k == backend:
		t.sample.Refill(c.mesh.Sample(cluster, poolSize))
	case c.cfg.ProbeNodePort != 0:
		t.sample.Refill(c.nodeTargets(cluster, poolSize))
	}
	if t.sample.Len() == 0 {
		t.refill = refillSoon
	}
}

// send probes n targets, if there are any.
func (l *lookout) send(cluster string, t *targets, k kind, n int) {
	for _, target := range t.sample.Next(n) {
		if l.flying >= maxProbes {
			return
		}
		l.flying++
		t.asked = append(t.asked, target)
		go func() {
			rtt, outcome := l.probe(l.ctx, target)
			l.results <- result{cluster, k, target, rtt, outcome} // never waits: there is room for all
		}()
	}
}
