package agent

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// memoryKernel is a Kernel in memory. It notes when a frontend that had
// backends is published without any although the test says it must not be.
type memoryKernel struct {
	*datapath.Memory
	mu        sync.Mutex // the wait for a grace period has a goroutine of its own
	keepFull  atomic.Bool
	emptied   []string
	most      atomic.Uint32   // selected backends that were ever published
	sweeping  atomic.Bool     // whether connections are ended here
	publishes func(id uint32) // told of each header that is stored; or nil
}

func newMemoryKernel() *memoryKernel {
	return &memoryKernel{Memory: datapath.NewMemory(layout.Capacity{Frontends: 64, Records: 4096})}
}

func (k *memoryKernel) WaitRCU() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Grace()
	return nil
}

func (k *memoryKernel) StoreBackends(offset uint32, region layout.Region, backends []layout.Backend) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Memory.StoreBackends(offset, region, backends)
}

func (k *memoryKernel) InsertFrontend(key layout.FrontendKey, id uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.Memory.InsertFrontend(key, id)
}

func (k *memoryKernel) DeleteFrontend(key layout.FrontendKey) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.Memory.DeleteFrontend(key)
}

func (k *memoryKernel) Counters() (bpf.Counters, error) { return bpf.Counters{}, nil }

func (k *memoryKernel) Usage() ([]bpf.Usage, error) {
	return []bpf.Usage{{Map: "cm_affinity", Entries: 3, Capacity: 8, WhenFull: "somebody is forgotten"}}, nil
}

func (k *memoryKernel) ClusterHits() (map[uint16]uint64, error) { return map[uint16]uint64{1: 7}, nil }

func (k *memoryKernel) StoreTable(at uint32, slots []uint16) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Memory.StoreTable(at, slots)
}

// Monitor reports one choice for each frontend, and one of nobody's, until ctx
// ends.
func (k *memoryKernel) Monitor(ctx context.Context, _ uint32, visit func(bpf.Event)) error {
	k.mu.Lock()
	dump, err := k.Memory.Dump()
	k.mu.Unlock()
	if err != nil {
		return err
	}
	backend := netip.MustParseAddrPort("10.2.0.1:80")
	for i, f := range dump.Frontends {
		visit(bpf.Event{ID: f.ID, Protocol: 6, Frontend: netip.AddrPortFrom(netip.AddrFrom16(f.Key.Addr).Unmap(), 80), Backend: backend, Cluster: 2, Refused: i > 0})
	}
	visit(bpf.Event{ID: 1 << 20, Protocol: 17, Frontend: backend, Refused: true})
	<-ctx.Done()
	return nil
}

func (k *memoryKernel) StoreHeader(id uint32, h layout.Header) {
	if k.publishes != nil {
		k.publishes(id)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keepFull.Load() && h.Selected() == 0 {
		k.emptied = append(k.emptied, fmt.Sprintf("frontend %d emptied by header %x", id, uint64(h)))
	}
	k.most.Store(max(k.most.Load(), uint32(h.Selected())))
	k.Memory.StoreHeader(id, h)
}
