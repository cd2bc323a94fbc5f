package datapath

import (
	"fmt"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// Kernel is the maps as a reconciler writes them. The Store methods are plain
// memory stores that cannot fail; they become visible in the order of the
// calls. One caller at a time.
type Kernel interface {
	// Capacity is constant during the life of a Kernel.
	Capacity() layout.Capacity
	// StoreBackends writes region at slab index offset-1 and backends from offset
	// on. No header may have named that run since the last RCU period.
	StoreBackends(offset uint32, region layout.Region, backends []layout.Backend)
	// StoreTable writes the table of a region, from slab index at on, which is
	// after the last backend. The same holds as for StoreBackends.
	StoreTable(at uint32, slots []uint16)
	// StoreHeader is one atomic store.
	StoreHeader(id uint32, h layout.Header)
	StoreMeta(id uint32, m layout.Meta)
	StoreCluster(id uint16, c layout.Cluster)
	// InsertFrontend adds a key that is not present.
	InsertFrontend(k layout.FrontendKey, id uint32) error
	// DeleteFrontend removes a key; an absent one is no error.
	DeleteFrontend(k layout.FrontendKey) error
	// Dump reads everything that keys lead to.
	Dump() (layout.Dump, error)
}

// CapacityError says that a service does not fit into the maps. Nothing of it
// was changed. If Quarantined is not 0, waiting for an RCU period frees that
// much; if Fragmented, [Reconciler.Compact] may help.
type CapacityError struct {
	Resource    string // "frontends" or "backend records"
	Need        uint32
	Free        uint32
	Quarantined uint32
	Limit       uint32
	Fragmented  bool
}

// Error names the resource, the need and the remedy.
func (e *CapacityError) Error() string {
	return fmt.Sprintf("find room for %d %s: %d of %d are free and %d in quarantine; raise the capacity of the maps or share fewer services",
		e.Need, e.Resource, e.Free, e.Limit, e.Quarantined)
}
