package agent

import (
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// spilled is what the decisions on a service with a spillover remember.
type spilled struct {
	tables  []lb.FrontendTable
	ramping bool
	at      time.Time     // of the last step, while it is ramping
	pause   time.Duration // between two steps
}

// steps is how many steps have passed. A ramp begins with the decision that wants
// it, not earlier.
func (s spilled) steps(now time.Time) uint32 {
	if s.ramping {
		return uint32(min(now.Sub(s.at)/s.pause, lb.RampSteps))
	}
	return 0
}

// remember keeps what the next decision on a service needs of this one, and has
// it taken when a ramp wants its next step.
func (c *core) remember(service lb.Service, name lb.ServiceName, tables []lb.FrontendTable) {
	wants := service.Policy.Spillover
	kept := lb.Remember(tables)
	if wants.Hysteresis == 0 && wants.Ramp == 0 || len(kept) == 0 {
		delete(c.spilled, name)
		return
	}
	was, next := c.spilled[name], spilled{tables: kept, at: time.Now(), pause: time.Duration(wants.Ramp) * time.Second / lb.RampSteps}
	next.ramping = slices.ContainsFunc(tables, func(t lb.FrontendTable) bool { return t.Ramping })
	if was.ramping {
		next.at = was.at.Add(time.Duration(service.Steps) * was.pause)
	}
	c.spilled[name] = next
	if next.ramping {
		c.awaitStep(next.at.Add(next.pause))
	}
}

// awaitStep has ramps looked at then, or earlier.
func (c *core) awaitStep(at time.Time) {
	if c.ramp == nil || at.Before(c.rampAt) {
		c.ramp, c.rampAt = time.After(time.Until(at)), at
	}
}

// stepRamps takes the steps that are due.
func (c *core) stepRamps() {
	c.ramp = nil
	now := time.Now()
	for name, s := range c.spilled {
		if !s.ramping {
			continue
		}
		if due := s.at.Add(s.pause); due.After(now) {
			c.awaitStep(due)
		} else {
			c.set(name)
		}
	}
}
