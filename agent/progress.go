package agent

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// progress is how far this node's maps are in a cluster's history, which the
// cluster's markers tell. A marker is acknowledged once the services are applied
// up to its revision and the maps were brought up to date after that. The cluster
// must have said up to there that its services are where they are read: else
// nothing of them would look like all of them.
type progress struct {
	through int64    // revision up to which the services are applied, in this connection
	said    int64    // revision up to which the cluster's announcement is known
	pending []passed // markers seen and not acknowledged, by revision
	marker  schema.Marker
	lags    lags
}

// passed is a marker at its revision.
type passed struct {
	schema.Marker
	revision int64
}

// maxPending bounds the markers that wait; a cluster that writes more while its
// services are behind has some of the newer ones passed over.
const maxPending = 64

// restart forgets what belongs to one connection: revisions are of one life of
// the store.
func (p *progress) restart() { p.through, p.said, p.pending = 0, 0, p.pending[:0] }

// known is the revision up to which everything is known and applied.
func (p *progress) known() int64 { return min(p.through, p.said) }

// see takes a marker in.
func (p *progress) see(m schema.Marker, revision int64) {
	if n := len(p.pending); n == maxPending {
		p.pending = p.pending[:n-1]
	}
	p.pending = append(p.pending, passed{m, revision})
}

// reach takes the newest marker that the services have reached.
func (p *progress) reach() (m schema.Marker, ok bool) {
	n := 0
	for n < len(p.pending) && p.pending[n].revision <= p.known() {
		n++
	}
	if n == 0 {
		return m, false
	}
	m = p.pending[n-1].Marker
	p.pending = slices.Delete(p.pending, 0, n)
	return m, true
}

// due reports whether reach would take one.
func (p *progress) due() bool { return len(p.pending) > 0 && p.pending[0].revision <= p.known() }

// lags are the last times from a stamp to its acknowledgement. They are
// differences of two clocks, and so may be negative.
type lags struct {
	last [256]time.Duration
	n    int // added so far
}

func (l *lags) add(d time.Duration) {
	l.last[l.n%len(l.last)] = d
	l.n++
}

func (l *lags) count() int { return min(l.n, len(l.last)) }

// quantiles returns the median and the 99th percentile, 0 without samples.
func (l *lags) quantiles() (p50, p99 time.Duration) {
	n := l.count()
	if n == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(l.last[:n]))
	return sorted[(n-1)/2], sorted[(n-1)*99/100]
}

// The functions below run on the core's goroutine.

// marked takes a cluster's marker.
func (c *core) marked(name string, m schema.Marker, revision int64) {
	c.link(name).progress.see(m, revision)
}

// announced takes in that a cluster's announcement has not changed up to a
// revision, in this connection.
func (c *core) announced(name string, revision int64) {
	p := &c.link(name).progress
	p.said = max(p.said, revision)
}

// acknowledge notes which markers the maps have reached. It is called right after
// the maps were brought up to date.
func (c *core) acknowledge() {
	for name, l := range c.links {
		if !l.progress.due() || c.troubled(name) {
			continue
		}
		if m, ok := l.progress.reach(); ok {
			c.acknowledged(name, l, m)
		}
	}
}

func (c *core) acknowledged(name string, l *link, m schema.Marker) {
	lag := time.Since(time.UnixMicro(m.Micros))
	l.progress.marker = m
	l.progress.lags.add(lag)
	if c.noted != nil {
		c.noted(c, name, m)
	}
	c.metrics.lag.WithLabelValues(name).Observe(lag.Seconds())
	if m.Asked {
		c.wantReport()
	}
	c.wakeWaiters()
}

// troubled reports whether the maps lack something that a cluster says: a service
// to which it adds does not fit. Of one that nobody adds to any more it is not
// known whose it was.
func (c *core) troubled(name string) bool {
	for service := range c.failed {
		shares := c.mesh.Shares(service)
		if len(shares) == 0 {
			return true
		}
		for _, s := range shares {
			if s.Cluster == name || name == c.cfg.ClusterName {
				return true
			}
		}
	}
	return false
}

// clockSlack is how far ahead another clock may be before status speaks of it.
const clockSlack = 20 * time.Millisecond

// clockLines tells of clusters whose clocks are ahead of ours: what they said
// seems to have been applied before they said it.
func (c *core) clockLines() (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(c.links)) {
		if p50, _ := c.links[name].progress.lags.quantiles(); p50 < -clockSlack {
			lines = append(lines, fmt.Sprintf("%s: its clock is ahead of this node's by %s or more, and age and lag are wrong by that; check time synchronization on both", name, -p50.Round(time.Millisecond)))
		}
	}
	return lines
}

// wakeWaiters lets those look again who wait for this node.
func (c *core) wakeWaiters() {
	close(c.moved)
	c.moved = make(chan struct{})
}

// wantReport has the own cluster's apiserver told soon how this node stands.
func (c *core) wantReport() {
	select {
	case c.reportWanted <- struct{}{}:
	default:
	}
}
