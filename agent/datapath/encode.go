package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// keyOf is the map key of a frontend.
func keyOf(f lb.Frontend) layout.FrontendKey {
	return layout.FrontendKey{Addr: f.Addr.Addr().As16(), Port: portBytes(f.Addr.Port()), Proto: uint8(f.Protocol), Scope: uint8(f.Scope)}
}

func portBytes(p uint16) (b [2]byte) {
	binary.BigEndian.PutUint16(b[:], p)
	return b
}

func addrPort(addr [16]byte, port [2]byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), binary.BigEndian.Uint16(port[:]))
}

// metaOf is the meta record of a frontend. Its error names a field that does
// not fit; Kubernetes allows no such name.
func metaOf(t *lb.FrontendTable) (layout.Meta, error) {
	m := layout.Meta{Key: keyOf(t.Frontend), Kind: uint8(t.Frontend.Kind)}
	ok := fill(&m.Namespace, t.Service.Namespace) && fill(&m.Name, t.Service.Name) && fill(&m.PortName, t.Frontend.PortName)
	if !ok {
		return m, fmt.Errorf("encode frontend %s, port %q of %s: namespace, name and port name must have at most %d bytes each, none of them 0",
			t.Frontend.Addr, t.Frontend.PortName, t.Service, len(m.Name)-1)
	}
	return m, nil
}

// fill copies s into a NUL-padded field, which it must leave room in.
func fill(field *[64]byte, s string) bool {
	copy(field[:], s)
	return len(s) < len(field) && strings.IndexByte(s, 0) < 0
}

// text is the string in a NUL-padded field.
func text(field []byte) string {
	if i := bytes.IndexByte(field, 0); i >= 0 {
		field = field[:i]
	}
	return string(field)
}

func serviceOf(m *layout.Meta) lb.ServiceName {
	return lb.ServiceName{Namespace: text(m.Namespace[:]), Name: text(m.Name[:])}
}

// encodeBackends appends t's backends to out, in the table's order, for the
// frontend with number id, and counts the selected ones.
func encodeBackends(out []layout.Backend, t *lb.FrontendTable, id uint32) ([]layout.Backend, uint16, error) {
	selected := 0
	for i := range t.Backends {
		c := &t.Backends[i]
		if c.Selected {
			selected++
		}
		out = append(out, encodeBackend(c, id))
	}
	if selected > math.MaxUint16 {
		return nil, 0, fmt.Errorf("encode frontend %s of %s: it has %d selected backends, at most %d fit", t.Frontend.Addr, t.Service, selected, math.MaxUint16)
	}
	return out, uint16(selected), nil
}

func encodeBackend(c *lb.Choice, id uint32) layout.Backend {
	b := layout.Backend{
		Addr: c.Addr.Addr().As16(), Port: portBytes(c.Addr.Port()),
		Cluster: c.ClusterID, Frontend: id, State: uint8(c.State),
	}
	if c.Local {
		b.Flags |= layout.FlagLocal
	}
	if c.Here {
		b.Flags |= layout.FlagHere
	}
	if c.Withdrawn {
		b.Flags |= layout.FlagWithdrawn
	}
	return b
}

// weights are those of the selected backends, nil if they are even.
func weights(t *lb.FrontendTable, selected uint16) []uint32 {
	if t.Even() {
		return nil
	}
	out := make([]uint32, selected)
	for i := range out {
		out[i] = t.Backends[i].Weight
	}
	return out
}

// encodeWeights makes an alias table of the records that weights belong to. An
// alias is written as a distance, so that a slot without one is zero.
func encodeWeights(backends []layout.Backend, weights []uint32) {
	for i, s := range lb.Alias(weights) {
		if s.Alias != uint16(i) {
			backends[i].Alias, backends[i].Threshold = s.Alias-uint16(i), s.Threshold
		}
	}
}

// encodeTable is the consistent-hashing table of the selected records.
func encodeTable(selected []layout.Backend, weights []uint32) []uint16 {
	addrs := make([]netip.AddrPort, len(selected))
	for i := range selected {
		addrs[i] = addrPort(selected[i].Addr, selected[i].Port)
	}
	return lb.Maglev(addrs, weights, lb.MaglevSize(len(addrs)))
}

// decodeBackend is the inverse; the kernel knows neither names nor zone.
func decodeBackend(b *layout.Backend, proto uint8, clusters map[uint16]layout.Cluster) lb.Backend {
	c := clusters[b.Cluster]
	return lb.Backend{
		Addr: addrPort(b.Addr, b.Port), Protocol: lb.Protocol(proto),
		Cluster: text(c.Name[:]), ClusterID: b.Cluster,
		Local: b.Flags&layout.FlagLocal != 0, Here: b.Flags&layout.FlagHere != 0, State: lb.State(b.State),
	}
}

func clusterRecord(name string, state uint32) layout.Cluster {
	c := layout.Cluster{State: state}
	copy(c.Name[:len(c.Name)-1], name)
	return c
}
