package mesh

import (
	"net/netip"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// SetDead says whether a remote cluster was found dead. While it is, its
// backends that could serve count as [lb.Quarantined]: services that have
// others are without them, and the rest keeps what it has. Nothing else
// changes: what the cluster says is followed as before. Services become dirty
// if that is new. It does nothing for the own cluster.
func (m *Mesh) SetDead(name string, dead bool) {
	c := m.clusters[name]
	if c == nil || c.local || c.dead == dead {
		return
	}
	c.dead = dead
	for _, s := range m.services {
		if p := s.part(c); p != nil {
			m.touch(s)
		}
	}
}

// fate is the state that a backend of the cluster has in a service.
func (c *cluster) fate(said lb.State) lb.State {
	if c.dead && (said == lb.Active || said == lb.Terminating) {
		return lb.Quarantined
	}
	return said
}

// revive undoes fate for a backend that the kernel remembers: it was in use, and
// its cluster was dead.
func (c *cluster) revive(known lb.State) lb.State {
	if c.local || known != lb.Quarantined {
		return known
	}
	c.dead = true
	return lb.Active
}

// Sample returns up to n addresses of TCP backends that a remote cluster offers
// now for services that the own cluster has too, each once. Which ones, and in
// which order, is different each time: the order of a Go map decides. It is the
// one answer that does not depend on the content alone.
func (m *Mesh) Sample(name string, n int) []netip.AddrPort {
	c := m.clusters[name]
	if c == nil {
		return nil
	}
	seen := map[netip.AddrPort]bool{}
	var out []netip.AddrPort
	for _, s := range m.services {
		p := s.part(c)
		if p == nil || !s.global() {
			continue
		}
		p.each(func(r *record) {
			if r.proto != lb.TCP || r.state != lb.Active || len(out) >= n {
				return
			}
			if a := netip.AddrPortFrom(netip.AddrFrom16(r.addr).Unmap(), r.port); !seen[a] {
				seen[a] = true
				out = append(out, a)
			}
		})
		if len(out) >= n {
			break
		}
	}
	return out
}
