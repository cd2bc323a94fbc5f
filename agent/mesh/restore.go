package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// Restored is one frontend as the kernel has it when the agent starts, with
// every backend it knew, selected or not. Backends carry no names.
type Restored struct {
	Service  lb.ServiceName
	Frontend lb.Frontend
	Affinity lb.Affinity
	Backends []lb.Backend
	// SessionAffinity, Consistent, OnWithdraw and Drain are those of the table.
	SessionAffinity uint32
	Consistent      bool
	OnWithdraw      lb.OnWithdraw
	Drain           uint32
	// Policy are the service's annotations, as the own cluster last wrote them,
	// if they are remembered besides the kernel; then all but SessionAffinity
	// follow from them.
	Policy map[string]string
}

// Restore takes over what a previous life left in the kernel. It is provisional
// content of the clusters it came from: each cluster's share stays in force
// beside what the cluster says, until it is synced or removed. That holds for
// the own cluster too, whose share includes the frontends.
//
// Call it once, before the first Connected. Nothing becomes dirty by it: the
// kernel has this content. Clusters that are not configured (yet) appear in the
// status as "removed"; AddCluster adopts them, RemoveCluster drops them.
func (m *Mesh) Restore(restored []Restored) {
	raw := map[partKey][]rawBackend{}
	for i := range restored {
		r := &restored[i]
		m.restoreFrontend(r)
		for j := range r.Backends {
			m.collect(raw, r, &r.Backends[j])
		}
	}
	for k, group := range raw {
		s := m.ensure(k.name)
		s.nameUnlisted(group)
		records, _ := m.records(group, anyNames)
		s.ensurePart(k.cluster).setKept(records)
	}
	for _, c := range m.clusters {
		if c.state != Synced {
			c.state = c.resting()
		}
	}
	clear(m.dirty)
	m.enforcePins()
}

type partKey struct {
	name    lb.ServiceName
	cluster *cluster
}

func (m *Mesh) restoreFrontend(r *Restored) {
	s := m.ensure(r.Service)
	m.reface(s, func() {
		f := face{affinity: r.Affinity, terms: restoredTerms(r)}
		if s.kept != nil {
			f.frontends = slices.Clone(s.kept.frontends)
		}
		fe := r.Frontend
		fe.Addr = netip.AddrPortFrom(fe.Addr.Addr().Unmap(), fe.Addr.Port())
		fe.PortName = strings.Clone(fe.PortName)
		m.recallNodeAddress(fe)
		f.frontends = canonicalFrontends(append(f.frontends, fe))
		s.kept = &f
	})
}

// collect files one restored backend under its cluster. The kernel does not
// know the backend's port names, but which frontends it answers for: the name
// of the frontend's port makes it match that one and no other.
func (m *Mesh) collect(raw map[partKey][]rawBackend, r *Restored, b *lb.Backend) {
	k := partKey{r.Service, m.restoredCluster(b)}
	rec := record{addr: b.Addr.Addr().As16(), port: b.Addr.Port(), proto: b.Protocol, state: k.cluster.revive(b.State &^ here)}
	if b.Here && k.cluster.local {
		rec.state |= here
	}
	raw[k] = append(raw[k], rawBackend{record: rec, name: r.Frontend.PortName})
}

// unlisted is no port name. It makes a restored backend answer for unnamed
// ports only.
const unlisted = "?"

// nameUnlisted keeps backends that only an unnamed port listed from answering
// for the named ports beside it, which could have listed them and did not.
// Kubernetes lets no port of several go without a name, but not every source
// of services is Kubernetes.
func (s *service) nameUnlisted(group []rawBackend) {
	for i := range group {
		if group[i].name == "" && s.kept != nil && slices.ContainsFunc(s.kept.frontends, func(f lb.Frontend) bool {
			return f.PortName != "" && f.Protocol == group[i].proto && f.Addr.Addr().Is4() == netip.AddrFrom16(group[i].addr).Is4In6()
		}) {
			group[i].name = unlisted
		}
	}
}

// restoredCluster finds the cluster a restored backend belongs to, or makes one
// that is not configured. It holds its id like one that was connected.
func (m *Mesh) restoredCluster(b *lb.Backend) *cluster {
	name := b.Cluster
	if b.Local || name == m.cfg.LocalCluster {
		return m.clusters[m.cfg.LocalCluster]
	}
	if name == "" { // the name was never written: no cluster can adopt it
		name = fmt.Sprintf("unknown-%d", b.ClusterID)
	}
	c := m.clusters[name]
	if c == nil {
		c = &cluster{name: strings.Clone(name), state: Removed}
		m.clusters[c.name] = c
	}
	if c.id == 0 && m.ids[uint32(b.ClusterID)] == nil {
		c.id = uint32(b.ClusterID)
		m.ids[c.id] = c
	}
	return c
}
