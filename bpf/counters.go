package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Counters count since the maps were created, over all CPUs. They survive the
// agent.
type Counters struct {
	// Hits are connects and datagrams sent to a backend of a frontend.
	Hits uint64
	// Misses are connects and datagrams whose destination is no frontend.
	Misses uint64
	// Refused are those whose frontend had no usable backend.
	Refused uint64
	// Retries are the choices whose first draw hit a backend that could not be
	// used, because its cluster is withdrawn or its set was being replaced.
	Retries uint64
	// Forgotten are translated sockets whose frontend could not be remembered,
	// for want of memory, so that they see the backend's address.
	Forgotten uint64

	Reasons
}

// Reasons say more about why hits and refusals came about.
type Reasons struct {
	// Empty are the refusals whose frontend had no backend selected; of the
	// others, every selected one was of a withdrawn cluster.
	Empty uint64
	// Swept are the choices, refusals among them, for which all draws hit backends
	// that could not be used, so that any other one was taken.
	Swept uint64
	// Remembered are the choices that session affinity made.
	Remembered uint64
	// Moved are the clients whose backend was not selected any more, or of a
	// withdrawn cluster; Expired those that came back too late.
	Moved, Expired uint64
	// Unremembered are clients whose backend could not be kept, for want of memory.
	Unremembered uint64
	// Unreported are choices that no Monitor saw, because it read too slowly.
	Unreported uint64
}

// Counters reads the programs' counters. Any goroutine may call it.
func (d *Datapath) Counters() (Counters, error) {
	var cpus []clustermeshCmCounters
	var reasons []clustermeshCmReasons
	if err := d.coll.Maps[clustermeshMapCmCounters].Lookup(uint32(0), &cpus); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	if err := d.coll.Maps[clustermeshMapCmReasons].Lookup(uint32(0), &reasons); err != nil {
		return Counters{}, fmt.Errorf("read counters of reasons: %w", err)
	}
	hits, err := d.ClusterHits()
	if err != nil {
		return Counters{}, err
	}
	var sum Counters
	for _, n := range hits {
		sum.Hits += n
	}
	for _, c := range cpus {
		sum.add(c)
	}
	for _, r := range reasons {
		sum.Reasons.add(r)
	}
	return sum, nil
}

func (c *Counters) add(cpu clustermeshCmCounters) {
	c.Hits += cpu.Hits
	c.Misses += cpu.Misses
	c.Refused += cpu.Refused
	c.Retries += cpu.Retries
	c.Forgotten += cpu.Forgotten
}

func (r *Reasons) add(cpu clustermeshCmReasons) {
	r.Empty += cpu.Empty
	r.Swept += cpu.Swept
	r.Remembered += cpu.Remembered
	r.Moved += cpu.Moved
	r.Expired += cpu.Expired
	r.Unremembered += cpu.Unremembered
	r.Unreported += cpu.Unreported
}

// ClusterHits are the hits by the id of the backend's cluster, without those that
// have none. Clusters beyond MaxClusters, and hits of before an upgrade from an
// agent that did not tell clusters apart, count in Counters alone. Any goroutine
// may call it.
func (d *Datapath) ClusterHits() (map[uint16]uint64, error) {
	m := d.coll.Maps[clustermeshMapCmClusterHits]
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("read hits by cluster: %w", err)
	}
	hits := make([]uint64, int(m.MaxEntries())*cpus)
	if err := readPerCPU(m, hits, cpus); err != nil {
		return nil, fmt.Errorf("read hits by cluster: %w", err)
	}
	out := map[uint16]uint64{}
	for i, n := range hits {
		if n != 0 {
			out[uint16(i/cpus)] += n
		}
	}
	return out, nil
}

// readPerCPU reads a whole array, at once where the kernel can: since Linux 5.13.
func readPerCPU(m *ebpf.Map, values []uint64, cpus int) error {
	keys := make([]uint32, m.MaxEntries())
	var cursor ebpf.MapBatchCursor
	_, err := m.BatchLookup(&cursor, keys, values, nil)
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) { // the end of the array
		return nil
	}
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	for id := range m.MaxEntries() {
		one := values[int(id)*cpus:][:cpus]
		if err := m.Lookup(&id, &one); err != nil {
			return err
		}
	}
	return nil
}
