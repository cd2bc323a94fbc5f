package bpf

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// mapMemory opens the arrays that are written by plain stores. The small ones
// are mapped whole at once.
func (d *Datapath) mapMemory(Options) error {
	return errors.Join(
		open(d, clustermeshMapCmHeaders, &d.headers, true),
		open(d, clustermeshMapCmSlab, &d.slab, false),
		open(d, clustermeshMapCmMeta, &d.meta, false),
		open(d, clustermeshMapCmClusters, &d.clusters, true),
		open(d, clustermeshMapCmSettings, &d.settings, true),
		open(d, clustermeshMapCmSweeps, &d.sweeps, true),
		open(d, clustermeshMapCmUsage, &d.usage, true),
	)
}

func open[T any](d *Datapath, name string, to **window[T], whole bool) error {
	w, err := openWindow[T](d.coll.Maps[name])
	if err != nil {
		return fmt.Errorf("map memory of %s: %w", name, err)
	}
	if whole {
		w.upTo(uint64(len(w.all)))
	}
	*to = w
	return nil
}

func (d *Datapath) unmapMemory() error {
	err := errors.Join(d.headers.close(), d.slab.close(), d.meta.close(), d.clusters.close(), d.settings.close(), d.sweeps.close(), d.usage.close())
	d.headers, d.slab, d.meta, d.clusters, d.settings, d.sweeps, d.usage = nil, nil, nil, nil, nil, nil, nil
	return err
}

// Capacity is the size of the maps as they are, which is that of their creation.
func (d *Datapath) Capacity() layout.Capacity {
	return layout.Capacity{Frontends: uint32(len(d.headers.all)), Records: uint32(len(d.slab.all))}
}

// StoreBackends writes a region: its Region record at offset-1 and the backends
// from offset on. The region must not be visible through a header, nor have been
// within the last RCU period (see WaitRCU). It panics if the region does not lie
// inside the slab: offset is at least 1, and record 0 is usable for a Region.
func (d *Datapath) StoreBackends(offset uint32, region layout.Region, backends []layout.Backend) {
	slab := d.slab.upTo(uint64(offset) + uint64(len(backends)))
	head, body := &slab[offset-1], slab[offset:]
	*(*layout.Region)(unsafe.Pointer(head)) = region
	copy(body, backends)
}

// StoreTable writes the table of a region, whose first record is at. The same
// holds as for StoreBackends, of which the table may be seen as a part; it panics
// if the table does not lie inside the slab.
func (d *Datapath) StoreTable(at uint32, slots []uint16) {
	n := layout.TableRecords(uint32(len(slots)))
	for i := range d.slab.upTo(uint64(at) + n)[at:] {
		var t layout.Table
		copy(t[:], slots[i*layout.TableSlots:])
		*(*layout.Table)(unsafe.Pointer(&d.slab.all[at+uint32(i)])) = t
	}
}

// StoreHeader publishes a set of backends by one atomic store, after everything
// written before it. It panics if id is not below Capacity().Frontends.
func (d *Datapath) StoreHeader(id uint32, h layout.Header) {
	if h.Flags() != 0 {
		d.raiseVersion()
	}
	atomic.StoreUint64(&d.headers.all[id], uint64(h))
}

// StoreMeta writes what is needed to know a frontend again after a restart. It
// panics if id is not below Capacity().Frontends.
func (d *Datapath) StoreMeta(id uint32, m layout.Meta) { d.meta.upTo(uint64(id) + 1)[id] = m }

// StoreCluster writes the record of a cluster; its state is in force at once for
// every frontend. It panics if id is not below MaxClusters.
func (d *Datapath) StoreCluster(id uint16, c layout.Cluster) {
	rec := &d.clusters.all[id]
	rec.Name = c.Name
	atomic.StoreUint32(&rec.State, c.State)
}
