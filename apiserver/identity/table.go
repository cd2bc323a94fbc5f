package identity

import (
	"errors"
	"fmt"
	"slices"
)

// DefaultQuarantine is how many seconds a released number rests before other
// labels may get it: long enough for readers that lag behind, or that
// reconnect within the hour, to have heard that the old meaning is gone.
const DefaultQuarantine = 3600

// Config describes a table.
type Config struct {
	First, Last uint32 // the numbers to give out, both inclusive; First > 0
	Quarantine  int64  // seconds a released number rests; 0 means no rest
}

// Validate joins everything that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if c.First == 0 {
		errs = append(errs, errors.New("first is 0: identity 0 means unknown, start the range at 1 or above"))
	}
	if c.Last < c.First {
		errs = append(errs, fmt.Errorf("last %d is below first %d: give a range that is not empty", c.Last, c.First))
	}
	if c.Quarantine < 0 {
		errs = append(errs, fmt.Errorf("quarantine %d is negative: give seconds, or 0 for none", c.Quarantine))
	}
	return errors.Join(errs...)
}

// Table maps label texts to numbers. It is not safe for concurrent use.
//
// A number in use never changes its labels. A released number rests for the
// quarantine: until then only the same labels get it back. A table filled
// from one set of labels in sorted order, as export does, depends on that set
// alone.
type Table struct {
	config   Config
	now      int64
	byLabels map[string]uint32
	slots    map[uint32]slot
	resting  []rest // in order of release
	used     int
	changes  []Entry
}

// slot is a number that is in use, or that rests since released.
type slot struct {
	labels   string
	released int64
	used     bool
}

// rest remembers one release. It is void when the slot has moved on since.
type rest struct {
	number   uint32
	released int64
}

// New returns an empty table; config must be valid.
func New(config Config) *Table {
	return &Table{config: config, byLabels: map[string]uint32{}, slots: map[uint32]slot{}}
}

// Advance tells the table the time, in seconds since any fixed moment that
// survives restarts. Numbers whose quarantine is over become free. A time in
// the past is ignored.
func (t *Table) Advance(now int64) {
	t.now = max(t.now, now)
	n := 0
	for n < len(t.resting) && t.resting[n].released+t.config.Quarantine <= t.now {
		t.free(t.resting[n])
		n++
	}
	t.resting = slices.Delete(t.resting, 0, n)
}

func (t *Table) free(r rest) {
	s, ok := t.slots[r.number]
	if !ok || s.used || s.released != r.released {
		return
	}
	t.drop(r.number)
}

func (t *Table) drop(number uint32) {
	delete(t.byLabels, t.slots[number].labels)
	delete(t.slots, number)
}

// Acquire returns the number of the labels, the same at every call until it
// is released. It reports false when no number is free.
func (t *Table) Acquire(labels string) (uint32, bool) {
	if number, ok := t.byLabels[labels]; ok {
		t.use(number, labels)
		return number, true
	}
	number, ok := t.candidate(labels)
	if ok {
		t.use(number, labels)
	}
	return number, ok
}

// candidate finds the first number of the labels' sequence that is free.
func (t *Table) candidate(labels string) (uint32, bool) {
	s := newSequence(labels, t.config.First, t.config.Last)
	if uint64(len(t.slots)) >= s.size {
		return 0, false
	}
	for {
		number := s.next()
		if _, taken := t.slots[number]; !taken {
			return number, true
		}
	}
}

func (t *Table) use(number uint32, labels string) {
	if t.slots[number].used {
		return
	}
	t.used++
	t.set(number, slot{labels: labels, used: true})
}

// Release lets go of the labels' number. Labels without one are ignored.
func (t *Table) Release(labels string) {
	number, ok := t.byLabels[labels]
	if !ok || !t.slots[number].used {
		return
	}
	t.used--
	t.rest(number, labels, t.now)
}

func (t *Table) rest(number uint32, labels string, released int64) {
	t.set(number, slot{labels: labels, released: released})
	t.resting = append(t.resting, rest{number, released})
}

func (t *Table) set(number uint32, s slot) {
	t.slots[number] = s
	t.byLabels[s.labels] = number
	t.changes = append(t.changes, entryOf(number, s))
}

// Stats counts the numbers of a table.
type Stats struct {
	Used     int // in use
	Resting  int // released, still in quarantine
	Capacity int // in the range
}

// Stats returns the present counts.
func (t *Table) Stats() Stats {
	return Stats{
		Used:     t.used,
		Resting:  len(t.slots) - t.used,
		Capacity: int(t.config.Last-t.config.First) + 1,
	}
}
