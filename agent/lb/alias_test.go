package lb_test

import (
	"fmt"
	"math/big"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// TestAliasIsExact sums the probability of each weight over all slots with
// exact arithmetic: the difference from its share is below 2^-32.
func TestAliasIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(genWeight, 1, 300).Draw(t, "weights")
		slots := lb.Alias(weights)
		if len(slots) != len(weights) {
			t.Fatalf("%d slots for %d weights", len(slots), len(weights))
		}
		checkAlias(t, weights, slots)
	})
}

var genWeight = rapid.OneOf(rapid.SampledFrom([]uint32{0, 1, 2, 1<<32 - 1}), rapid.Uint32Range(0, 20), rapid.Uint32())

func checkAlias(t rapid.TB, weights []uint32, slots []lb.AliasSlot) {
	n := int64(len(slots))
	got := make([]*big.Int, n) // in units of 2^-32 / n
	for i := range got {
		got[i] = new(big.Int)
	}
	for i, s := range slots {
		if int(s.Alias) == i {
			got[i].Add(got[i], big.NewInt(1<<32))
			continue
		}
		got[i].Add(got[i], big.NewInt(int64(s.Threshold)))
		got[s.Alias].Add(got[s.Alias], big.NewInt(1<<32-int64(s.Threshold)))
	}
	var total int64
	for _, w := range weights {
		total += int64(w)
	}
	for i, w := range weights {
		checkShare(t, i, got[i], int64(w), total, n)
	}
}

// checkShare compares got/(2^32 n) with w/total, or 1/n if total is 0. Rounding
// n thresholds by half a unit each moves a share by at most n/2 units.
func checkShare(t rapid.TB, i int, got *big.Int, w, total, n int64) {
	if total == 0 {
		w, total = 1, n
	}
	off := new(big.Rat).Sub(new(big.Rat).SetFrac(got, big.NewInt(n)), new(big.Rat).SetFrac(new(big.Int).Mul(big.NewInt(w), big.NewInt(1<<32)), big.NewInt(total)))
	if off.Abs(off).Cmp(big.NewRat(1, 1)) > 0 || w == 0 && got.Sign() != 0 {
		t.Fatalf("weight %d of %d at %d has %s of %d * 2^32", w, total, i, got, n)
	}
}

func TestAliasSizes(t *testing.T) {
	if got := lb.Alias(nil); got != nil {
		t.Errorf("no weights give %v", got)
	}
	if got := lb.Alias(make([]uint32, lb.MaxSlots+1)); got != nil {
		t.Errorf("%d weights give %d slots", lb.MaxSlots+1, len(got))
	}
	most := slices.Repeat([]uint32{1<<32 - 1}, lb.MaxSlots)
	most[7] = 1
	checkAlias(t, most, lb.Alias(most))
	for i, s := range lb.Alias([]uint32{5, 5, 5}) {
		if s != (lb.AliasSlot{Threshold: 1<<32 - 1, Alias: uint16(i)}) {
			t.Errorf("equal weights give %v at %d", s, i)
		}
	}
}

func BenchmarkAlias(b *testing.B) {
	for _, n := range []int{10, 1000, lb.MaxSlots} {
		weights := make([]uint32, n)
		for i := range weights {
			weights[i] = uint32(i%7 + 1)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				lb.Alias(weights)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/backend")
		})
	}
}
