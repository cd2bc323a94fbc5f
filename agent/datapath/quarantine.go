package datapath

// Ticket names everything that was in quarantine at one moment; the zero Ticket
// names nothing.
type Ticket uint64

// quarantine holds numbers and regions that readers may still be in. Tickets
// split the queue by time.
type quarantine struct {
	queue   []captive
	current Ticket
	records uint32
	numbers uint32
}

// captive is a region, or a number when region.size is 0.
type captive struct {
	since  Ticket
	region span
	id     uint32
}

func (q *quarantine) region(s span) {
	q.queue = append(q.queue, captive{since: q.current, region: s})
	q.records += s.size
}

func (q *quarantine) number(id uint32) {
	q.queue = append(q.queue, captive{since: q.current, id: id})
	q.numbers++
}

// Quarantined returns a ticket for everything that waits for an RCU period, or
// false if nothing does. The owner waits for an RCU period that begins after
// this call, off the hot path, and hands the ticket to [Reconciler.Release].
func (r *Reconciler) Quarantined() (Ticket, bool) {
	q := &r.waiting
	if len(q.queue) == 0 {
		return 0, false
	}
	q.current++
	return q.current - 1, true
}

// Release makes what the ticket names usable again. Releasing a ticket twice,
// or one older than another released before, does nothing.
func (r *Reconciler) Release(t Ticket) {
	q := &r.waiting
	n := 0
	for n < len(q.queue) && q.queue[n].since <= t {
		r.free(q.queue[n])
		n++
	}
	q.queue = append(q.queue[:0], q.queue[n:]...)
}

func (r *Reconciler) free(c captive) {
	if c.region.size > 0 {
		r.waiting.records -= c.region.size
		r.slab.give(c.region)
		return
	}
	r.waiting.numbers--
	r.ids = append(r.ids, c.id)
}
