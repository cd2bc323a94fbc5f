package layout

// Capacity is how much a set of maps can hold.
type Capacity struct {
	// Frontends is how many frontend numbers there are, number 0 included.
	// Number 0 is never given out: it means "no frontend".
	Frontends uint32
	// Records is how many 32-byte records the slab has, record 0 included.
	// Record 0 is never used, so that a header with offset 0 means "no region".
	Records uint32
}

// DumpFrontend is one frontend as the maps hold it. Region and Backends are
// zero when the header names no region.
type DumpFrontend struct {
	Key    FrontendKey
	ID     uint32
	Header Header
	Meta   Meta
	Region Region
	// Backends are the Region.Total records from Header.Offset() on, selected
	// ones first.
	Backends []Backend
	// Table are the Region.Slots slots after them, nil without any.
	Table []uint16
}

// Dump is everything the maps hold, as plain data that the caller owns.
// Frontends are sorted by ID. Clusters holds the records that are not zero.
type Dump struct {
	Frontends []DumpFrontend
	Clusters  map[uint16]Cluster
}
