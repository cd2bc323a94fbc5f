package mesh

import "fmt"

// Audit recounts what is counted as it changes: references in the pool, the
// numbers of the clusters, and the lists of slices.
func (m *Mesh) Audit() error {
	a := audit{m: m, refs: map[uint32]uint32{}, counts: map[*cluster]tally{}, listed: map[*slice]bool{}}
	for _, s := range m.services {
		for i := range s.parts {
			if err := a.part(s, &s.parts[i]); err != nil {
				return err
			}
		}
	}
	if err := m.auditSpecial(); err != nil {
		return err
	}
	for _, c := range m.clusters {
		if err := a.cluster(c); err != nil {
			return err
		}
	}
	for n, e := range m.words.entries {
		if e.refs != a.refs[uint32(n)] {
			return fmt.Errorf("%q counts %d references, %d are there", e.list, e.refs, a.refs[uint32(n)])
		}
	}
	if len(m.unsettled) > 0 || len(a.listed) > 0 {
		return fmt.Errorf("%d services are not settled, %d slices have no key", len(m.unsettled), len(a.listed))
	}
	return nil
}

// auditSpecial compares the index of services with terms.
func (m *Mesh) auditSpecial() error {
	n := 0
	for name, s := range m.services {
		if _, listed := m.special[s]; listed != (s.terms() != nil) {
			return fmt.Errorf("%s is listed as special: %v", name, listed)
		}
		if s.terms() != nil {
			n++
		}
	}
	if n != len(m.special) {
		return fmt.Errorf("%d services are special, %d are listed", n, len(m.special))
	}
	return nil
}

type tally struct{ services, backends, booked, kept, withheld int }

type audit struct {
	m      *Mesh
	refs   map[uint32]uint32
	counts map[*cluster]tally
	listed map[*slice]bool
}

func (a *audit) records(list []record) {
	for _, r := range list {
		for _, n := range [...]uint32{r.names, r.zone} {
			if n != 0 {
				a.refs[n]++
			}
		}
	}
}

func (a *audit) part(s *service, p *part) error {
	a.records(p.said)
	a.records(p.kept)
	t := a.counts[p.cluster]
	t.backends += len(p.said)
	t.booked += a.m.weight(p.said)
	if p.present {
		t.services++
	}
	if p.kept != nil {
		t.kept++
	}
	if p.brake != nil {
		a.records(p.brake.base)
	}
	if p.held() > 0 {
		a.records(p.brake.held)
		t.withheld += p.held()
		if left := difference(difference(p.brake.held, p.said), p.kept); len(left) != p.held() {
			return fmt.Errorf("%s of %s: of %d held records %d are said or kept", s.name, p.cluster.name, p.held(), p.held()-len(left))
		}
	}
	a.counts[p.cluster] = t
	if p.unsettled || !p.present && (p.first != nil || p.kept == nil && p.held() == 0 || len(p.said) > 0) {
		return fmt.Errorf("%s of %s: unsettled %v, present %v, kept %v", s.name, p.cluster.name, p.unsettled, p.present, p.kept)
	}
	for sl, prev := p.first, (*slice)(nil); sl != nil; sl, prev = sl.next, sl {
		if sl.service != s || sl.prev != prev || a.listed[sl] {
			return fmt.Errorf("%s of %s: a slice is misplaced", s.name, p.cluster.name)
		}
		a.listed[sl] = true
	}
	return nil
}

func (a *audit) cluster(c *cluster) error {
	held := 0
	for id, sl := range c.slices {
		if !a.listed[sl] {
			return fmt.Errorf("%s: slice %s belongs to no service", c.name, id)
		}
		delete(a.listed, sl)
		held += a.m.weight(sl.records)
		a.records(sl.records)
	}
	if t := a.counts[c]; t != (tally{c.services, c.backends, c.booked, c.kept, c.withheld}) || held != c.held {
		return fmt.Errorf("%s counts %d services, %d backends, %d booked, %d kept, %d withheld, %d of slices; there are %+v and %d", c.name, c.services, c.backends, c.booked, c.kept, c.withheld, c.held, t, held)
	}
	return nil
}
