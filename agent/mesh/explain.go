package mesh

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// Share is what one cluster adds to a service.
type Share struct {
	Cluster string
	Local   bool
	State   State
	// Says is true if the cluster has the service, with however many backends.
	Says bool
	// Backends counts what it says; Provisional what is in use from before a
	// reconnect or restart until it is synced; Held what it withdrew and the
	// brake keeps in use.
	Backends, Provisional, Held int
	// Unshared is true of our own cluster if the others do not get its backends.
	Unshared bool
	// Heard is of the latest record that counts.
	Heard Heard
}

// Shares returns what each cluster adds to a service, the own one first and the
// others by name; clusters that have no part in it are not among them.
func (m *Mesh) Shares(name lb.ServiceName) []Share {
	s := m.services[name]
	if s == nil {
		return nil
	}
	var out []Share
	for i := range s.parts {
		p := &s.parts[i]
		out = append(out, Share{
			Cluster: p.cluster.name, Local: p.cluster.local, State: p.cluster.state, Says: p.present,
			Backends: len(p.said), Provisional: p.provisional(), Held: p.inForce(),
			Unshared: p.cluster.local && s.said != nil && s.said.unshared, Heard: p.heard,
		})
	}
	slices.SortFunc(out, func(a, b Share) int {
		if a.Local != b.Local {
			if a.Local {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Cluster, b.Cluster)
	})
	return out
}

// Held returns the backends of a service that are in use only because the brake
// holds them.
func (m *Mesh) Held(name lb.ServiceName) []lb.Backend {
	s := m.services[name]
	if s == nil {
		return nil
	}
	var out []lb.Backend
	for i := range s.parts {
		p := &s.parts[i]
		for j := range p.inForce() {
			out = append(out, m.backend(p.cluster, &p.brake.held[j]))
		}
	}
	return out
}

// Provisional returns the backends of a service that are in use from before a
// reconnect or a restart and that their cluster has not said again.
func (m *Mesh) Provisional(name lb.ServiceName) []lb.Backend {
	s := m.services[name]
	if s == nil {
		return nil
	}
	var out []lb.Backend
	for i := range s.parts {
		p := &s.parts[i]
		for _, r := range difference(p.kept, p.said) {
			out = append(out, m.backend(p.cluster, &r))
		}
	}
	return out
}

// Restricted reports whether the own cluster limits which clients may come in to a
// service from outside, and therefore tells us none of its ways from there.
func (m *Mesh) Restricted(name lb.ServiceName) bool {
	s := m.services[name]
	return s != nil && s.said != nil && s.said.limited
}

// Contested returns the frontends of a service that another service, whose name
// comes first, has as well and therefore got, with that service's name.
func (m *Mesh) Contested(name lb.ServiceName) map[lb.Frontend]lb.ServiceName {
	s := m.services[name]
	if s == nil {
		return nil
	}
	out := map[lb.Frontend]lb.ServiceName{}
	for _, f := range s.frontends() {
		if holder := m.holder(f); holder != nil && holder != s {
			out[f] = holder.name
		}
	}
	return out
}

// Find returns, sorted, the services that have an address, or one port of it if
// port is not 0, as a frontend or a backend. Services that the own cluster does
// not have are among them. It looks at everything that is known.
func (m *Mesh) Find(a netip.Addr, port uint16) []lb.ServiceName {
	a = a.Unmap()
	wanted := a.As16()
	var out []lb.ServiceName
	for name, s := range m.services {
		found := slices.ContainsFunc(s.frontends(), func(f lb.Frontend) bool {
			return f.Addr.Addr() == a && (port == 0 || f.Addr.Port() == port)
		})
		for i := range s.parts {
			s.parts[i].each(func(r *record) { found = found || r.addr == wanted && (port == 0 || r.port == port) })
		}
		if found {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, lb.ServiceName.Compare)
	return out
}
