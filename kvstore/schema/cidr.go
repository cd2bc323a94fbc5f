package schema

import "net/netip"

// NewCIDR returns the wire form of a prefix: its first address and a mask of
// the address's length.
func NewCIDR(p netip.Prefix) CIDR {
	return CIDR{IP: p.Masked().Addr().String(), Mask: newMask(p)}
}

// Prefix returns the prefix with its host bits cleared. It returns false unless
// the address parses and the mask is contiguous and of the address's family.
func (c CIDR) Prefix() (netip.Prefix, bool) {
	addr, ok := parseAddr([]byte(c.IP))
	if !ok {
		return netip.Prefix{}, false
	}
	bits, ok := maskBits(c.Mask)
	if !ok || len(c.Mask)*8 != addr.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, bits).Masked(), true
}

// Prefix returns the addresses the entry is about: one, unless it has a mask.
// It returns false where [DecodeIPEntry] would refuse address or mask.
func (e *IPEntry) Prefix() (netip.Prefix, bool) {
	if len(e.Mask) > 0 {
		return CIDR{IP: e.IP, Mask: e.Mask}.Prefix()
	}
	addr, ok := parseAddr([]byte(e.IP))
	if !ok {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, addr.BitLen()), true
}

func newMask(p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// maskBits counts the leading ones of a mask and refuses ones behind a zero.
func maskBits(mask []byte) (bits int, ok bool) {
	for i := range len(mask) * 8 {
		if mask[i/8]&(0x80>>(i%8)) == 0 {
			continue
		}
		if bits != i {
			return 0, false
		}
		bits++
	}
	return bits, len(mask) > 0
}

func is4(p netip.Prefix) bool { return p.Addr().Is4() }

func is6(p netip.Prefix) bool { return p.Addr().Is6() }
