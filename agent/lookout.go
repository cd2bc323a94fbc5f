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
	judge  *liveness.Judge
	sample *liveness.Sample
	asked  []netip.AddrPort // since the last round
	heard  []liveness.Answer
	refill int // rounds until the targets are looked up again
	seen   bool
}

type result struct {
	cluster string
	target  netip.AddrPort
	rtt     time.Duration
	outcome probe.Outcome
}

const (
	// maxProbes bounds the sockets of probes that are under way at a time.
	maxProbes = 1024
	// sampleSize is how many targets of a cluster are probed in calm, and
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
		Help: "Probes of remote backends, by result; untold ones could not be sent by this node.",
	}, []string{"result"})
	for _, o := range []probe.Outcome{probe.Answered, probe.Failed, probe.Untold} {
		l.probes.WithLabelValues(o.String())
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
			w = &watched{judge: liveness.New(liveness.Defaults(), s.Dead), sample: liveness.NewSample(sampleSize)}
			l.watched[s.Name] = w
		}
		w.seen = true
		l.judge(c, w, s)
	}
	for name, w := range l.watched {
		if !w.seen {
			delete(l.watched, name)
		}
		w.seen = false
	}
}

// collect hands the results that came in to their clusters.
func (l *lookout) collect() {
	for {
		select {
		case r := <-l.results:
			l.flying--
			l.probes.WithLabelValues(r.outcome.String()).Inc()
			if w := l.watched[r.cluster]; w != nil {
				w.take(r)
			}
		default:
			return
		}
	}
}

func (w *watched) take(r result) {
	switch r.outcome {
	case probe.Answered:
		w.heard = append(w.heard, liveness.Answer{Target: r.target, RTT: int64(r.rtt)})
	case probe.Failed:
		w.sample.Failed(r.target)
	case probe.Untold:
		for i, t := range w.asked {
			if t == r.target {
				w.asked = append(w.asked[:i], w.asked[i+1:]...)
				break
			}
		}
	}
}

func (l *lookout) judge(c *core, w *watched, s mesh.ClusterStatus) {
	link := c.links[s.Name]
	d := w.judge.Round(liveness.Observation{
		Asked: w.asked, Answered: w.heard, Known: w.sample.Len(), Control: link.checks.control(s.State),
	})
	w.asked, w.heard = w.asked[:0], w.heard[:0]
	if d.Check {
		link.checks.request()
	}
	if w.refill--; w.refill <= 0 {
		w.sample.Refill(c.mesh.Sample(s.Name, poolSize))
		w.refill = refillRounds
		if w.sample.Len() == 0 {
			w.refill = refillSoon
		}
	}
	for _, t := range w.sample.Next(d.Probes) {
		l.send(s.Name, w, t)
	}
	smoothed, least := w.judge.RTT()
	c.noteLife(s.Name, signs{Decision: d, rtt: time.Duration(smoothed), least: time.Duration(least)})
}

func (l *lookout) send(cluster string, w *watched, target netip.AddrPort) {
	if l.flying >= maxProbes {
		return
	}
	l.flying++
	w.asked = append(w.asked, target)
	go func() {
		rtt, outcome := l.probe(l.ctx, target)
		l.results <- result{cluster, target, rtt, outcome} // never waits: there is room for all
	}()
}
