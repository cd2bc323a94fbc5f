package mesh

import "slices"

// The brake keeps a mistake in another cluster from emptying services here: a
// cluster whose content is complete and that withdraws more than a share of its
// backends at once has what it withdrew held, still in use, until the operator
// releases it, the cluster says it again, or the shell's patience ends. What at
// once means is the shell's to say: a window begins with the first change and
// lasts until [Mesh.EndWindow].
//
// Shares are counted net, per service, against what was there when the window
// began: a service whose backends are all replaced has lost none, and one that
// grew and shrank again has not either.

// withdrawn is what a part lost in a window, or while the brake holds.
type withdrawn struct {
	held  []record // sorted; none of them is said
	epoch uint32   // of the window that base belongs to
	base  int      // backends said when that window began
}

// window is a stretch of time in which withdrawals add up.
type window struct {
	open     bool
	epoch    uint32
	baseline int // backends of the cluster when it began
	lost     int // of them, net per service
}

func (w *window) close() { *w = window{epoch: w.epoch + 1} }

// brakeOf is the share in percent that c may withdraw at once, 0 for any.
func (m *Mesh) brakeOf(c *cluster) int {
	switch {
	case c.local || c.policy.Brake < 0:
		return 0
	case c.policy.Brake > 0:
		return c.policy.Brake
	}
	return m.cfg.Brake
}

func exceeds(lost, baseline, percent int) bool { return lost*100 > percent*baseline }

// noteWithdrawn remembers what p loses when it says next from now on.
func (m *Mesh) noteWithdrawn(p *part, next []record) {
	c := p.cluster
	if b := p.brake; b != nil && len(b.held) > 0 {
		if left := difference(b.held, next); len(left) < len(b.held) { // brought back
			m.share(left)
			m.setHeld(p, left)
		}
	}
	if !c.complete || m.expelling || m.brakeOf(c) == 0 {
		return
	}
	if !c.window.open {
		c.window.open, c.window.baseline = true, c.backends
	}
	if p.brake == nil {
		p.brake = &withdrawn{epoch: c.window.epoch - 1}
	}
	b := p.brake
	if b.epoch != c.window.epoch {
		b.epoch, b.base = c.window.epoch, len(p.said)
	}
	c.window.lost += max(0, b.base-len(next)) - max(0, b.base-len(p.said))
	gone := difference(p.said, next)
	if len(gone) == 0 || c.withheld+len(gone) > m.limitsOf(c).backends {
		return
	}
	all := make([]record, len(b.held)+len(gone))
	mergeTwo(all, b.held, gone)
	m.share(all)
	m.setHeld(p, all)
}

// setHeld replaces what is held of p by records with their references.
func (m *Mesh) setHeld(p *part, records []record) {
	if p.brake == nil {
		p.brake = &withdrawn{epoch: p.cluster.window.epoch - 1}
	}
	p.cluster.withheld += len(records) - len(p.brake.held)
	m.drop(p.brake.held)
	p.brake.held = records
}

// unhold forgets what is held of p.
func (m *Mesh) unhold(p *part) {
	if p.brake != nil {
		m.setHeld(p, nil)
		p.brake = nil
	}
}

// judge pulls the brake if the window's losses ask for it, and lets go when
// nothing is held any more.
func (m *Mesh) judge(c *cluster) {
	switch {
	case !c.complete:
	case c.braked:
		c.braked = c.withheld > 0
	case c.window.open && exceeds(c.window.lost, c.window.baseline, m.brakeOf(c)):
		c.braked = true
		for _, s := range m.services {
			if p := s.part(c); p.held() > 0 {
				m.touch(s)
			}
		}
	}
}

// brakesSync reports whether what c no longer says, now that its list is
// complete, is to be held instead of dropped.
func (m *Mesh) brakesSync(c *cluster) bool {
	percent := m.brakeOf(c)
	if percent == 0 || c.kept == 0 || c.braked || c.ordered {
		return c.braked
	}
	baseline, lost := 0, 0
	for _, s := range m.services {
		if p := s.part(c); p != nil && p.kept != nil {
			baseline += len(p.kept)
			lost += max(0, len(p.kept)-len(p.said))
		}
	}
	c.braked = exceeds(lost, baseline, percent)
	return c.braked
}

// EndWindow says that what the cluster withdrew since [ClusterStatus.Window]
// became true was not at once with what it withdraws from now on.
func (m *Mesh) EndWindow(name string) {
	c := m.clusters[name]
	if c == nil {
		return
	}
	c.window.close()
	if !c.braked {
		m.release(c)
	}
}

// Release ends the hold of the brake on a cluster and returns how many backends
// leave by it, 0 if it does not hold.
//
// A cluster whose content is complete and that withdraws more than the share of
// [Policy.Brake] or [Config.Brake] of its backends at once has what it withdrew
// held: it stays in use until this call, or until the cluster says it again.
// While the brake holds, whatever else the cluster withdraws is held as well;
// what it adds or changes counts as always. Content that a policy or an own
// range does not accept is never held, and never more than is kept of a cluster.
func (m *Mesh) Release(name string) int {
	c := m.clusters[name]
	if c == nil || !c.braked {
		return 0
	}
	n := c.withheld
	m.release(c)
	return n
}

func (m *Mesh) release(c *cluster) {
	braked := c.braked
	c.braked = false
	c.window.close()
	for _, s := range m.services {
		p := s.part(c)
		if p == nil || p.brake == nil {
			continue
		}
		if braked && p.held() > 0 {
			m.touch(s)
		}
		m.unhold(p)
		m.tidy(s)
	}
}

// held counts the records that p's cluster withdrew and that are remembered.
func (p *part) held() int {
	if p == nil || p.brake == nil {
		return 0
	}
	return len(p.brake.held)
}

// difference returns the records of a, sorted, whose address, port and protocol
// are not in b, sorted too.
func difference(a, b []record) []record {
	var out []record
	for i := range a {
		if _, there := slices.BinarySearchFunc(b, a[i], compareRecords); !there {
			out = append(out, a[i])
		}
	}
	return out
}

// BrakeState is how far the brake on a cluster is. The fields are those of
// [ClusterStatus].
type BrakeState struct {
	Window, Braked bool
	Held           int
}

// Brake returns the state of the brake on a cluster.
func (m *Mesh) Brake(name string) BrakeState {
	c := m.clusters[name]
	if c == nil {
		return BrakeState{}
	}
	s := BrakeState{Window: c.window.open, Braked: c.braked}
	if c.braked {
		s.Held = c.withheld
	}
	return s
}
