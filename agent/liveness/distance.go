package liveness

import (
	"cmp"
	"maps"
	"slices"
)

// distance is a round trip time that decisions can rest on: it stays as it is
// until the smoothed time has left it behind for good. As long as no distance
// changes, no order does, whatever the times do meanwhile.
type distance struct {
	value int64
	off   int   // rounds in a row beyond the margin, all on one side
	sum   int64 // of the times in them
	far   bool  // the side is the farther one
}

const (
	// settle is how many rounds with answers make the first distance, and hold how
	// many another one: 5 s and 30 s in rounds of 200 ms.
	settle, hold = 25, 150
	// marginPercent and marginLeast, in nanoseconds, say how much a time has to
	// differ to be another distance. The larger one counts.
	marginPercent, marginLeast = 30, 500_000
)

// margin is by how much a time differs notably from ns.
func margin(ns int64) int64 { return max(ns/100*marginPercent, marginLeast) }

// hear takes in the smoothed time of a round that brought an answer.
func (d *distance) hear(ns int64) {
	far, long := ns > d.value, hold
	if d.value == 0 {
		long = settle
	}
	if d.value > 0 && max(ns-d.value, d.value-ns) <= margin(d.value) || d.off > 0 && far != d.far {
		d.off, d.sum = 0, 0
		return
	}
	d.far = far
	d.sum += ns
	if d.off++; d.off >= long {
		*d = distance{value: d.sum / int64(d.off)}
	}
}

// maxRanks bounds how many groups there are; what is farther shares the last.
const maxRanks = 12

// Ranks groups clusters by distance, given in nanoseconds by name, and numbers
// the groups from 0, the nearest. A group is its nearest cluster with all that
// are not notably farther (by 30 %, and 0.5 ms at least). Clusters whose distance
// is not known, 0, have no rank.
func Ranks(distances map[string]int64) map[string]uint8 {
	names := slices.SortedFunc(maps.Keys(distances), func(a, b string) int {
		return cmp.Or(cmp.Compare(distances[a], distances[b]), cmp.Compare(a, b))
	})
	out, rank, limit := map[string]uint8{}, uint8(0), int64(0)
	for _, name := range names {
		ns := distances[name]
		switch {
		case ns <= 0:
			continue
		case limit == 0:
			limit = ns + margin(ns)
		case ns > limit && rank < maxRanks-1:
			rank, limit = rank+1, ns+margin(ns)
		}
		out[name] = rank
	}
	return out
}
