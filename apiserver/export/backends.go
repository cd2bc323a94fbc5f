package export

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// meshManaged marks slices that hold backends of other clusters. Exporting
// them would pass one cluster's backends off as another's.
const meshManaged = "endpointslice-mesh-controller.cilium.io"

func (e *Exporter) sortedSlices(service name) []*discoveryv1.EndpointSlice {
	keys := slices.SortedFunc(maps.Keys(e.slicesOf[service]), compareNames)
	var sorted []*discoveryv1.EndpointSlice
	for _, key := range keys {
		if s := e.slices[key]; s.Labels[discoveryv1.LabelManagedBy] != meshManaged {
			sorted = append(sorted, s)
		}
	}
	return sorted
}

// socket is an address and a port.
type socket struct {
	address  netip.Addr
	port     uint16
	protocol schema.Protocol
}

// merge joins the slices of one service. An address that occurs in several
// slices has the ports of all of them, where Cilium keeps those of the slice
// it happened to read last. Of contradictions the slice that is first by name
// wins.
type merge struct {
	backends  map[netip.Addr]schema.PortMap
	hostnames map[netip.Addr]string
	zones     map[netip.Addr]schema.Zone
	local     map[socket]*schema.LocalBackend
	findings  *findings
}

func newMerge(f *findings) *merge {
	return &merge{
		backends: map[netip.Addr]schema.PortMap{}, hostnames: map[netip.Addr]string{},
		zones: map[netip.Addr]schema.Zone{}, local: map[socket]*schema.LocalBackend{}, findings: f,
	}
}

func (m *merge) add(s *discoveryv1.EndpointSlice) {
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return
	}
	ports := slicePorts(s, m.findings)
	for i := range s.Endpoints {
		for _, text := range s.Endpoints[i].Addresses {
			if a, ok := parseAddress(text, "endpoint address", m.findings); ok && m.fits(a, s) {
				m.addEndpoint(a, &s.Endpoints[i], ports)
			}
		}
	}
}

func (m *merge) fits(a netip.Addr, s *discoveryv1.EndpointSlice) bool {
	ok := s.AddressType == "" || a.Is4() == (s.AddressType == discoveryv1.AddressTypeIPv4)
	if !ok {
		m.findings.add(InvalidAddress, fmt.Sprintf("endpoint address %q is not of slice %s's addressType %s; correct one of them", a, s.Name, s.AddressType))
	}
	return ok
}

// namedPort is one port of a slice.
type namedPort struct {
	name string
	l4   schema.L4
}

// slicePorts leaves out ports without a number, which mean "all ports".
func slicePorts(s *discoveryv1.EndpointSlice, f *findings) []namedPort {
	var ports []namedPort
	for _, p := range s.Ports {
		if p.Port == nil {
			continue
		}
		if l4, ok := parsePort(*p.Port, deref(p.Protocol), f); ok {
			ports = append(ports, namedPort{deref(p.Name), l4})
		}
	}
	return ports
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// conditions follow the API's contract: a missing ready means ready, a missing
// serving means the same as ready.
func conditions(c discoveryv1.EndpointConditions) (ready, serving, terminating bool) {
	ready = c.Ready == nil || *c.Ready
	serving = ready
	if c.Serving != nil {
		serving = *c.Serving
	}
	return ready, serving, deref(c.Terminating)
}

// addEndpoint adds one address. Others see it if it is ready or still serving,
// so that a terminating backend keeps its connections; the cluster's own
// agents see it in any case, with its state.
func (m *merge) addEndpoint(a netip.Addr, ep *discoveryv1.Endpoint, ports []namedPort) {
	ready, serving, _ := conditions(ep.Conditions)
	if ready || serving {
		m.addPublic(a, ep, ports)
	}
	for _, p := range ports {
		m.addLocal(socket{a, p.l4.Port, p.l4.Protocol}, p.name, ep)
	}
}

func (m *merge) addPublic(a netip.Addr, ep *discoveryv1.Endpoint, ports []namedPort) {
	if m.backends[a] == nil {
		m.backends[a] = schema.PortMap{}
	}
	for _, p := range ports {
		m.addPort(a, p)
	}
	if _, known := m.hostnames[a]; !known && deref(ep.Hostname) != "" {
		m.hostnames[a] = *ep.Hostname
	}
	if _, known := m.zones[a]; !known && deref(ep.Zone) != "" {
		m.zones[a] = zoneOf(ep)
	}
}

func (m *merge) addPort(a netip.Addr, p namedPort) {
	old, known := m.backends[a][p.name]
	if !known {
		m.backends[a][p.name] = p.l4
		return
	}
	if old != p.l4 {
		m.findings.add(PortConflict, fmt.Sprintf("address %s has port name %q for %d and %d, others see %d only; use two names",
			a, p.name, old.Port, p.l4.Port, old.Port))
	}
}

func zoneOf(ep *discoveryv1.Endpoint) schema.Zone {
	zone := schema.Zone{Zone: *ep.Zone, ForZones: []schema.ForZone{}} // Cilium writes no null here
	for _, hint := range forZones(ep) {
		zone.ForZones = append(zone.ForZones, schema.ForZone{Name: hint})
	}
	return zone
}

func forZones(ep *discoveryv1.Endpoint) []string {
	if ep.Hints == nil {
		return nil
	}
	var zones []string
	for _, z := range ep.Hints.ForZones {
		zones = append(zones, z.Name)
	}
	return zones
}

// addLocal joins what several slices or port names say of one socket: it is
// ready or serving if any says so, terminating only if all do.
func (m *merge) addLocal(s socket, portName string, ep *discoveryv1.Endpoint) {
	ready, serving, terminating := conditions(ep.Conditions)
	b := m.local[s]
	if b == nil {
		b = &schema.LocalBackend{Address: s.address, Port: s.port, Protocol: s.protocol, Terminating: true}
		m.local[s] = b
	}
	b.Ready, b.Serving, b.Terminating = b.Ready || ready, b.Serving || serving, b.Terminating && terminating
	b.Zone, b.Node = cmp.Or(b.Zone, deref(ep.Zone)), cmp.Or(b.Node, deref(ep.NodeName))
	if b.ForZones == nil {
		b.ForZones = forZones(ep)
	}
	if portName != "" && !slices.Contains(b.PortNames, portName) {
		b.PortNames = append(b.PortNames, portName)
	}
}

func (m *merge) localBackends() []schema.LocalBackend {
	backends := make([]schema.LocalBackend, 0, len(m.local))
	for _, b := range m.local {
		slices.Sort(b.PortNames)
		backends = append(backends, *b)
	}
	sortBackends(backends)
	return backends
}

func sortBackends(backends []schema.LocalBackend) {
	slices.SortFunc(backends, func(a, b schema.LocalBackend) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
}
