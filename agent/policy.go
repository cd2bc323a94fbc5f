package agent

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// What the core adds to the decisions on services that ask for more than an
// affinity: the clock, what a decision remembers, and a voice for mistakes.

// tables decides on a service as the maps are to hold it, or returns false if it
// is no global service of the own cluster. It changes nothing.
func (c *core) tables(name lb.ServiceName) (lb.Service, []lb.FrontendTable, bool) {
	service, ok := c.mesh.Service(name)
	if !ok {
		return service, nil, false
	}
	service.Previous, service.Steps = c.spilled[name].tables, c.spilled[name].steps(time.Now())
	return service, lb.Merge(service), true
}

// lose notes that a remote cluster is out of contact from now on, unless it is
// already.
func (c *core) lose(name string) {
	l := c.link(name)
	if l.lost.IsZero() && name != c.cfg.ClusterName {
		l.lost = time.Now()
		c.age()
	}
}

// regain notes that all a cluster says is known again.
func (c *core) regain(name string) {
	l := c.link(name)
	l.lastError = ""
	if name == c.cfg.ClusterName {
		c.hearAll()
	}
	if !l.lost.IsZero() {
		l.lost = time.Time{}
		c.age()
	}
}

// age tells the mesh for how long clusters have been out of contact, and awaits
// the next age that matters. Ages are whole seconds, so a decision changes at
// most one second late.
func (c *core) age() {
	now := time.Now()
	lost := map[string]uint32{}
	for name, l := range c.links {
		if !l.lost.IsZero() {
			lost[name] = uint32(min(now.Sub(l.lost)/time.Second, math.MaxUint32))
		}
	}
	c.mesh.SetLost(lost)
	c.aged, c.aging = now, nil
	c.awaitAge(c.mesh.Aging())
}

// awaitAge has age run when seconds have passed since it last ran, or earlier; 0
// is never.
func (c *core) awaitAge(seconds uint32) {
	at := c.aged.Add(time.Duration(seconds) * time.Second)
	if seconds > 0 && (c.aging == nil || at.Before(c.agingAt)) {
		c.aging, c.agingAt = time.After(time.Until(at)), at
	}
}

// ownLimit bounds how long remote clusters wait for the own one after a restart.
const ownLimit = 5 * time.Second

// hearAll lets the remote clusters be heard. After a restart the maps tell which
// backends there are, but not how the own cluster wants them weighed: what
// remote clusters say would be decided on without. So the own one is heard
// first, unless it cannot be.
func (c *core) hearAll() {
	select {
	case <-c.ownHeard:
	default:
		close(c.ownHeard)
	}
}

// wrongWith says what is wrong with a service's annotations.
func (c *core) wrongWith(service *lb.Service) []string {
	var out []string
	for _, w := range c.mesh.Wrong(service.Name) {
		out = append(out, w.Error())
	}
	return append(out, c.unordered(service)...)
}

// problemsOf adds what is not carried out of them now.
func (c *core) problemsOf(service *lb.Service) []string {
	out := c.wrongWith(service)
	if text := c.notEnded(service.Policy.OnWithdraw); text != "" {
		out = append(out, text)
	}
	return out
}

// nodeOnly says so if a service keeps to this node and has nothing here.
func (c *core) nodeOnly(service *lb.Service) []string {
	if !service.NodeOnly || slices.ContainsFunc(service.Backends, func(b lb.Backend) bool { return b.Here }) {
		return nil
	}
	return []string{fmt.Sprintf("its internalTrafficPolicy is Local and no backend is on node %s: connections from here to its cluster IP are refused; run a backend on each node, change the policy, or check that --node-name is the Kubernetes node's name", c.cfg.NodeName)}
}

// noteWrong logs what is newly wrong with a service's annotations.
func (c *core) noteWrong(name lb.ServiceName, service *lb.Service) {
	c.noteEnding(name, service.Policy.OnWithdraw)
	lines := c.wrongWith(service)
	for _, line := range lines {
		if !slices.Contains(c.wrong[name], line) {
			c.log.Warn("annotation of a service is not followed", "service", name.String(), "err", line)
		}
	}
	if len(lines) == 0 {
		delete(c.wrong, name)
	} else {
		c.wrong[name] = lines
	}
}

// maxWrong bounds how many services with wrong annotations status lists.
const maxWrong = 10

func (c *core) wrongLines() []string {
	var out []string
	wrong := c.withNotEnded(c.wrong)
	for i, name := range slices.SortedFunc(maps.Keys(wrong), lb.ServiceName.Compare) {
		if i == maxWrong {
			return append(out, fmt.Sprintf("%d more %s annotations that are not followed: see clustermesh services", len(wrong)-i, english.PluralWord(len(wrong)-i, "service has", "services have")))
		}
		for _, line := range wrong[name] {
			out = append(out, "service "+name.String()+": "+line)
		}
	}
	return out
}
