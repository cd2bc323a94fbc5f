package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/dustin/go-humanize/english"
)

// brake is what the agent's clock adds to the mesh's brake on one cluster.
type brake struct {
	window *time.Timer // ends the window of withdrawals that count as one; nil without
	hold   *time.Timer // ends the holding; nil while nothing is held
	since  time.Time   // it holds
}

func (b *brake) stop() {
	for _, t := range []*time.Timer{b.window, b.hold} {
		if t != nil {
			t.Stop()
		}
	}
	*b = brake{}
}

// after runs f on the core's goroutine later, unless the core has ended.
func (c *core) after(d time.Duration, f func(*core)) *time.Timer {
	return time.AfterFunc(d, func() { _ = c.do(context.Background(), f) })
}

// followBrake keeps the timers of a cluster's brake in step with the mesh, and
// logs when it takes hold and lets go.
func (c *core) followBrake(name string) {
	now := c.mesh.Brake(name)
	l := c.links[name]
	if l == nil || !now.Window && !now.Braked && l.brake == (brake{}) {
		return
	}
	c.followWindow(name, l, now.Window)
	switch {
	case now.Braked && l.brake.hold == nil:
		l.brake.since = time.Now()
		l.brake.hold = c.after(c.cfg.WithdrawalBrakeHold, func(c *core) {
			if c.links[name] == l && l.brake.hold != nil {
				c.release(name, "the hold time is over")
			}
		})
		c.log.Warn("cluster withdrew too many backends at once; they are held", "cluster", name, "n", now.Held)
	case !now.Braked && l.brake.hold != nil:
		l.brake.hold.Stop()
		l.brake.hold = nil
		c.log.Info("nothing of the cluster is held any more", "cluster", name)
	}
}

func (c *core) followWindow(name string, l *link, open bool) {
	switch {
	case open && l.brake.window == nil:
		l.brake.window = c.after(c.cfg.WithdrawalBrakeWindow, func(c *core) {
			if c.links[name] == l && l.brake.window != nil {
				l.brake.window = nil
				c.mesh.EndWindow(name)
			}
		})
	case !open && l.brake.window != nil:
		l.brake.window.Stop()
		l.brake.window = nil
	}
}

// release lets go of what is held of a cluster and returns how much that was.
func (c *core) release(name, why string) int {
	n := c.mesh.Release(name)
	if n > 0 {
		c.log.Info("held backends are released: "+why, "cluster", name, "n", n)
	}
	c.followBrake(name)
	return n
}

// heldLines tells the operator what is held, until when, and what to do.
func (c *core) heldLines() []string {
	var lines []string
	for _, s := range c.mesh.Status() {
		if l := c.links[s.Name]; s.Held > 0 && l != nil {
			left := c.cfg.WithdrawalBrakeHold - time.Since(l.brake.since)
			lines = append(lines, fmt.Sprintf("%s withdrew more than %d%% of its backends at once: %d of them %s still in use for another %s; if they are really gone, run clustermesh release %s",
				s.Name, s.Brake, s.Held, english.PluralWord(s.Held, "is", "are"), max(left, 0).Round(time.Second), s.Name))
		}
	}
	return lines
}
