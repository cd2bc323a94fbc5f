package lb_test

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
)

func peers(n int) []netip.AddrPort {
	out := make([]netip.AddrPort, n)
	for i := range out {
		out[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 8080)
	}
	return out
}

func TestMaglevSize(t *testing.T) {
	for n, want := range map[int]uint32{-1: 251, 0: 251, 2: 251, 3: 1021, 10: 1021, 11: 4093, 163: 16381, 164: 65521, 1e6: 65521} {
		if got := lb.MaglevSize(n); got != want {
			t.Errorf("MaglevSize(%d) = %d, want %d", n, got, want)
		}
	}
}

// TestMaglevIsForEver pins the table: nodes of all versions must agree on it.
func TestMaglevIsForEver(t *testing.T) {
	keys := append(peers(9), netip.MustParseAddrPort("[fd00::1]:53"))
	h := fnv.New64a()
	for _, i := range lb.Maglev(keys, []uint32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 1021) {
		fmt.Fprintln(h, i)
	}
	if got := h.Sum64(); got != 0x1150221029b9d41b {
		t.Errorf("the table changed: %#x", got)
	}
}

// TestMaglevShares: every backend has its share of the slots, rounded up or
// down, and the order in which backends are listed does not matter.
func TestMaglevShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := peers(rapid.IntRange(1, 60).Draw(t, "n"))
		weights := rapid.SliceOfN(genWeight, len(keys), len(keys)).Draw(t, "weights")
		m := rapid.SampledFrom([]uint32{251, 1021, 4093}).Draw(t, "m")
		table := lb.Maglev(keys, weights, m)
		checkQuotas(t, table, weights, m)

		order := rapid.Permutation(seq(len(keys))).Draw(t, "order")
		mixedKeys, mixedWeights := make([]netip.AddrPort, len(keys)), make([]uint32, len(keys))
		for to, from := range order {
			mixedKeys[to], mixedWeights[to] = netip.AddrPortFrom(netip.AddrFrom16(keys[from].Addr().As16()), 8080), weights[from]
		}
		for slot, i := range lb.Maglev(mixedKeys, mixedWeights, m) {
			if order[i] != int(table[slot]) {
				t.Fatalf("slot %d depends on the order", slot)
			}
		}
	})
}

func seq(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func checkQuotas(t *rapid.T, table []uint16, weights []uint32, m uint32) {
	if len(table) != int(m) {
		t.Fatalf("%d slots, want %d", len(table), m)
	}
	got, total := make([]uint64, len(weights)), uint64(0)
	for _, i := range table {
		got[i]++
	}
	for _, w := range weights {
		total += uint64(w)
	}
	for i, w := range weights {
		part, whole := uint64(w), total
		if total == 0 {
			part, whole = 1, uint64(len(weights))
		}
		exact := float64(part) * float64(m) / float64(whole)
		if diff := float64(got[i]) - exact; diff > 1 || diff < -1 || part == 0 && got[i] > 0 {
			t.Fatalf("weight %d of %d has %d of %d slots", w, total, got[i], m)
		}
	}
}

// TestMaglevDisruption: removing one backend moves its own slots and at most
// 4 % of the others, with equal and with uneven weights.
func TestMaglevDisruption(t *testing.T) {
	for _, n := range []int{2, 5, 10, 40, 150} {
		keys, m := peers(n), lb.MaglevSize(n)
		for name, weights := range map[string][]uint32{"equal": nil, "uneven": uneven(n)} {
			before := lb.Maglev(keys, weights, m)
			worst := 0.0
			for gone := range min(n, 20) {
				after := lb.Maglev(slices.Delete(slices.Clone(keys), gone, gone+1), without(weights, gone), m)
				moved := 0
				for slot, i := range before {
					now := int(after[slot])
					if now >= gone {
						now++
					}
					if int(i) != gone && int(i) != now {
						moved++
					}
				}
				worst = max(worst, float64(moved)/float64(m))
			}
			t.Logf("%d backends, %s: at most %.2f %% of the slots moved needlessly", n, name, 100*worst)
			if worst > 0.04 {
				t.Errorf("%d backends, %s: %.2f %% of the slots moved needlessly", n, name, 100*worst)
			}
		}
	}
}

func uneven(n int) []uint32 {
	out := make([]uint32, n)
	for i := range out {
		out[i] = uint32(i%5 + 1)
	}
	return out
}

func without(weights []uint32, i int) []uint32 {
	if weights == nil {
		return nil
	}
	return slices.Delete(slices.Clone(weights), i, i+1)
}

func TestMaglevRefuses(t *testing.T) {
	two := peers(2)
	for name, got := range map[string][]uint16{
		"no backends":    lb.Maglev(nil, nil, 251),
		"no prime":       lb.Maglev(two, nil, 252),
		"no size":        lb.Maglev(two, nil, 0),
		"weights":        lb.Maglev(two, []uint32{1}, 251),
		"too many":       lb.Maglev(make([]netip.AddrPort, lb.MaxSlots+1), nil, 251),
		"no weights too": lb.Maglev(two, []uint32{}, 251),
	} {
		if got != nil {
			t.Errorf("%s: got a table", name)
		}
	}
	if got := lb.Maglev(peers(300), nil, 251); len(got) != 251 {
		t.Errorf("more backends than slots: %d slots", len(got))
	}
}

// BenchmarkMaglev1000 builds the tables of a thousand services of ten backends.
func BenchmarkMaglev1000(b *testing.B) {
	keys := peers(10)
	for b.Loop() {
		for range 1000 {
			lb.Maglev(keys, nil, 1021)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/1000-services")
}

// BenchmarkMaglevLargest builds the largest table.
func BenchmarkMaglevLargest(b *testing.B) {
	keys, weights := peers(655), uneven(655)
	for b.Loop() {
		lb.Maglev(keys, weights, 65521)
	}
}
