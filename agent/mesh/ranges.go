package mesh

import (
	"cmp"
	"net/netip"
	"slices"
)

// ranges is a set of addresses: prefixes in order, none within another. Two
// prefixes are disjoint or one holds the other, so nothing else is needed to
// find the one around an address by bisection.
type ranges []netip.Prefix

// newRanges returns the union of lists. IPv4-mapped prefixes become IPv4 ones,
// since addresses are compared unmapped.
func newRanges(lists ...[]netip.Prefix) ranges {
	var all []netip.Prefix
	for _, list := range lists {
		for _, p := range list {
			if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
				p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
			}
			all = append(all, p.Masked())
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out ranges
	for _, p := range all {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// find returns the range around an unmapped address.
func (r ranges) find(a netip.Addr) (netip.Prefix, bool) {
	n, exact := slices.BinarySearchFunc(r, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	if exact {
		return r[n], true
	}
	if n == 0 || !r[n-1].Contains(a) {
		return netip.Prefix{}, false
	}
	return r[n-1], true
}

// has reports whether an address, mapped or not, lies in r.
func (r ranges) has(a netip.Addr) bool {
	_, ok := r.find(a.Unmap())
	return ok
}

// minus returns the ranges of r that are not wholly in o.
func (r ranges) minus(o ranges) ranges {
	var out ranges
	for _, p := range r {
		if q, ok := o.find(p.Addr()); !ok || q.Bits() > p.Bits() {
			out = append(out, p)
		}
	}
	return out
}
