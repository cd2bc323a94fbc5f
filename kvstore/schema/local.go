package schema

import (
	"cmp"
	"net/netip"
)

// l4Addr is what identifies a frontend or backend of a local service.
type l4Addr struct {
	addr     netip.Addr
	port     uint16
	protocol Protocol
}

func (f LocalFrontend) l4() l4Addr { return l4Addr{f.Address, f.Port, f.Protocol} }

// l4 has no address: a node port is one of all nodes.
func (p LocalNodePort) l4() l4Addr { return l4Addr{port: p.Port, protocol: p.Protocol} }

func (b LocalBackend) l4() l4Addr { return l4Addr{b.Address, b.Port, b.Protocol} }

func (a l4Addr) compare(b l4Addr) int {
	return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.port, b.port), cmp.Compare(a.protocol, b.protocol))
}

func (a l4Addr) String() string {
	if !a.addr.IsValid() {
		return decimal(uint32(a.port)) + "/" + string(a.protocol)
	}
	return netip.AddrPortFrom(a.addr, a.port).String() + "/" + string(a.protocol)
}

// checkSorted refuses a sorted list with equal neighbours, too many addresses
// or too many entries of one.
func checkSorted[T any](d *localReader, field string, list []T, l4 func(T) l4Addr, limit int) {
	addrs, ports := 0, 0
	for i := range list {
		at := l4(list[i])
		if i > 0 && at.addr == l4(list[i-1]).addr {
			ports++
			if at == l4(list[i-1]) {
				d.failAt(field, at.String(), "address, port and protocol may occur once")
			}
		} else {
			addrs, ports = addrs+1, 1
		}
		if addrs > limit || ports > d.limits.MaxPorts {
			d.failAt(field, at.String(), "at most "+decimal(uint32(limit))+" addresses of "+
				decimal(uint32(d.limits.MaxPorts))+" ports are accepted")
		}
	}
}
