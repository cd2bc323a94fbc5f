package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/clustermesh/clustermesh/agent/liveness"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// checks asks a cluster's connection for signs of life, at once and not only
// when its keepalive would. It is shared by the core, which asks, and the
// connection of the moment, which answers.
type checks struct {
	wake chan struct{}
	owed atomic.Bool // asked and not answered
}

func newChecks() *checks { return &checks{wake: make(chan struct{}, 1)} }

// request asks, unless an answer is owed already.
func (k *checks) request() {
	if k.owed.CompareAndSwap(false, true) {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// control is how the control link stands in a state of its cluster.
func (k *checks) control(s mesh.State) liveness.Control {
	switch {
	case s != mesh.Synced && s != mesh.Syncing:
		return liveness.ControlDown
	case k.owed.Load():
		return liveness.ControlWaiting
	}
	return liveness.ControlUp
}

const (
	// checkLimit is how long one request for a sign of life may take, and
	// checkPause what lies between two.
	checkLimit = 5 * time.Second
	checkPause = 200 * time.Millisecond
)

// answerChecks gives the signs of life of one open connection. What it cannot
// give it leaves owed: that a connection is over is for others to find out.
func (r *remote) answerChecks(ctx context.Context, conn connection) error {
	r.checks.owed.Store(false) // it has just been opened
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.checks.wake:
		}
		for r.checks.owed.Load() {
			if signOfLife(ctx, conn) == nil {
				r.checks.owed.Store(false)
				break
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(checkPause):
			}
		}
	}
}

func signOfLife(ctx context.Context, conn connection) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	_, err := conn.Range(ctx, schema.HeartbeatKey, "", 1, 0)
	return err
}

// signs is what the lookout last said of a cluster.
type signs struct {
	liveness.Decision
	rtt, least time.Duration // 0 while unknown
	changed    time.Time     // of the verdict or the data path
}

// noteLife takes what the lookout says of a cluster into the mesh and the log.
func (c *core) noteLife(name string, now signs) {
	l := c.link(name)
	was := l.signs
	now.changed = was.changed
	if now.Verdict != was.Verdict || now.Data != was.Data {
		now.changed = time.Now()
		c.logLife(name, was.Decision, now.Decision)
	}
	l.signs = now
	c.mesh.SetDead(name, now.Verdict == liveness.Dead)
}

func (c *core) logLife(name string, was, now liveness.Decision) {
	switch {
	case now.Verdict == liveness.Dead:
		c.log.Warn("cluster is dead: neither its apiserver nor its backends answer; new connections go elsewhere where there are other backends; repair the network to it", "cluster", name)
	case was.Verdict == liveness.Dead:
		c.log.Info("cluster answers again; its backends are used as before", "cluster", name)
	case now.Data == liveness.DataFailing && was.Data != liveness.DataFailing:
		c.log.Warn("backends of the cluster do not answer probes while its apiserver does; nothing is withdrawn; check routes and firewalls to its pods", "cluster", name)
	case was.Data == liveness.DataFailing && now.Data != liveness.DataFailing:
		c.log.Info("backends of the cluster answer probes again", "cluster", name)
	}
}

// lifeLines tells the operator of clusters that are dead or half dead.
func (c *core) lifeLines() []string {
	var lines []string
	for _, s := range c.mesh.Status() {
		l := c.links[s.Name]
		if l == nil || l.signs.Data != liveness.DataFailing {
			continue
		}
		since := time.Since(l.signs.changed).Round(time.Second)
		if l.signs.Verdict == liveness.Dead {
			lines = append(lines, fmt.Sprintf("%s is dead for %s: neither its apiserver nor its backends answer, so new connections go to other clusters' backends where there are any; repair the network to it", s.Name, since))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s: none of its backends answers probes for %s, though its apiserver does; they stay in use; check routes and firewalls from this node to its pods", s.Name, since))
	}
	return lines
}

// reviveAll takes all clusters for alive: nobody looks who would find out.
func (c *core) reviveAll() {
	for _, s := range c.mesh.Status() {
		c.mesh.SetDead(s.Name, false)
	}
}
