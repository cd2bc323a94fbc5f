package lb

import "math/bits"

// MaxSlots is how many backends one alias or Maglev table can name.
const MaxSlots = 1<<16 - 1

// AliasSlot is one slot of an alias table. A reader picks a slot i uniformly,
// draws 32 uniform bits and takes
//
//	draw < Threshold ? i : Alias
//
// A slot that always keeps has Alias == i, so its Threshold, 0xffffffff, does
// not matter; a Threshold of 0 never keeps.
type AliasSlot struct {
	Threshold uint32
	Alias     uint16
}

// Alias builds the table that draws i with probability weights[i] / sum of
// weights in constant time (M. D. Vose, "A Linear Algorithm for Generating
// Random Numbers with a Given Distribution", 1991). It works on integers:
// nothing drifts, only each threshold is rounded, by at most 2^-32 of its slot.
// A weight of 0 is never drawn, unless all are 0: then all are equal.
//
// The result has one slot per weight and depends on the weights alone. It is
// nil for no weights or more than [MaxSlots].
func Alias(weights []uint32) []AliasSlot {
	n := len(weights)
	if n == 0 || n > MaxSlots {
		return nil
	}
	slots := make([]AliasSlot, n)
	for i := range slots {
		slots[i] = AliasSlot{Threshold: 1<<32 - 1, Alias: uint16(i)}
	}
	if !even(weights) {
		fillAlias(slots, weights)
	}
	return slots
}

// even reports whether all weights are the same.
func even(weights []uint32) bool {
	for _, w := range weights[1:] {
		if w != weights[0] {
			return false
		}
	}
	return true
}

// fillAlias pairs each slot that has less than its share with one that has
// more. mass[i] is weights[i] * n, at most 2^48, and a full slot is the sum of
// the weights, so that all comparisons are exact. small and large are two
// stacks that grow towards each other.
func fillAlias(slots []AliasSlot, weights []uint32) {
	n := len(weights)
	mass, stack := make([]uint64, n), make([]uint16, n)
	var full uint64
	for _, w := range weights {
		full += uint64(w)
	}
	small, large := 0, n
	push := func(i uint16) {
		if mass[i] < full {
			stack[small] = i
			small++
		} else if mass[i] > full {
			large--
			stack[large] = i
		}
	}
	for i, w := range weights {
		mass[i] = uint64(w) * uint64(n)
		push(uint16(i))
	}
	for small > 0 {
		small--
		from, to := stack[small], stack[large]
		large++
		slots[from] = AliasSlot{Threshold: threshold(mass[from], full), Alias: to}
		mass[to] -= full - mass[from]
		push(to)
	}
}

// threshold is 2^32 * part / whole, rounded to the nearest, for part < whole.
func threshold(part, whole uint64) uint32 {
	hi, lo := bits.Mul64(part, 1<<32)
	lo, carry := bits.Add64(lo, whole/2, 0)
	q, _ := bits.Div64(hi+carry, lo, whole)
	return uint32(min(q, 1<<32-1))
}
