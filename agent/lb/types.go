package lb

import "net/netip"

// ServiceName identifies a Kubernetes service within a cluster; a global
// service has the same name in every cluster.
type ServiceName struct {
	Namespace string
	Name      string
}

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols that services use.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Affinity says which side's backends a service prefers.
type Affinity uint8

// The values of the service.cilium.io/affinity annotation.
const (
	AffinityNone Affinity = iota
	AffinityLocal
	AffinityRemote
)

// State is what is known of a backend's readiness.
type State uint8

// Active takes new connections; Terminating still serves but is going away and
// is used only while nothing active is left; NotReady serves nobody. Quarantined
// claims to be ready but was seen to fail: it is used only while nothing else is
// left. Maintenance was taken out by an operator and is never used. The numbers
// are part of the map layout.
const (
	Active State = iota
	Terminating
	NotReady
	Quarantined
	Maintenance
)

// Kind says what the address of a frontend is.
type Kind uint8

// The kinds of frontends: a cluster IP, an external IP or one of a load balancer,
// an address of this node with a port that the service has on every node. The
// numbers are part of the map layout.
const (
	KindClusterIP Kind = iota
	KindExternal
	KindNodePort
)

// Scope says whose connections a frontend is for.
type Scope uint8

// A frontend of ScopeAny is for the sockets of this node and for packets that pass
// its devices. One of ScopeOutside takes its place for packets of clients outside,
// which then get backends on this node only and keep their address; it never is
// without the other. One of ScopeHost is for sockets in the node's own network
// namespace. The numbers are part of the map layout.
const (
	ScopeAny Scope = iota
	ScopeOutside
	ScopeHost
)

// Frontend is one address that clients connect to, of the local service and one
// of its ports. Address with port, protocol and scope identify it.
type Frontend struct {
	Addr     netip.AddrPort
	Protocol Protocol
	PortName string
	Kind     Kind
	Scope    Scope
}

// Same reports whether f and o are one frontend, whatever their port names.
func (f Frontend) Same(o Frontend) bool {
	return f.Addr == o.Addr && f.Protocol == o.Protocol && f.Scope == o.Scope
}

// Backend is one endpoint that can answer for a service. ClusterID 0 is never
// used; Local tells the agent's own cluster from the others, and Here the
// agent's own node from the other nodes. Names are sorted and hold no empty name.
type Backend struct {
	Addr      netip.AddrPort
	Protocol  Protocol
	Names     []string
	Cluster   string
	ClusterID uint16
	Local     bool
	Here      bool
	State     State
	Zone      string
}

// Service is everything known about one global service: the frontends and the
// policy come from the local cluster, the backends from all clusters. Members
// left at zero change nothing.
type Service struct {
	Name      ServiceName
	Frontends []Frontend
	Affinity  Affinity // of Cilium; counts if Policy has no tiers
	Backends  []Backend

	Policy       Policy
	Distribution Distribution
	// NodeOnly restricts the cluster IPs to backends on the agent's node, without
	// any fallback: internalTrafficPolicy Local.
	NodeOnly bool
	// Zone is that of the agent's node, "" if unknown.
	Zone string
	// SessionAffinity is for how many seconds a client keeps its backend, 0 for
	// not at all.
	SessionAffinity uint32
	// Lost tells of remote clusters by name for how many seconds they have been
	// out of contact; the others are in contact. It is only read.
	Lost map[string]uint32
	// Ranks order remote clusters by distance, 0 being the nearest; clusters of one
	// rank are equally near, and those without one come last. It is only read, and
	// counts for tiers with [Nearest].
	Ranks map[string]uint8
	// Previous are tables of an earlier Merge of the service, of which only
	// frontend, Spilling and Kept are read; see [Remember]. Nil forgets on which
	// side of a spillover's threshold the tiers were, and what they carried.
	Previous []FrontendTable
	// Steps is how many steps of a spillover's ramp have passed since then, see
	// [RampSteps].
	Steps uint32
}

// Choice is a backend with the decision taken on it. Reason is one of the
// Reason constants and never empty. Weight is the share of new connections
// relative to the other selected backends of the table, 0 if not selected.
// Withdrawn says that it is not selected because its whole cluster was given
// up, for being out of contact or dead, and not because others are preferred.
type Choice struct {
	Backend
	Selected  bool
	Withdrawn bool
	Weight    uint32
	Reason    string
}

// OnWithdraw says what becomes of the connections to a backend that is
// withdrawn: one that its cluster lists no more, or a [Choice] that is
// Withdrawn. A backend that merely is not selected keeps its connections.
type OnWithdraw uint8

// The values of the clustermesh.io/on-withdraw annotation. Keep, the default,
// leaves them alone; Drain gives them [Policy].Drain seconds to end by
// themselves; Reset ends them at once.
const (
	WithdrawKeep OnWithdraw = iota
	WithdrawDrain
	WithdrawReset
)

// FrontendTable is one frontend with every backend that matches it, selected
// ones first, each group sorted by locality, cluster, address. Consistent asks
// for [Maglev] instead of a random pick. SessionAffinity is in seconds, 0 for
// none, and so is Drain, which is 0 unless OnWithdraw asks for it. Spilling has
// bit i set if tier i has too few healthy backends to carry the traffic alone.
// Kept, of a spillover with a ramp, is what each tier keeps of
// the traffic that reaches it; Ramping says that time alone will change it.
type FrontendTable struct {
	Service         ServiceName
	Frontend        Frontend
	Affinity        Affinity
	Consistent      bool
	OnWithdraw      OnWithdraw
	Drain           uint32
	SessionAffinity uint32
	Spilling        uint32
	Kept            []uint32
	Ramping         bool
	Backends        []Choice
}

// Remember returns what [Service].Previous needs of tables to damp the next
// decision: usually nothing. With a ramp nothing may be left out of it.
func Remember(tables []FrontendTable) []FrontendTable {
	var kept []FrontendTable
	for i := range tables {
		if t := &tables[i]; t.Spilling != 0 || t.Kept != nil {
			kept = append(kept, FrontendTable{Service: t.Service, Frontend: t.Frontend, Spilling: t.Spilling, Kept: t.Kept})
		}
	}
	return kept
}

// Even reports whether all selected backends have the same weight, so that a
// plain random pick will do. Weights that were never set are even.
func (t *FrontendTable) Even() bool {
	for i := 1; i < len(t.Backends) && t.Backends[i].Selected; i++ {
		if t.Backends[i].Weight != t.Backends[0].Weight {
			return false
		}
	}
	return true
}
