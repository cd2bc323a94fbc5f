package mesh

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// nodePort is a port that leads to a service on every node.
type nodePort struct {
	port  uint16
	proto lb.Protocol
	name  string
}

// nodePortsOf leaves out SCTP: a node port is rarely the backends' port, and no
// program can change ports of SCTP.
func nodePortsOf(v *schema.LocalService) []nodePort {
	var out []nodePort
	for _, p := range v.NodePorts {
		if proto := protocol(p.Protocol); proto != lb.SCTP {
			out = append(out, nodePort{p.Port, proto, strings.Clone(p.PortName)})
		}
	}
	return out
}

// SetNodeAddresses says which addresses of our own node lead to the node ports of
// services. Before it is called first they are those that had such frontends when
// the content was restored. Services with node ports become dirty if that changes
// anything.
func (m *Mesh) SetNodeAddresses(addrs []netip.Addr) {
	next := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		next[i] = a.Unmap()
	}
	slices.SortFunc(next, netip.Addr.Compare)
	next = slices.Compact(next)
	m.heardNode = true
	if slices.Equal(m.nodeAddrs, next) {
		return
	}
	m.nodeAddrs = next
	for _, s := range m.services {
		if s.said != nil && len(s.said.ports) > 0 {
			f := *s.said
			m.expand(&f)
			m.reface(s, func() { s.said = &f })
		}
	}
}

// recallNodeAddress takes the address of a restored frontend for one of our node
// until that is known.
func (m *Mesh) recallNodeAddress(f lb.Frontend) {
	a := f.Addr.Addr()
	if m.heardNode || f.Kind != lb.KindNodePort || f.Scope != lb.ScopeAny {
		return
	}
	if i, known := slices.BinarySearchFunc(m.nodeAddrs, a, netip.Addr.Compare); !known {
		m.nodeAddrs = slices.Insert(slices.Clone(m.nodeAddrs), i, a)
	}
}

// expand makes the frontends of f: the addresses that were said, and the node
// ports at this node's addresses, of the families that the service has.
func (m *Mesh) expand(f *face) {
	f.frontends = slices.Clone(f.fixed)
	for _, p := range f.ports {
		for _, a := range m.nodeAddrs {
			if f.has(a) {
				f.frontends = append(f.frontends, f.at(p, a, lb.ScopeAny)...)
			}
		}
		for _, a := range loopbacks {
			if f.has(a) {
				f.frontends = append(f.frontends, f.at(p, a, lb.ScopeHost)...)
			}
		}
	}
	f.frontends = canonicalFrontends(f.frontends)
}

// loopbacks are by what processes on a node reach node ports too.
var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// has reports whether the service has a cluster IP of the family of a.
func (f *face) has(a netip.Addr) bool {
	return slices.ContainsFunc(f.fixed, func(o lb.Frontend) bool {
		return o.Kind == lb.KindClusterIP && o.Addr.Addr().Is4() == a.Is4()
	})
}

func (f *face) at(p nodePort, a netip.Addr, scope lb.Scope) []lb.Frontend {
	one := lb.Frontend{Addr: netip.AddrPortFrom(a, p.port), Protocol: p.proto, PortName: p.name, Kind: lb.KindNodePort, Scope: scope}
	return f.outside([]lb.Frontend{one})
}

// outside adds to each frontend what takes its place for clients outside.
func (f *face) outside(in []lb.Frontend) []lb.Frontend {
	if !f.onNode {
		return in
	}
	for _, one := range in {
		if one.Scope == lb.ScopeAny {
			one.Scope = lb.ScopeOutside
			in = append(in, one)
		}
	}
	return in
}
