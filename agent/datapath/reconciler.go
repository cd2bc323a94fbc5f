package datapath

import (
	"errors"
	"fmt"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// Reconciler holds the maps' content as it was written and the free numbers and
// records. Its methods must not be called concurrently.
type Reconciler struct {
	kernel   Kernel
	capacity layout.Capacity

	frontends map[layout.FrontendKey]*frontend
	services  map[lb.ServiceName][]*frontend
	clusters  map[uint16]layout.Cluster

	slab        slab
	ids         []uint32 // free numbers, taken from the end
	generations map[uint32]uint16
	waiting     quarantine
	scratch     []layout.Backend
}

// frontend is one key in the maps and what it leads to.
type frontend struct {
	key     layout.FrontendKey
	id      uint32
	service lb.ServiceName
	port    string
	kind    uint8
	region  span
	content
}

// content is what a region holds. weights are those that table was made with, nil
// without a table or if they are not known.
type content struct {
	affinity uint8
	withdraw uint8
	drain    uint32
	sticky   uint32
	selected uint16
	backends []layout.Backend
	table    []uint16
	weights  []uint32
}

func (c *content) equal(o *content) bool {
	return c.affinity == o.affinity && c.sticky == o.sticky && c.selected == o.selected &&
		c.withdraw == o.withdraw && c.drain == o.drain &&
		slices.Equal(c.backends, o.backends) && slices.Equal(c.table, o.table)
}

func (c *content) records() uint32 { return uint32(c.head(0).Records()) }

// head is the record before the first backend.
func (c *content) head(id uint32) layout.Region {
	return layout.Region{
		Total: uint32(len(c.backends)), Frontend: id, Affinity: c.affinity,
		OnWithdraw: c.withdraw, Drain: c.drain,
		Sticky: c.sticky, Slots: uint32(len(c.table)),
	}
}

// flags are the header's.
func (c *content) flags() layout.Header { return flagsOf(c.head(0)) }

func flagsOf(r layout.Region) (flags layout.Header) {
	if r.Sticky > 0 {
		flags |= layout.HeaderSticky
	}
	if r.Slots > 0 {
		flags |= layout.HeaderConsistent
	}
	return flags
}

// New returns a reconciler of k that takes the maps for empty; call
// [Reconciler.Load] before the first [Reconciler.Set] if they may not be.
func New(k Kernel) *Reconciler {
	r := &Reconciler{kernel: k}
	r.reset()
	return r
}

func (r *Reconciler) reset() {
	r.capacity = r.kernel.Capacity()
	r.frontends = map[layout.FrontendKey]*frontend{}
	r.services = map[lb.ServiceName][]*frontend{}
	r.clusters = map[uint16]layout.Cluster{}
	r.generations = map[uint32]uint16{}
	r.waiting = quarantine{current: 1}
	r.slab = newSlab(r.capacity.Records)
	r.ids = r.ids[:0]
	for id := r.capacity.Frontends; id > 1; id-- {
		r.ids = append(r.ids, id-1) // the smallest is taken first; 0 never
	}
}

// Report counts what a call changed in the maps.
type Report struct {
	Inserted, Updated, Removed int // frontends
	Writes                     int // stores and map operations
}

// Changed reports whether anything was written.
func (r Report) Changed() bool { return r.Writes > 0 }

// Set makes the maps hold exactly tables for the service, each table with a
// different frontend; no tables remove it. Equal content is not written again.
// tables are not kept.
//
// A *[CapacityError] means that the service does not fit: the maps and what Set
// knows of them are unchanged. Any other error comes from the map of frontends:
// if a key could not be inserted, the service's previous state stays in force;
// if one could not be deleted, everything else is done. In all cases calling
// Set again with the same tables retries.
//
// A frontend that belongs to another service moves over; between the two it is
// absent for the length of two map operations.
func (r *Reconciler) Set(service lb.ServiceName, tables []lb.FrontendTable) (Report, error) {
	p := plan{r: r, service: service}
	if err := p.prepare(tables); err != nil {
		p.cancel()
		return p.report, err
	}
	p.report.Writes += r.nameClusters(tables)
	if err := p.insert(); err != nil {
		return p.report, err
	}
	p.switchOver()
	err := p.remove()
	return p.report, err
}

// SetCluster writes a cluster's record if it differs. Backends of a cluster
// whose state is ClusterWithdrawn are skipped by the programs at once, in all
// frontends. Set writes the records of clusters it has not seen yet itself,
// with state ClusterUp.
func (r *Reconciler) SetCluster(id uint16, name string, state uint32) Report {
	c := clusterRecord(name, state)
	if id == 0 || r.clusters[id] == c {
		return Report{}
	}
	r.clusters[id] = c
	r.kernel.StoreCluster(id, c)
	return Report{Writes: 1}
}

// nameClusters makes sure that the clusters of all backends are known by name
// after a restart, before the backends are written. It counts its stores.
func (r *Reconciler) nameClusters(tables []lb.FrontendTable) int {
	writes := 0
	var last *lb.Backend
	for i := range tables {
		for j := range tables[i].Backends {
			b := &tables[i].Backends[j].Backend
			if last == nil || b.ClusterID != last.ClusterID || b.Cluster != last.Cluster {
				writes += r.nameCluster(b)
			}
			last = b
		}
	}
	return writes
}

func (r *Reconciler) nameCluster(b *lb.Backend) int {
	state := r.clusters[b.ClusterID].State
	if state == layout.ClusterUnknown {
		state = layout.ClusterUp
	}
	return r.SetCluster(b.ClusterID, b.Cluster, state).Writes
}

// storeRegion writes f's content to where it is to be; no reader sees it yet. It
// returns how many stores that took.
func (r *Reconciler) storeRegion(f *frontend) int {
	first := f.region.start + 1
	r.kernel.StoreBackends(first, f.head(f.id), f.backends)
	if len(f.table) == 0 {
		return 1
	}
	r.kernel.StoreTable(first+uint32(len(f.backends)), f.table)
	return 2
}

// nextHeader is the header word for f's region.
func (r *Reconciler) nextHeader(f *frontend) layout.Header {
	r.generations[f.id]++
	return layout.MakeHeader(f.region.start+1, f.selected, r.generations[f.id]) | f.flags()
}

// drop takes f out of the maps: key, then header, then quarantine.
func (r *Reconciler) drop(f *frontend) error {
	if err := r.kernel.DeleteFrontend(f.key); err != nil {
		return fmt.Errorf("remove frontend %s of %s: %w", addrPort(f.key.Addr, f.key.Port), f.service, err)
	}
	r.retire(f)
	return nil
}

// retire forgets f, whose key is not in the map.
func (r *Reconciler) retire(f *frontend) {
	r.generations[f.id]++
	r.kernel.StoreHeader(f.id, layout.MakeHeader(0, 0, r.generations[f.id]))
	r.waiting.region(f.region)
	r.waiting.number(f.id)
	if r.frontends[f.key] == f { // not so if f never got its key
		delete(r.frontends, f.key)
	}
	left := slices.DeleteFunc(r.services[f.service], func(o *frontend) bool { return o == f })
	if r.services[f.service] = left; len(left) == 0 {
		delete(r.services, f.service)
	}
}

func (r *Reconciler) adopt(f *frontend) {
	r.frontends[f.key] = f
	r.services[f.service] = append(r.services[f.service], f)
}

// Compact moves up to limit sets of backends towards the bottom of the slab,
// highest first, and returns how many it moved. What they leave becomes usable
// after an RCU period.
func (r *Reconciler) Compact(limit int) int {
	all := make([]*frontend, 0, len(r.frontends))
	for _, f := range r.frontends {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *frontend) int { return int(int64(b.region.start) - int64(a.region.start)) })
	moved := 0
	for _, f := range all {
		if moved == limit {
			break
		}
		if to, ok := r.slab.takeBelow(f.region.size, f.region.start); ok {
			r.move(f, to)
			moved++
		}
	}
	return moved
}

func (r *Reconciler) move(f *frontend, to span) {
	from := f.region
	f.region = to
	r.storeRegion(f)
	r.kernel.StoreHeader(f.id, r.nextHeader(f))
	r.waiting.region(from)
}

// Usage is how much of the maps is in use.
type Usage struct {
	Frontends, FreeFrontends uint32 // numbers in use and free
	Backends                 uint32 // backend records that frontends lead to
	Records                  uint32 // slab records their regions take, head and rounding included
	FreeRecords, LargestFree uint32 // free slab records and the longest free run
	QuarantinedRecords       uint32
	QuarantinedFrontends     uint32
}

// Usage returns the present use of the maps.
func (r *Reconciler) Usage() Usage {
	u := Usage{
		Frontends: uint32(len(r.frontends)), FreeFrontends: uint32(len(r.ids)),
		FreeRecords: r.slab.total, LargestFree: r.slab.largest(),
		QuarantinedRecords: r.waiting.records, QuarantinedFrontends: r.waiting.numbers,
	}
	for _, f := range r.frontends {
		u.Backends += uint32(len(f.backends))
		u.Records += f.region.size
	}
	return u
}

// errDuplicate is a programming error of the caller.
var errDuplicate = errors.New("two tables have the same frontend")
