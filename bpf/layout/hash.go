package layout

import "encoding/binary"

// ClientSlot is the slot of a table with so many slots that the programs look up
// for a client with this address, v4-mapped for IPv4. It is the same on every
// node and will be in every version.
func ClientSlot(addr [16]byte, slots uint32) uint32 {
	seed := mix(mix(binary.LittleEndian.Uint64(addr[:8])) ^ binary.LittleEndian.Uint64(addr[8:]))
	draw := (seed*6364136223846793005 + 1442695040888963407) >> 32
	return uint32(draw * uint64(slots) >> 32)
}

// mix is the finalizer of SplitMix64 with its increment.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
