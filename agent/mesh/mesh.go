package mesh

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Mesh is the content of all clusters. Its methods must not be called
// concurrently. Those that change content collect the names of the services to
// recompute, which [Mesh.Dirty] returns.
type Mesh struct {
	cfg      Config
	clusters map[string]*cluster
	ids      map[uint32]*cluster
	services map[lb.ServiceName]*service
	claims   map[claim][]*service
	dirty    map[lb.ServiceName]struct{}
	work     int // see Work
	worked   int
	special  map[*service]struct{} // that have terms
	words    pool
	codec    schema.SliceCodec

	denied    ranges // that no remote backend may lie in
	pinned    ranges // that policies give to clusters
	expelling bool   // what goes now is the operator's doing

	zone      string       // of our own node
	nodeAddrs []netip.Addr // of our own node that lead to node ports; sorted, never changed in place
	heardNode bool         // they were told, not recalled

	lost map[string]uint32 // seconds out of contact, by cluster
	// ranks are those of SetRanks; never changed, only replaced.
	ranks map[string]uint8

	speaker   *cluster   // whose change is under way
	heard     Heard      // of the change under way
	unsettled []*service // whose slices changed in the Apply under way

	raw        []rawBackend // scratch memory
	all, spare []record
	ends       []int
}

// New returns a Mesh that knows its own cluster and nothing else. cfg must be
// valid ([Config.Validate]).
func New(cfg Config) *Mesh {
	m := &Mesh{
		cfg:      cfg.withDefaults(),
		clusters: map[string]*cluster{},
		ids:      map[uint32]*cluster{},
		services: map[lb.ServiceName]*service{},
		claims:   map[claim][]*service{},
		dirty:    map[lb.ServiceName]struct{}{},
		special:  map[*service]struct{}{},
		words:    newPool(),
	}
	m.denied = newRanges(AlwaysDenied(), cfg.Deny)
	own := &cluster{name: cfg.LocalCluster, id: cfg.LocalID, kind: schema.KindLocalService, local: true, configured: true}
	m.clusters[own.name] = own
	m.ids[own.id] = own
	return m
}

// Dirty returns, sorted, the services whose frontends, policy or backends may
// have changed since the last call. Services that no local frontend exists for
// are not among them.
func (m *Mesh) Dirty() []lb.ServiceName {
	if len(m.dirty) == 0 {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(m.dirty), lb.ServiceName.Compare)
	clear(m.dirty)
	return names
}

// Services returns, sorted, the services that the local cluster has.
func (m *Mesh) Services() []lb.ServiceName {
	var names []lb.ServiceName
	for name, s := range m.services {
		if s.global() {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, lb.ServiceName.Compare)
	return names
}

// Service returns what lb.Merge needs to know of a service, or false if the
// local cluster has no global service of that name; then nothing of it belongs
// into the kernel. The slices are the caller's, except for the backends' Names,
// which are shared and must not be changed, nor must Policy and Lost.
func (m *Mesh) Service(name lb.ServiceName) (lb.Service, bool) {
	s := m.services[name]
	if s == nil || !s.global() {
		return lb.Service{}, false
	}
	out := lb.Service{Name: s.name, Affinity: s.affinity(), Frontends: m.owned(s)}
	m.govern(s, &out)
	n := 0
	for i := range s.parts {
		n += len(s.parts[i].said) + len(s.parts[i].kept) + s.parts[i].inForce()
	}
	out.Backends = make([]lb.Backend, 0, n)
	for i := range s.parts {
		c := s.parts[i].cluster
		s.parts[i].each(func(r *record) { out.Backends = append(out.Backends, m.backend(c, r)) })
	}
	return out, true
}

// owned returns the frontends of s that no other service has a better claim to.
func (m *Mesh) owned(s *service) []lb.Frontend {
	all := s.frontends()
	own := make([]lb.Frontend, 0, len(all))
	for _, f := range all {
		if m.holder(f) == s {
			own = append(own, f)
		}
	}
	return own
}

func (m *Mesh) backend(c *cluster, r *record) lb.Backend {
	return lb.Backend{
		Addr:      netip.AddrPortFrom(netip.AddrFrom16(r.addr).Unmap(), r.port),
		Protocol:  r.proto,
		Names:     m.words.list(r.names),
		Cluster:   c.name,
		ClusterID: uint16(c.id),
		Local:     c.local,
		Here:      r.state&here != 0,
		State:     c.fate(r.state &^ here),
		Zone:      m.words.word(r.zone),
	}
}
