package mesh

import (
	"fmt"
	"slices"
)

// The brake keeps a mistake in another cluster from emptying services here: a
// cluster whose content is complete and that withdraws more than a share of its
// backends at once has what it withdrew held, still in use, until the operator
// releases it, the cluster says it again, or the shell's patience ends. What at
// once means is the shell's to say: a window begins with the first change and
// lasts until [Mesh.EndWindow].
//
// Shares are counted net, per service, against what was there when the window
// began: a service whose backends are all replaced has lost none, and one that
// grew and shrank again has not either. Only services that the own cluster has
// count, and a window lasts over lists that begin anew: neither filler nor
// reconnecting hides a loss. Nothing is held but what was there when the window
// began, so there is room for all of it whatever came and went since; and nothing
// of a service that has as many as then, or that the own cluster has no more.
//
// What a cluster says is not ready is not withdrawn: it is believed, for it is
// how a cluster keeps traffic from pods that fail.

// withdrawn is what a part lost in a window, or while the brake holds.
type withdrawn struct {
	held  []record // sorted; none of them is said, all of them are of base
	epoch uint32   // of the window that base belongs to
	base  []record // in force when that window began, with references of its own
	lost  int      // of them, net, as the window counts it
}

// window is a stretch of time in which withdrawals add up.
type window struct {
	open     bool
	epoch    uint32
	baseline int // backends in use of the cluster when it began
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

// inUse counts the backends of a cluster in services that we have: those said,
// or those kept while its list is not complete.
func (m *Mesh) inUse(c *cluster) (n int) {
	for _, s := range m.services {
		if p := s.part(c); p == nil || !s.global() {
			continue
		} else if c.complete {
			n += len(p.said)
		} else {
			n += len(p.kept)
		}
	}
	return n
}

// hasInUse reports whether any service that we have uses backends of a cluster.
func (m *Mesh) hasInUse(c *cluster) bool {
	for _, s := range m.services {
		if p := s.part(c); p != nil && s.global() && len(p.said)+len(p.kept)+p.inForce() > 0 {
			return true
		}
	}
	return false
}

// noteWithdrawn remembers what p, a part of s, loses when it says next from now
// on.
func (m *Mesh) noteWithdrawn(s *service, p *part, next []record) {
	c := p.cluster
	if b := p.brake; b != nil && len(b.held) > 0 {
		if left := difference(b.held, next); len(left) < len(b.held) { // brought back
			m.share(left)
			m.setHeld(p, left)
		}
	}
	if c.complete && !m.expelling && s.global() && m.brakeOf(c) > 0 {
		m.noteLoss(p, p.said, next)
	}
}

// noteLoss counts what is lost if of what p had in force next is left, and
// remembers it.
func (m *Mesh) noteLoss(p *part, had, next []record) {
	c := p.cluster
	if !c.window.open {
		c.window.open, c.window.baseline = true, m.inUse(c)
	}
	b := p.ensureBrake()
	if b.epoch != c.window.epoch {
		m.share(had)
		m.drop(b.base)
		b.epoch, b.base, b.lost = c.window.epoch, had, 0
	}
	lost := max(0, len(b.base)-len(next))
	c.window.lost += lost - b.lost
	b.lost = lost
	if c.braked && lost == 0 { // what is gone has been replaced
		m.setHeld(p, nil)
		return
	}
	gone := difference(had, next)
	gone = slices.DeleteFunc(gone, func(r record) bool {
		_, old := slices.BinarySearchFunc(b.base, r, compareRecords)
		return !old
	})
	if len(gone) == 0 || c.withheld+len(gone) > 2*m.limitsOf(c).backends {
		return
	}
	all := make([]record, len(b.held)+len(gone))
	mergeTwo(all, b.held, gone)
	m.share(all)
	m.setHeld(p, all)
}

// noteList counts as lost, and remembers, what c does not say any more now that
// its list is complete, unless the operator changed what is accepted of it. What
// was lost in the window and is said again is lost no more.
func (m *Mesh) noteList(c *cluster) {
	if m.brakeOf(c) == 0 || c.kept == 0 && !c.window.open || c.ordered && !c.braked {
		return
	}
	for _, s := range m.services {
		p := s.part(c)
		if p == nil || !s.global() {
			continue
		}
		if p.counts() || len(difference(p.kept, p.said)) > 0 {
			m.noteLoss(p, p.kept, p.said)
		}
	}
}

// counts reports whether something of p changed in the open window.
func (p *part) counts() bool {
	w := &p.cluster.window
	return w.open && p.brake != nil && p.brake.epoch == w.epoch
}

// disown forgets what remote clusters lost of s if it is not ours any more. Nobody
// uses that, so it must not keep the brake on for everything else they withdraw.
func (m *Mesh) disown(s *service) {
	if s.global() {
		return
	}
	var had []*cluster
	for i := range s.parts {
		p := &s.parts[i]
		if p.brake == nil {
			continue
		}
		if p.counts() {
			p.cluster.window.lost -= p.brake.lost
		}
		m.unhold(p)
		had = append(had, p.cluster)
	}
	for _, c := range had { // not before: it may drop parts of s
		m.judge(c)
	}
}

func (p *part) ensureBrake() *withdrawn {
	if p.brake == nil {
		p.brake = &withdrawn{epoch: p.cluster.window.epoch - 1}
	}
	return p.brake
}

// setHeld replaces what is held of p by records with their references.
func (m *Mesh) setHeld(p *part, records []record) {
	b := p.ensureBrake()
	p.cluster.withheld += len(records) - len(b.held)
	m.drop(b.held)
	b.held = records
}

// unhold forgets what is held of p, and what it had when the window began.
func (m *Mesh) unhold(p *part) {
	if p.brake != nil {
		m.setHeld(p, nil)
		m.drop(p.brake.base)
		p.brake = nil
	}
}

// lostTooMuch reports whether a window's losses exceed the share. Services that
// became ours since it began are looked for only if it seems so.
func (m *Mesh) lostTooMuch(c *cluster) bool {
	w, percent := &c.window, m.brakeOf(c)
	if !w.open || !exceeds(w.lost, w.baseline, percent) {
		return false
	}
	now := 0
	for _, s := range m.services {
		switch p := s.part(c); {
		case p == nil || !s.global():
		case p.counts():
			now += len(p.brake.base)
		default:
			now += len(p.said)
		}
	}
	w.baseline = max(w.baseline, now)
	return exceeds(w.lost, w.baseline, percent)
}

// judge pulls the brake if the window's losses ask for it, and lets go when
// nothing is held any more. A service that has as many as when the window began
// lost none: beside the replacements what is gone would only fail.
func (m *Mesh) judge(c *cluster) {
	switch {
	case !c.complete:
	case c.braked:
		if c.withheld == 0 {
			m.release(c)
		}
	case m.lostTooMuch(c):
		c.braked = true
		for _, s := range m.services {
			switch p := s.part(c); {
			case p.held() == 0:
			case p.brake.lost == 0:
				m.setHeld(p, nil)
			default:
				m.touch(s)
			}
		}
	}
}

// EndWindow says that what the cluster withdrew since [ClusterStatus.Window]
// became true was not at once with what it withdraws from now on. While the brake
// holds the window goes on: what came since is not held when it goes.
func (m *Mesh) EndWindow(name string) {
	if c := m.clusters[name]; c != nil && !c.braked {
		m.release(c)
	}
}

// Release ends the hold of the brake on a cluster and returns how many backends
// leave by it, 0 if it does not hold.
//
// A cluster whose content is complete and that withdraws more than the share of
// [Policy.Brake] or [Config.Brake] of its backends in our services at once has what
// it withdrew held: it stays in use until this call, or until the cluster says it
// again. While the brake holds, whatever else the cluster withdraws of what it had
// before is held as well; what it adds or changes counts as always. Content that a
// policy or an own range does not accept is never held, and never more than the
// cluster had.
//
// A cluster that announces another id is refused under a brake, since all that is
// in use of it would go. This call lets it connect with the id that it announced
// last, once; all that is in use of it counts as leaving then. Should it come back
// with the id that it had, that is over.
func (m *Mesh) Release(name string) int {
	c := m.clusters[name]
	if c == nil {
		return 0
	}
	n := m.heldOf(c)
	c.mayMove = c.mayMove || m.holdsID(c)
	if c.braked {
		m.release(c)
	}
	return n
}

// checkMove refuses another id than c has, by which all of it that is in use
// would go, unless that was released.
func (m *Mesh) checkMove(c *cluster, id uint32) error {
	switch {
	case id == c.id:
		c.nextID, c.mayMove = 0, false
		return nil
	case c.id == 0 || c.nextID == id && c.mayMove:
		return nil
	}
	c.nextID, c.mayMove = id, false
	if !m.holdsID(c) {
		return nil
	}
	return fmt.Errorf("accept cluster %s: it announces id %d instead of %d, by which all its backends would go at once; they are held. If it changed its id, run clustermesh release %s, or put cluster-id: %d into its peer file", c.name, id, c.id, c.name, id)
}

// holdsID reports whether c is refused the id that it announced last because of
// what is in use of it.
func (m *Mesh) holdsID(c *cluster) bool {
	return c.nextID != 0 && !c.mayMove && c.policy.ID == 0 && m.brakeOf(c) > 0 && m.hasInUse(c)
}

// heldOf counts the backends that are in use of c only because of the brake.
func (m *Mesh) heldOf(c *cluster) (n int) {
	switch {
	case m.holdsID(c):
		for _, s := range m.services {
			if p := s.part(c); p != nil && s.global() {
				p.each(func(*record) { n++ })
			}
		}
	case c.braked:
		n = c.withheld
	}
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
// [ClusterStatus], but while it keeps the cluster from taking another id they
// count all that is in use of it as held; the status has an error that says so.
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
	return BrakeState{Window: c.window.open, Braked: c.braked || m.holdsID(c), Held: m.heldOf(c)}
}
