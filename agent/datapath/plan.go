package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// plan is one Set: everything that can fail for want of room is decided before
// the first write.
type plan struct {
	r       *Reconciler
	service lb.ServiceName
	added   []step
	changed []step
	stays   []*frontend // of the service, wanted still
	report  Report
}

// step is one frontend to write. next carries the content to be; for a change,
// have is what it replaces.
type step struct {
	next, have *frontend
	newRegion  bool
	meta       layout.Meta
	table      *lb.FrontendTable
}

// prepare encodes all tables and reserves numbers and regions.
func (p *plan) prepare(tables []lb.FrontendTable) error {
	for i := range tables {
		if err := p.prepareTable(&tables[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) prepareTable(t *lb.FrontendTable) error {
	if t.Service != p.service {
		return fmt.Errorf("set service %s: a table belongs to %s", p.service, t.Service)
	}
	meta, err := metaOf(t)
	if err != nil {
		return err
	}
	have := p.r.frontends[meta.Key]
	if p.planned(meta.Key, have) {
		return fmt.Errorf("set service %s: frontend %s: %w", p.service, t.Frontend.Addr, errDuplicate)
	}
	if have != nil && have.service == p.service {
		p.stays = append(p.stays, have)
		return p.prepareChange(t, meta, have)
	}
	return p.prepareNew(t, meta)
}

func (p *plan) planned(k layout.FrontendKey, have *frontend) bool {
	return have != nil && slices.Contains(p.stays, have) ||
		slices.ContainsFunc(p.added, func(s step) bool { return s.next.key == k })
}

func (p *plan) prepareChange(t *lb.FrontendTable, meta layout.Meta, have *frontend) error {
	c, err := p.encode(t, have.id, have)
	if err != nil {
		return err
	}
	sameSet := have.equal(&c)
	if sameSet && have.port == t.Frontend.PortName && have.kind == meta.Kind {
		have.weights = c.weights
		return nil
	}
	next := *have
	next.port, next.kind = t.Frontend.PortName, meta.Kind
	s := step{next: &next, have: have, newRegion: !sameSet, meta: meta, table: t}
	if s.newRegion {
		next.content = c
		next.backends = slices.Clone(c.backends)
		if next.region, err = p.region(next.records()); err != nil {
			return err
		}
	}
	p.changed = append(p.changed, s)
	return nil
}

// encode makes of t what a region of frontend id is to hold; the backends are on
// scratch space. A consistent table takes time to make, so that of have is taken
// over where it would be the same.
func (p *plan) encode(t *lb.FrontendTable, id uint32, have *frontend) (content, error) {
	c := content{affinity: uint8(t.Affinity), withdraw: uint8(t.OnWithdraw), drain: t.Drain, sticky: t.SessionAffinity}
	var err error
	if c.backends, c.selected, err = encodeBackends(p.r.scratch[:0], t, id); err != nil {
		return c, err
	}
	p.r.scratch = c.backends
	w := weights(t, c.selected)
	switch {
	case !t.Consistent:
		encodeWeights(c.backends, w)
	case have != nil && have.tableFits(&c, w):
		c.table, c.weights = have.table, have.weights
	default:
		c.table, c.weights = encodeTable(c.backends[:c.selected], w), weightsOrEven(w)
	}
	return c, nil
}

// weightsOrEven marks even weights, which are nil, as known.
func weightsOrEven(w []uint32) []uint32 {
	if w == nil {
		return []uint32{}
	}
	return w
}

// tableFits reports whether f's table is that of c with these weights.
func (f *frontend) tableFits(c *content, w []uint32) bool {
	return f.weights != nil && slices.Equal(f.weights, w) && f.selected == c.selected &&
		slices.EqualFunc(f.backends[:f.selected], c.backends[:c.selected], sameAddress)
}

func sameAddress(a, b layout.Backend) bool { return a.Addr == b.Addr && a.Port == b.Port }

func (p *plan) prepareNew(t *lb.FrontendTable, meta layout.Meta) error {
	if len(p.r.ids) == 0 {
		return &CapacityError{Resource: "frontends", Need: 1, Limit: p.r.capacity.Frontends, Quarantined: p.r.waiting.numbers}
	}
	last := len(p.r.ids) - 1
	next := &frontend{key: meta.Key, id: p.r.ids[last], service: p.service, port: t.Frontend.PortName, kind: meta.Kind}
	c, err := p.encode(t, next.id, nil)
	if err != nil {
		return err
	}
	next.content = c
	next.backends = slices.Clone(c.backends)
	if next.region, err = p.region(next.records()); err != nil {
		return err
	}
	p.r.ids = p.r.ids[:last]
	p.added = append(p.added, step{next: next, newRegion: true, meta: meta, table: t})
	return nil
}

// region takes a run for n records.
func (p *plan) region(n uint32) (span, error) {
	size := roundUp(n)
	s, ok := p.r.slab.take(size)
	if !ok {
		size = n // what is left may fit exactly
		s, ok = p.r.slab.take(size)
	}
	if !ok {
		free := p.r.slab.total
		return span{}, &CapacityError{Resource: "backend records", Need: size, Free: free, Limit: p.r.capacity.Records,
			Quarantined: p.r.waiting.records, Fragmented: free >= size}
	}
	return s, nil
}

// cancel gives back what prepare took; no reader has seen it.
func (p *plan) cancel() {
	for _, s := range p.changed {
		if s.newRegion {
			p.r.slab.give(s.next.region)
		}
	}
	for _, s := range slices.Backward(p.added) {
		p.r.slab.give(s.next.region)
		p.r.ids = append(p.r.ids, s.next.id)
	}
}

// insert writes the new frontends, keys last. If a key cannot be inserted the
// service's other new frontends are taken back. What takes the place of another
// for some clients goes before that one, so that they never have it.
func (p *plan) insert() error {
	slices.SortStableFunc(p.added, func(a, b step) int { return cmp.Compare(b.next.key.Scope, a.next.key.Scope) })
	for i, s := range p.added {
		if err := p.insertOne(s); err != nil {
			return errors.Join(err, p.takeBack(i))
		}
		p.report.Inserted++
	}
	return nil
}

func (p *plan) insertOne(s step) error {
	if other := p.r.frontends[s.next.key]; other != nil {
		p.report.Writes += 2
		if err := p.r.drop(other); err != nil {
			return fmt.Errorf("move frontend from %s to %s: %w", other.service, p.service, err)
		}
	}
	p.report.Writes += p.r.storeRegion(s.next)
	p.r.kernel.StoreMeta(s.next.id, s.meta)
	p.r.kernel.StoreHeader(s.next.id, p.r.nextHeader(s.next))
	p.report.Writes += 3
	if err := p.r.kernel.InsertFrontend(s.next.key, s.next.id); err != nil {
		return fmt.Errorf("insert frontend %s of %s: %w", s.table.Frontend.Addr, p.service, err)
	}
	p.r.adopt(s.next)
	return nil
}

// takeBack undoes the insertions before failed and returns the reservations of
// all others. A region whose header was stored goes through the quarantine.
func (p *plan) takeBack(failed int) error {
	var errs []error
	for _, s := range p.added[:failed] {
		errs = append(errs, p.r.drop(s.next))
		p.report.Inserted--
	}
	p.r.retire(p.added[failed].next)
	p.added = p.added[failed+1:]
	p.cancel()
	return errors.Join(errs...)
}

// switchOver publishes the changed sets; nothing here can fail.
func (p *plan) switchOver() {
	for _, s := range p.changed {
		p.report.Updated++
		if s.newRegion {
			p.report.Writes += p.r.storeRegion(s.next)
		}
		if s.next.port != s.have.port || s.next.kind != s.have.kind {
			p.r.kernel.StoreMeta(s.next.id, s.meta)
			p.report.Writes++
		}
		if s.newRegion {
			p.r.kernel.StoreHeader(s.next.id, p.r.nextHeader(s.next))
			p.report.Writes++
			p.r.waiting.region(s.have.region)
		}
		*s.have = *s.next
	}
}

// remove takes out the service's frontends that are not wanted any more, in the
// opposite order of insert.
func (p *plan) remove() error {
	var errs []error
	all := slices.SortedStableFunc(slices.Values(p.r.services[p.service]), func(a, b *frontend) int { return cmp.Compare(a.key.Scope, b.key.Scope) })
	for _, f := range all {
		if slices.Contains(p.stays, f) || slices.ContainsFunc(p.added, func(s step) bool { return s.next == f }) {
			continue
		}
		if err := p.r.drop(f); err != nil {
			errs = append(errs, err)
			continue
		}
		p.report.Removed++
		p.report.Writes += 2
	}
	return errors.Join(errs...)
}
