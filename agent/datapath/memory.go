package datapath

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// Memory is a [Kernel] in this process, for tests and simulations. Besides what
// the maps hold it knows what readers may still be looking at, and notes every
// write that could show one of them half of two sets. It is not safe for
// concurrent use.
type Memory struct {
	// Fail, if set, is asked before a key is inserted ("insert") or deleted
	// ("delete"); its error becomes the operation's, which then does nothing.
	Fail func(op string, k layout.FrontendKey) error
	// Written, if set, is called after every store and map operation; it may
	// panic to end the writer at that point.
	Written func()

	capacity   layout.Capacity
	frontends  map[layout.FrontendKey]uint32
	headers    []layout.Header
	meta       []layout.Meta
	slots      []slot
	clusters   map[uint16]layout.Cluster
	writes     int
	violations []string
	seen       []span          // regions that a header named since the last grace period
	departed   map[uint32]bool // numbers that lost their key since then
}

// slot is one slab record, used as a backend, as a region record or for a table.
type slot struct {
	isRegion bool
	region   layout.Region
	backend  layout.Backend
	table    layout.Table
}

// NewMemory returns empty maps.
func NewMemory(c layout.Capacity) *Memory {
	return &Memory{
		capacity: c, frontends: map[layout.FrontendKey]uint32{}, clusters: map[uint16]layout.Cluster{},
		headers: make([]layout.Header, c.Frontends), meta: make([]layout.Meta, c.Frontends),
		slots: make([]slot, c.Records), departed: map[uint32]bool{},
	}
}

// Writes counts the stores and map operations so far.
func (m *Memory) Writes() int { return m.writes }

// Violations returns what was written against the rules of [Kernel].
func (m *Memory) Violations() []string { return m.violations }

// Grace is the passing of an RCU period: readers that were under way are gone.
func (m *Memory) Grace() {
	m.seen = m.seen[:0]
	clear(m.departed)
	for _, id := range m.frontends { // a header without a key is out of reach
		m.see(m.headers[id])
	}
}

func (m *Memory) see(h layout.Header) {
	if h.Offset() != 0 {
		m.seen = append(m.seen, span{h.Offset() - 1, uint32(m.slots[h.Offset()-1].region.Records())})
	}
}

func (m *Memory) violated(format string, args ...any) {
	m.violations = append(m.violations, fmt.Sprintf(format, args...))
}

func (m *Memory) wrote() {
	m.writes++
	if m.Written != nil {
		m.Written()
	}
}

// Capacity implements [Kernel].
func (m *Memory) Capacity() layout.Capacity { return m.capacity }

// StoreBackends implements [Kernel].
func (m *Memory) StoreBackends(offset uint32, region layout.Region, backends []layout.Backend) {
	run := span{offset - 1, uint32(len(backends)) + 1}
	if offset < 2 || region.Total != uint32(len(backends)) {
		m.violated("region at %d has a total of %d and %d records", offset, region.Total, len(backends))
	}
	m.overwrite(run)
	m.slots[offset-1] = slot{isRegion: true, region: region}
	for i, b := range backends {
		m.slots[offset+uint32(i)] = slot{backend: b}
	}
	m.wrote()
}

func (m *Memory) overwrite(run span) {
	for _, s := range m.seen {
		if run.start < s.end() && s.start < run.end() {
			m.violated("records %d to %d are overwritten while readers may be in %d to %d", run.start, run.end()-1, s.start, s.end()-1)
		}
	}
}

// StoreTable implements [Kernel].
func (m *Memory) StoreTable(at uint32, slots []uint16) {
	run := span{at, uint32(layout.TableRecords(uint32(len(slots))))}
	m.overwrite(run)
	for i := range run.size {
		var s slot
		copy(s.table[:], slots[i*layout.TableSlots:])
		m.slots[at+i] = s
	}
	m.wrote()
}

// StoreHeader implements [Kernel].
func (m *Memory) StoreHeader(id uint32, h layout.Header) {
	if m.departed[id] && h.Offset() != 0 {
		m.violated("number %d is used again while readers may hold it", id)
	}
	m.headers[id] = h
	m.see(h)
	m.wrote()
}

// StoreMeta implements [Kernel].
func (m *Memory) StoreMeta(id uint32, meta layout.Meta) {
	if have := m.meta[id]; m.frontends[have.Key] == id && have.Key != meta.Key {
		m.violated("the meta record of number %d changes its key while it is in use", id)
	}
	m.meta[id] = meta
	m.wrote()
}

// StoreCluster implements [Kernel].
func (m *Memory) StoreCluster(id uint16, c layout.Cluster) {
	m.clusters[id] = c
	m.wrote()
}

// InsertFrontend implements [Kernel].
func (m *Memory) InsertFrontend(k layout.FrontendKey, id uint32) error {
	if err := m.fail("insert", k); err != nil {
		return err
	}
	if _, present := m.frontends[k]; present {
		m.violated("key %v is inserted while it is present", k)
	}
	if id >= m.capacity.Frontends || m.meta[id].Key != k || m.headers[id].Offset() == 0 {
		m.violated("key %v is inserted before number %d is complete", k, id)
	}
	m.frontends[k] = id
	m.wrote()
	return nil
}

// DeleteFrontend implements [Kernel].
func (m *Memory) DeleteFrontend(k layout.FrontendKey) error {
	if err := m.fail("delete", k); err != nil {
		return err
	}
	if id, present := m.frontends[k]; present {
		m.departed[id] = true
		delete(m.frontends, k)
	}
	m.wrote()
	return nil
}

func (m *Memory) fail(op string, k layout.FrontendKey) error {
	if m.Fail == nil {
		return nil
	}
	return m.Fail(op, k)
}

// Dump implements [Kernel].
func (m *Memory) Dump() (layout.Dump, error) {
	d := layout.Dump{Clusters: maps.Clone(m.clusters)}
	for k, id := range m.frontends {
		d.Frontends = append(d.Frontends, m.dumpFrontend(k, id))
	}
	slices.SortFunc(d.Frontends, func(a, b layout.DumpFrontend) int { return cmp.Compare(a.ID, b.ID) })
	return d, nil
}

func (m *Memory) dumpFrontend(k layout.FrontendKey, id uint32) layout.DumpFrontend {
	f := layout.DumpFrontend{Key: k, ID: id}
	if id >= m.capacity.Frontends {
		return f
	}
	f.Header, f.Meta = m.headers[id], m.meta[id]
	at := f.Header.Offset()
	if at == 0 || at > m.capacity.Records || !m.slots[at-1].isRegion || m.slots[at-1].region.Frontend != id {
		return f
	}
	f.Region = m.slots[at-1].region
	for i := at; i < at+f.Region.Total && i < m.capacity.Records; i++ {
		f.Backends = append(f.Backends, m.slots[i].backend)
	}
	for i := range f.Region.Slots {
		at := f.Header.Offset() + f.Region.Total + i/layout.TableSlots
		if at < m.capacity.Records {
			f.Table = append(f.Table, m.slots[at].table[i%layout.TableSlots])
		}
	}
	return f
}
