// Package layout is the Go side of the eBPF maps' memory layout: the structs
// of bpf/clustermesh.h, field by field, in the byte order of this machine
// unless a field says otherwise. A test in package bpf holds every size and
// offset against the compiled object's BTF.
//
// The layout has one switch. A frontend's key leads to a number, the number to
// a header word, and the header word to a run of backend records in the slab.
// A new set of backends is written beside the old one and becomes visible by
// one atomic store of the header word, so no reader sees half of two sets.
//
// The package is pure; values are plain data.
package layout

// FrontendKey is the key of map cm_frontends. Addr is v4-mapped for IPv4.
// Port is in network byte order (the bytes as on the wire).
type FrontendKey struct {
	Addr  [16]byte
	Port  [2]byte
	Proto uint8
	Scope uint8 // a Scope constant
}

// Scopes of a frontend, equal to those of package lb. A key of another scope than
// ScopeAny is never looked up by programs that do not know it.
const (
	ScopeAny     uint8 = 0 // sockets and packets
	ScopeOutside uint8 = 1 // packets of clients outside, where there is one of ScopeAny
	ScopeHost    uint8 = 2 // sockets of the node's own network namespace
)

// Header is the value of map cm_headers: which run of the slab holds a
// frontend's backends, and how one is chosen. Layout: flags<<58 | offset<<32 |
// selected<<16 | generation.
type Header uint64

// Flags of a header. Version 1 of the layout had none.
const (
	// HeaderSticky makes clients come back to their backend for Region.Sticky
	// seconds.
	HeaderSticky Header = 1 << 63
	// HeaderConsistent makes the region's table say which client has which
	// backend.
	HeaderConsistent Header = 1 << 62

	headerFlags = 0x3f << 58
)

// MaxRecords is how many records a slab can have: offsets have 26 bits.
const MaxRecords = 1 << 26

// MakeHeader packs a header word without flags. offset is the slab index of the
// first backend record, below MaxRecords; selected is how many records new
// connections may use.
func MakeHeader(offset uint32, selected, generation uint16) Header {
	return Header(uint64(offset%MaxRecords)<<32 | uint64(selected)<<16 | uint64(generation))
}

// Offset is the slab index of the first backend record; 0 means no region.
func (h Header) Offset() uint32 { return uint32(h>>32) % MaxRecords }

// Flags is h without anything but its flags.
func (h Header) Flags() Header { return h & headerFlags }

// Selected is how many records from Offset on take new connections.
func (h Header) Selected() uint16 { return uint16(h >> 16) }

// Generation grows by one with every store of the header, and wraps.
func (h Header) Generation() uint16 { return uint16(h) }

// Backend is one record of map cm_slab, 32 bytes so that none straddles a
// cache line. The records of a region are: the selected ones, then the ones
// that are known but not selected now.
type Backend struct {
	Addr     [16]byte // v4-mapped for IPv4
	Port     [2]byte  // network byte order
	Cluster  uint16
	Frontend uint32 // number of the frontend that owns the region: a safety check for readers
	State    uint8  // a State constant
	Flags    uint8  // Flag constants
	// Alias and Threshold are this record's slot of an alias table over the
	// selected records: of the 32-bit draws that hit it, those not below Threshold
	// go to the record Alias places further, modulo 2^16. An Alias of 0 keeps all.
	Alias     uint16
	Threshold uint32
}

// States of a backend record, equal to those of package lb.
const (
	StateActive      uint8 = 0
	StateTerminating uint8 = 1
	StateNotReady    uint8 = 2
	StateQuarantined uint8 = 3
	StateMaintenance uint8 = 4
)

// Flags of a backend record: it is of the agent's own cluster, it is on this
// node, it is known and not selected because its whole cluster was given up, so
// that connections to it end as Region.OnWithdraw says. No eBPF program reads them.
const (
	FlagLocal     uint8 = 1 << 0
	FlagHere      uint8 = 1 << 1
	FlagWithdrawn uint8 = 1 << 2
)

// What becomes of connections to withdrawn backends, equal to the values of
// package lb.
const (
	WithdrawKeep  uint8 = 0
	WithdrawDrain uint8 = 1
	WithdrawReset uint8 = 2
)

// Region is the record just before a region's first backend (slab index
// Header.Offset()-1). It is written with the backends, before the switch, so a
// restarted agent reads a complete picture whatever moment it died at. Programs
// read it only for headers with flags.
type Region struct {
	Total      uint32 // backend records that follow, selected or not
	Frontend   uint32
	Affinity   uint8
	OnWithdraw uint8 // a Withdraw constant
	_          [2]byte
	Sticky     uint32 // seconds that a client keeps its backend, 0 for none
	Slots      uint32 // of the table after the backends, 0 for none
	Drain      uint32 // seconds that WithdrawDrain gives connections
	_          [8]byte
}

// Records is how many records the region takes, this one included.
func (r Region) Records() uint64 { return 1 + uint64(r.Total) + TableRecords(r.Slots) }

// TableSlots is how many slots of a consistent-hashing table one record holds.
const TableSlots = 16

// Table is one record of a consistent-hashing table, which begins after the
// region's last backend. A slot is an index into the selected records; slots of
// the last record beyond Region.Slots are 0.
type Table [TableSlots]uint16

// TableRecords is how many records a table with so many slots takes.
func TableRecords(slots uint32) uint64 { return (uint64(slots) + TableSlots - 1) / TableSlots }

// Meta is one record of map cm_meta, indexed like the headers: what is needed
// to know a frontend again after a restart. It is complete before the
// frontend's key is inserted and does not change while the key exists. No eBPF
// program reads it. Names are NUL-padded.
type Meta struct {
	Namespace [64]byte
	Name      [64]byte
	PortName  [64]byte
	Key       FrontendKey
	Kind      uint8 // what the address is, see package lb
	_         [3]byte
}

// Cluster is one record of map cm_clusters, indexed by cluster id.
type Cluster struct {
	State uint32 // a ClusterState constant
	_     uint32
	Name  [40]byte // NUL-padded
}

// States of a cluster record. Programs skip backends of a cluster that is
// Withdrawn.
const (
	ClusterUnknown   uint32 = 0
	ClusterUp        uint32 = 1
	ClusterWithdrawn uint32 = 2
)
