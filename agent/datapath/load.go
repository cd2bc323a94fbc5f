package datapath

import (
	"fmt"
	"maps"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// Restored is one frontend as the maps hold it, with every backend that was
// known, selected or not, in the order of the table it was written from. The
// maps know no port names and zones of backends.
type Restored struct {
	Service  lb.ServiceName
	Frontend lb.Frontend
	Affinity lb.Affinity
	Backends []lb.Backend
}

// Repair is an entry of the maps that cannot be, and was taken out.
type Repair struct {
	Key    layout.FrontendKey
	ID     uint32
	Reason string
}

// String names the frontend and what was wrong.
func (r Repair) String() string {
	return fmt.Sprintf("frontend %s/%s with number %d removed: %s", addrPort(r.Key.Addr, r.Key.Port), lb.Protocol(r.Key.Proto), r.ID, r.Reason)
}

// Selection is how a frontend of the maps chooses: for how many seconds a client
// keeps its backend, and whether a table or chance decides. Shares is the part
// of the draws that each selected backend gets, in 2^32 parts of an even share;
// nil says that all are even. Withdrawn are the backends, by index, that are left
// out with their cluster, nil for none; OnWithdraw and Drain say what becomes of
// connections to withdrawn backends.
type Selection struct {
	SessionAffinity uint32
	Consistent      bool
	Shares          []uint64
	OnWithdraw      lb.OnWithdraw
	Drain           uint32
	Withdrawn       []int
}

// Loaded is what Load found. Selections are those of the Frontends, by index.
type Loaded struct {
	Frontends  []Restored
	Selections []Selection
	Repairs    []Repair
}

// Load takes over what the maps hold and forgets what the Reconciler knew. All
// that no frontend leads to is free from then on; the caller must know that an
// RCU period has passed since another process last wrote the maps.
//
// No moment at which a Reconciler can die leaves an impossible entry. One that
// is found all the same (region of another frontend, meta record of another
// key, overlapping regions) would send traffic astray and is taken out and
// reported.
func (r *Reconciler) Load() (Loaded, error) {
	r.reset()
	dump, err := r.kernel.Dump()
	if err != nil {
		return Loaded{}, fmt.Errorf("load the maps' content: %w", err)
	}
	maps.Copy(r.clusters, dump.Clusters)
	var out Loaded
	used := map[uint32]bool{}
	var bad []Repair
	for i := range dump.Frontends {
		d := &dump.Frontends[i]
		if reason := r.takeOver(d, used); reason != "" {
			bad = append(bad, Repair{Key: d.Key, ID: d.ID, Reason: reason})
			continue
		}
		out.Frontends = append(out.Frontends, restored(d, dump.Clusters))
		out.Selections = append(out.Selections, selectionOf(d))
	}
	r.dropNumbers(used)
	out.Repairs = bad
	return out, r.repair(bad, used)
}

// takeOver adopts one frontend, or says why it cannot be.
func (r *Reconciler) takeOver(d *layout.DumpFrontend, used map[uint32]bool) string {
	if reason := impossible(d, r.capacity); reason != "" {
		return reason
	}
	if used[d.ID] {
		return "its number belongs to another frontend"
	}
	region := span{d.Header.Offset() - 1, uint32(d.Region.Records())}
	if !r.slab.reserve(region) {
		return "its region overlaps another one"
	}
	used[d.ID] = true
	r.generations[d.ID] = d.Header.Generation()
	r.adopt(&frontend{
		key: d.Key, id: d.ID, service: serviceOf(&d.Meta), port: text(d.Meta.PortName[:]), kind: d.Meta.Kind,
		region: region, content: content{
			affinity: d.Region.Affinity, withdraw: d.Region.OnWithdraw, drain: d.Region.Drain,
			sticky: d.Region.Sticky, selected: d.Header.Selected(),
			backends: d.Backends, table: d.Table,
		},
	})
	return ""
}

// impossible says what contradicts itself in one entry, or "".
func impossible(d *layout.DumpFrontend, c layout.Capacity) string {
	name := serviceOf(&d.Meta)
	switch {
	case d.ID == 0 || d.ID >= c.Frontends:
		return fmt.Sprintf("its number is not within 1 to %d", int64(c.Frontends)-1)
	case d.Meta.Key != d.Key:
		return "its meta record is of another frontend"
	case name.Namespace == "" || name.Name == "":
		return "its meta record names no service"
	case d.Header.Offset() == 0:
		return "its header names no region"
	case d.Region.Frontend != d.ID:
		return "its region is of another frontend"
	case uint64(len(d.Backends)) != uint64(d.Region.Total):
		return "its region is not complete"
	case uint32(d.Header.Selected()) > d.Region.Total:
		return "its header selects more backends than its region has"
	case d.Header.Flags() != flagsOf(d.Region):
		return "its header has other flags than its region asks for"
	case uint64(len(d.Table)) != uint64(d.Region.Slots):
		return "its table is not complete"
	case slices.ContainsFunc(d.Table, func(slot uint16) bool { return slot >= d.Header.Selected() }):
		return "its table names a backend that is not selected"
	}
	return ""
}

// dropNumbers takes the used numbers off the free list.
func (r *Reconciler) dropNumbers(used map[uint32]bool) {
	free := r.ids[:0]
	for _, id := range r.ids {
		if !used[id] {
			free = append(free, id)
		}
	}
	r.ids = free
}

// repair takes the impossible entries out of the maps. Their numbers are free
// already, and are safe to give out after an RCU period: they go through the
// quarantine.
func (r *Reconciler) repair(bad []Repair, used map[uint32]bool) error {
	for _, b := range bad {
		if err := r.kernel.DeleteFrontend(b.Key); err != nil {
			return fmt.Errorf("repair: %s: %w", b, err)
		}
		if b.ID != 0 && b.ID < r.capacity.Frontends && !used[b.ID] {
			used[b.ID] = true
			r.kernel.StoreHeader(b.ID, 0)
			r.dropNumbers(map[uint32]bool{b.ID: true})
			r.waiting.number(b.ID)
		}
	}
	return nil
}

// selectionOf reads a frontend's way of choosing back.
func selectionOf(d *layout.DumpFrontend) Selection {
	s := Selection{
		SessionAffinity: d.Region.Sticky, Consistent: len(d.Table) > 0,
		OnWithdraw: lb.OnWithdraw(d.Region.OnWithdraw), Drain: d.Region.Drain,
	}
	for i := range d.Backends {
		if d.Backends[i].Flags&layout.FlagWithdrawn != 0 {
			s.Withdrawn = append(s.Withdrawn, i)
		}
	}
	n := int(d.Header.Selected())
	if !s.Consistent && slices.ContainsFunc(d.Backends[:n], func(b layout.Backend) bool { return b.Alias != 0 }) {
		s.Shares = shares(d.Backends[:n])
	}
	return s
}

// shares sums up what the slots of an alias table keep and give away.
func shares(selected []layout.Backend) []uint64 {
	out := make([]uint64, len(selected))
	for i := range selected {
		b := &selected[i]
		to := int(uint16(i) + b.Alias)
		if b.Alias == 0 || to >= len(out) {
			out[i] += 1 << 32
			continue
		}
		out[i] += uint64(b.Threshold)
		out[to] += 1<<32 - uint64(b.Threshold)
	}
	return out
}

func frontendOf(m *layout.Meta) lb.Frontend {
	return lb.Frontend{
		Addr: addrPort(m.Key.Addr, m.Key.Port), Protocol: lb.Protocol(m.Key.Proto), PortName: text(m.PortName[:]),
		Kind: lb.Kind(m.Kind), Scope: lb.Scope(m.Key.Scope),
	}
}

func restored(d *layout.DumpFrontend, clusters map[uint16]layout.Cluster) Restored {
	out := Restored{
		Service:  serviceOf(&d.Meta),
		Frontend: frontendOf(&d.Meta),
		Affinity: lb.Affinity(d.Region.Affinity),
		Backends: make([]lb.Backend, len(d.Backends)),
	}
	for i := range d.Backends {
		out.Backends[i] = decodeBackend(&d.Backends[i], d.Key.Proto, clusters)
	}
	return out
}
