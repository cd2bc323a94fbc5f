package mesh

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestRangesAgreeWithLists: the sorted form finds what a walk over the list
// finds, whatever is nested or repeated in it.
func TestRangesAgreeWithLists(t *testing.T) {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		b := [4]byte{10, rapid.Byte().Draw(t, "b") & 3, 0, rapid.Byte().Draw(t, "d") & 7}
		if rapid.IntRange(0, 3).Draw(t, "six") == 0 {
			return netip.AddrFrom16([16]byte{0xfd, b[1], 15: b[3]})
		}
		return netip.AddrFrom4(b)
	})
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := addr.Draw(t, "address")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
	})
	rapid.Check(t, func(t *rapid.T) {
		list, other := rapid.SliceOfN(prefix, 0, 6).Draw(t, "list"), rapid.SliceOfN(prefix, 0, 6).Draw(t, "other")
		r, o := newRanges(list[:len(list)/2], list[len(list)/2:]), newRanges(other)
		a := addr.Draw(t, "looked up")
		in := func(list []netip.Prefix) bool {
			return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		if r.has(a) != in(list) || r.has(netip.AddrFrom16(a.As16())) != in(list) {
			t.Fatalf("%s in %v: %v", a, r, r.has(a))
		}
		if in(list) && !in(other) && !r.minus(o).has(a) {
			t.Fatalf("%v minus %v is %v and lacks %s", r, o, r.minus(o), a)
		}
		if in(list) && slices.Equal(r, o) && len(r.minus(o)) > 0 {
			t.Fatalf("%v minus itself is %v", r, r.minus(o))
		}
	})
}
