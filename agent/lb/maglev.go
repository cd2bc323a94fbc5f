package lb

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// MaglevSize returns the size of the table for n backends: the smallest of
// 251, 1021, 4093, 16381 and 65521 (primes below powers of two) that has 100
// slots for each, or the largest. A caller that keeps the size while backends
// come and go keeps most clients where they are; another size moves them all.
func MaglevSize(n int) uint32 {
	for _, m := range maglevSizes() {
		if uint64(m) >= 100*uint64(max(n, 0)) {
			return m
		}
	}
	return 65521
}

func maglevSizes() [5]uint32 { return [...]uint32{251, 1021, 4093, 16381, 65521} }

// Maglev builds the table of D. E. Eisenbud et al., "Maglev: A Fast and
// Reliable Software Network Load Balancer", NSDI 2016, section 3.4: m slots,
// each an index into backends. Every node that knows the same backends with the
// same weights fills the same slots with the same backends, whatever the order
// it lists them in; a backend that goes away gives up its slots, few others
// change hands.
//
// weights are relative, one per backend, or nil for equal ones. A backend has
// its share of m rounded up or down; all 0 is the same as all equal. As in the
// paper, a larger weight means more frequent turns.
//
// m must be a value of [MaglevSize] and the backends distinct. The result is nil
// for another m, for no backends or more than [MaxSlots], and for weights of
// another length.
func Maglev(backends []netip.AddrPort, weights []uint32, m uint32) []uint16 {
	sizes := maglevSizes()
	bad := weights != nil && len(weights) != len(backends)
	if len(backends) == 0 || len(backends) > MaxSlots || bad || !slices.Contains(sizes[:], m) {
		return nil
	}
	walkers := newWalkers(backends, m)
	apportion(walkers, weights, m)
	return fillMaglev(walkers, m)
}

// walker is a backend on its way through its own permutation of the slots.
type walker struct {
	key        netip.AddrPort
	index      uint16
	next, step uint32
	quota      uint32 // slots it is to have
	rest       uint64 // what rounding its quota down left over
}

func newWalkers(backends []netip.AddrPort, m uint32) []walker {
	walkers := make([]walker, len(backends))
	for i, b := range backends {
		b = unmap(b)
		walkers[i] = walker{
			key: b, index: uint16(i),
			next: uint32(hashAddr(maglevOffsetSeed, b) % uint64(m)),
			step: uint32(hashAddr(maglevStepSeed, b)%uint64(m-1)) + 1,
		}
	}
	slices.SortFunc(walkers, func(a, b walker) int { return a.key.Compare(b.key) })
	return walkers
}

// The seeds are arbitrary and must never change: nodes of different versions
// have to agree.
const (
	maglevOffsetSeed = 0x9ae16a3b2f90404f
	maglevStepSeed   = 0xc3a5c85c97cb3127
)

// apportion gives every walker its quota of m by largest remainder; of equal
// remainders the first in order wins.
func apportion(walkers []walker, weights []uint32, m uint32) {
	var total uint64
	for _, w := range weights {
		total += uint64(w)
	}
	weight := func(i uint16) uint64 {
		if total == 0 {
			return 1
		}
		return uint64(weights[i])
	}
	whole, left := cmp.Or(total, uint64(len(walkers))), m
	for i := range walkers {
		w := &walkers[i]
		hi, lo := bits.Mul64(weight(w.index), uint64(m))
		quota, rest := bits.Div64(hi, lo, whole)
		w.quota, w.rest = uint32(quota), rest
		left -= w.quota
	}
	giveRest(walkers, left)
}

func giveRest(walkers []walker, left uint32) {
	order := make([]uint16, len(walkers))
	for i := range order {
		order[i] = uint16(i)
	}
	slices.SortStableFunc(order, func(a, b uint16) int { return cmp.Compare(walkers[b].rest, walkers[a].rest) })
	for _, i := range order[:left] {
		walkers[i].quota++
	}
}

// fillMaglev lets the walkers take their turns. The sum of quotas is m, and m
// being prime a walker comes by every slot, so that each finds what it is owed.
func fillMaglev(walkers []walker, m uint32) []uint16 {
	const free = 1<<16 - 1 // no index: there are at most MaxSlots backends
	table := slices.Repeat([]uint16{free}, int(m))
	for _, i := range turns(walkers, m) {
		walkers[i].take(table, free)
	}
	return table
}

// turns lists whose turn it is, m times. There are as many rounds as the largest
// quota; a smaller one is spread over them evenly. Within a round the order is
// that of the walkers.
func turns(walkers []walker, m uint32) []uint16 {
	var rounds uint32
	for i := range walkers {
		rounds = max(rounds, walkers[i].quota)
	}
	start := make([]uint32, rounds+1) // of each round; counted one further first
	eachTurn(walkers, rounds, func(_ int, round uint32) { start[round+1]++ })
	for r := range rounds {
		start[r+1] += start[r]
	}
	order := make([]uint16, m)
	eachTurn(walkers, rounds, func(i int, round uint32) {
		order[start[round]] = uint16(i)
		start[round]++
	})
	return order
}

func eachTurn(walkers []walker, rounds uint32, f func(i int, round uint32)) {
	for i := range walkers {
		quota := uint64(walkers[i].quota)
		for k := range quota {
			f(i, uint32(k*uint64(rounds)/quota))
		}
	}
}

func (w *walker) take(table []uint16, free uint16) {
	m := uint32(len(table))
	for table[w.next] != free {
		w.advance(m)
	}
	table[w.next] = w.index
	w.advance(m)
}

func (w *walker) advance(m uint32) {
	w.next += w.step
	if w.next >= m {
		w.next -= m
	}
}

// hashAddr mixes an address and port with a seed.
func hashAddr(seed uint64, a netip.AddrPort) uint64 {
	b := a.Addr().As16()
	h := mix(seed ^ binary.BigEndian.Uint64(b[:8]))
	h = mix(h ^ binary.BigEndian.Uint64(b[8:]))
	return mix(h ^ uint64(a.Port()))
}

// mix is the finalizer of SplitMix64 (G. L. Steele et al., "Fast Splittable
// Pseudorandom Number Generators", 2014) with its increment.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
