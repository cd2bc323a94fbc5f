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
	rtt, least, nodeRTT time.Duration // 0 while unknown
	changed             time.Time     // of the verdict or the data path
	nodesChanged        time.Time     // of the path to nodes
}

// noteLife takes what the lookout says of a cluster into the mesh and the log.
func (c *core) noteLife(name string, now signs) {
	l := c.link(name)
	was := l.signs
	now.changed, now.nodesChanged = was.changed, was.nodesChanged
	if now.Verdict != was.Verdict || now.Data != was.Data {
		now.changed = time.Now()
		c.wantReport()
		c.logLife(name, was.Decision, now.Decision)
	}
	if now.Nodes != was.Nodes {
		now.nodesChanged = time.Now()
		c.logNodes(name, was.Decision, now.Decision)
	}
	l.signs = now
	c.mesh.SetDead(name, now.Verdict == liveness.Dead)
}

func (c *core) logLife(name string, was, now liveness.Decision) {
	switch {
	case now.Verdict == liveness.Dead:
		c.log.Warn("cluster is dead: neither its apiserver nor its backends answer; new connections go elsewhere where there are other backends", "cluster", name, "err", blame(now))
	case was.Verdict == liveness.Dead:
		c.log.Info("cluster answers again; its backends are used as before", "cluster", name)
	case now.Data == liveness.DataFailing && was.Data != liveness.DataFailing:
		c.log.Warn("backends of the cluster do not answer probes while its apiserver does; nothing is withdrawn; check routes and firewalls to its pods", "cluster", name)
	case was.Data == liveness.DataFailing && now.Data != liveness.DataFailing:
		c.log.Info("backends of the cluster answer probes again", "cluster", name)
	}
}

func (c *core) logNodes(name string, was, now liveness.Decision) {
	switch {
	case now.Nodes == liveness.DataFailing:
		c.log.Warn("nodes of the cluster do not answer probes any more", "cluster", name)
	case was.Nodes == liveness.DataFailing:
		c.log.Info("nodes of the cluster answer probes again", "cluster", name)
	}
}

// blame says where to look for what became of a cluster whose backends do not
// answer. Nodes that answer, or do not, tell backends that are down from a
// network that is.
func blame(d liveness.Decision) string {
	switch d.Nodes {
	case liveness.DataOK:
		return "its nodes answer, so the network is up: look at its pods, and at routes and firewalls to their ranges"
	case liveness.DataFailing:
		return "its nodes do not answer either: look at the network between the clusters"
	}
	return "look at the network to its pods: routes and firewalls"
}

// lifeLines tells the operator of clusters that are dead or half dead.
func (c *core) lifeLines() []string {
	var lines []string
	for _, s := range c.mesh.Status() {
		l := c.links[s.Name]
		if l == nil {
			continue
		}
		d := l.signs.Decision
		since, nodes := time.Since(l.signs.changed).Round(time.Second), time.Since(l.signs.nodesChanged).Round(time.Second)
		switch {
		case d.Verdict == liveness.Dead && d.Data != liveness.DataFailing:
			lines = append(lines, fmt.Sprintf("%s is dead for %s: neither its apiserver nor its nodes answer, and of its backends nothing is known, so new connections go to other clusters' backends where there are any; look at the network between the clusters", s.Name, since))
		case d.Verdict == liveness.Dead:
			lines = append(lines, fmt.Sprintf("%s is dead for %s: neither its apiserver nor its backends answer, so new connections go to other clusters' backends where there are any; %s", s.Name, since, blame(d)))
		case d.Data == liveness.DataFailing:
			lines = append(lines, fmt.Sprintf("%s: none of its backends answers probes for %s, though its apiserver does; they stay in use; %s", s.Name, since, blame(d)))
		case d.Nodes == liveness.DataFailing:
			lines = append(lines, fmt.Sprintf("%s: none of its nodes answers probes for %s; no decision rests on that while backends or the apiserver answer; look at firewalls between the nodes of the clusters", s.Name, nodes))
		}
	}
	return lines
}

// reviveAll takes all clusters for alive: nobody looks who would find out.
func (c *core) reviveAll() {
	for _, s := range c.mesh.Status() {
		c.mesh.SetDead(s.Name, false)
	}
}
