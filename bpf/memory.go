package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// mapMemory maps the arrays that are written by plain stores.
func (d *Datapath) mapMemory(Options) (err error) {
	if d.headers, err = mapRecords[uint64](d, clustermeshMapCmHeaders); err != nil {
		return err
	}
	if d.slab, err = mapRecords[layout.Backend](d, clustermeshMapCmSlab); err != nil {
		return err
	}
	if d.meta, err = mapRecords[layout.Meta](d, clustermeshMapCmMeta); err != nil {
		return err
	}
	d.clusters, err = mapRecords[layout.Cluster](d, clustermeshMapCmClusters)
	return err
}

// mapRecords maps a whole array map as a slice of its records.
func mapRecords[T any](d *Datapath, name string) ([]T, error) {
	m := d.coll.Maps[name]
	raw, err := mapWhole(m, unsafe.Sizeof(*new(T)))
	if err != nil {
		return nil, fmt.Errorf("map memory of %s: %w", name, err)
	}
	d.mappings = append(d.mappings, raw)
	return unsafe.Slice((*T)(unsafe.Pointer(&raw[0])), m.MaxEntries()), nil
}

func mapWhole(m *ebpf.Map, record uintptr) ([]byte, error) {
	if uintptr(m.ValueSize()) != record || record%8 != 0 {
		return nil, fmt.Errorf("record has %d bytes in the kernel, %d here", m.ValueSize(), record)
	}
	page := os.Getpagesize()
	size := (int(m.MaxEntries())*int(record) + page - 1) / page * page
	return unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func (d *Datapath) unmapMemory() error {
	var errs []error
	for _, raw := range d.mappings {
		errs = append(errs, unix.Munmap(raw))
	}
	d.mappings, d.headers, d.slab, d.meta, d.clusters = nil, nil, nil, nil, nil
	return errors.Join(errs...)
}

// Capacity is the size of the maps as they are, which is that of their creation.
func (d *Datapath) Capacity() layout.Capacity {
	return layout.Capacity{Frontends: uint32(len(d.headers)), Records: uint32(len(d.slab))}
}

// StoreBackends writes a region: its Region record at offset-1 and the backends
// from offset on. The region must not be visible through a header, nor have been
// within the last RCU period (see WaitRCU). It panics if the region does not lie
// inside the slab: offset is at least 1, and record 0 is usable for a Region.
func (d *Datapath) StoreBackends(offset uint32, region layout.Region, backends []layout.Backend) {
	head := &d.slab[offset-1]
	body := d.slab[offset:][:len(backends):len(backends)]
	*(*layout.Region)(unsafe.Pointer(head)) = region
	copy(body, backends)
}

// StoreHeader publishes a set of backends by one atomic store, after everything
// written before it. It panics if id is not below Capacity().Frontends.
func (d *Datapath) StoreHeader(id uint32, h layout.Header) {
	atomic.StoreUint64(&d.headers[id], uint64(h))
}

// StoreMeta writes what is needed to know a frontend again after a restart. It
// panics if id is not below Capacity().Frontends.
func (d *Datapath) StoreMeta(id uint32, m layout.Meta) { d.meta[id] = m }

// StoreCluster writes the record of a cluster; its state is in force at once for
// every frontend. It panics if id is not below MaxClusters.
func (d *Datapath) StoreCluster(id uint16, c layout.Cluster) {
	rec := &d.clusters[id]
	rec.Name = c.Name
	atomic.StoreUint32(&rec.State, c.State)
}
