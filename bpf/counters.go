package bpf

import "fmt"

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
}

// Counters reads the programs' counters. Any goroutine may call it.
func (d *Datapath) Counters() (Counters, error) {
	var cpus []clustermeshCmCounters
	if err := d.coll.Maps[clustermeshMapCmCounters].Lookup(uint32(0), &cpus); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	var sum Counters
	for _, c := range cpus {
		sum.Hits += c.Hits
		sum.Misses += c.Misses
		sum.Refused += c.Refused
		sum.Retries += c.Retries
		sum.Forgotten += c.Forgotten
	}
	return sum, nil
}
