package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// dumpBatch is how many keys one system call of Dump asks for.
const dumpBatch = 1024

// InsertFrontend makes the frontend with number id reachable under k. The key of
// a present frontend is never rewritten, because a concurrent look-up could miss
// it: inserting it again with the same id does nothing, with another id fails.
func (d *Datapath) InsertFrontend(k layout.FrontendKey, id uint32) error {
	m := d.coll.Maps[clustermeshMapCmFrontends]
	err := m.Update(&k, &id, ebpf.UpdateNoExist)
	switch {
	case errors.Is(err, ebpf.ErrKeyExist):
		return d.checkSameID(m, k, id)
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("insert frontend %d: all %d places are taken; raise MaxFrontends and load anew after a cleanup: %w", id, m.MaxEntries(), err)
	case err != nil:
		return fmt.Errorf("insert frontend %d: %w", id, err)
	}
	return nil
}

func (d *Datapath) checkSameID(m *ebpf.Map, k layout.FrontendKey, id uint32) error {
	var have uint32
	if err := m.Lookup(&k, &have); err != nil {
		return fmt.Errorf("look up frontend %d: %w", id, err)
	}
	if have != id {
		return fmt.Errorf("insert frontend %d: its key belongs to frontend %d; delete that one first", id, have)
	}
	return nil
}

// DeleteFrontend makes k an ordinary address again. A key that is not there is
// no error. The frontend's region and number may be reused after WaitRCU.
func (d *Datapath) DeleteFrontend(k layout.FrontendKey) error {
	err := d.coll.Maps[clustermeshMapCmFrontends].Delete(&k)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete frontend: %w", err)
	}
	return nil
}

// Dump reads everything. A frontend whose header names no region, or one that
// does not belong to it, comes with a zero Region and no backends.
func (d *Datapath) Dump() (layout.Dump, error) {
	dump := layout.Dump{Clusters: map[uint16]layout.Cluster{}}
	for id, c := range d.clusters.all {
		if c != (layout.Cluster{}) {
			dump.Clusters[uint16(id)] = c
		}
	}
	err := d.eachFrontend(func(k layout.FrontendKey, id uint32) {
		dump.Frontends = append(dump.Frontends, d.dumpFrontend(k, id))
	})
	slices.SortFunc(dump.Frontends, func(a, b layout.DumpFrontend) int { return cmp.Compare(a.ID, b.ID) })
	return dump, err
}

// eachFrontend reads the keys in batches.
func (d *Datapath) eachFrontend(visit func(layout.FrontendKey, uint32)) error {
	m := d.coll.Maps[clustermeshMapCmFrontends]
	// A batch cannot end inside a bucket of the hash table, so it must have
	// room for the fullest one; a table this small fits whole.
	size := min(m.MaxEntries(), dumpBatch)
	keys, ids := make([]layout.FrontendKey, size), make([]uint32, size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, ids, nil)
		for i := range n {
			visit(keys[i], ids[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read frontends: %w", err)
		}
	}
}

func (d *Datapath) dumpFrontend(k layout.FrontendKey, id uint32) layout.DumpFrontend {
	f := layout.DumpFrontend{Key: k, ID: id}
	if int64(id) >= int64(len(d.headers.all)) {
		return f
	}
	f.Header = layout.Header(atomic.LoadUint64(&d.headers.all[id]))
	f.Meta = d.meta.upTo(uint64(id) + 1)[id]
	d.dumpRegion(&f)
	return f
}

// dumpRegion copies the region that f's header names, if it is f's.
func (d *Datapath) dumpRegion(f *layout.DumpFrontend) {
	offset, end := uint64(f.Header.Offset()), uint64(len(d.slab.all))
	if offset == 0 || offset > end {
		return
	}
	r := *(*layout.Region)(unsafe.Pointer(&d.slab.upTo(offset)[offset-1]))
	if r.Frontend != f.ID || offset-1+r.Records() > end || r.Total < uint32(f.Header.Selected()) {
		return
	}
	table := offset + uint64(r.Total)
	f.Region, f.Backends = r, slices.Clone(d.slab.upTo(table)[offset:])
	if r.Slots > 0 {
		first := &d.slab.upTo(offset - 1 + r.Records())[table]
		f.Table = slices.Clone(unsafe.Slice((*uint16)(unsafe.Pointer(first)), r.Slots))
	}
}
