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

// Active takes new connections; Terminating still serves but is going away;
// NotReady serves nobody.
const (
	Active State = iota
	Terminating
	NotReady
)

// Frontend is one address that clients connect to: a cluster IP of the local
// service and one of its ports.
type Frontend struct {
	Addr     netip.AddrPort
	Protocol Protocol
	PortName string
}

// Backend is one endpoint that can answer for a service. ClusterID 0 is never
// used; Local tells the agent's own cluster from the others. Names are sorted
// and hold no empty name.
type Backend struct {
	Addr      netip.AddrPort
	Protocol  Protocol
	Names     []string
	Cluster   string
	ClusterID uint16
	Local     bool
	State     State
	Zone      string
}

// Service is everything known about one global service: the frontends and the
// policy come from the local cluster, the backends from all clusters.
type Service struct {
	Name      ServiceName
	Frontends []Frontend
	Affinity  Affinity
	Backends  []Backend

	// SessionAffinity is for how many seconds a client keeps its backend, 0 for
	// not at all.
	SessionAffinity uint32
}

// Choice is a backend with the decision taken on it. Reason is one of the
// Reason constants and never empty. Weight is the share of new connections
// relative to the other selected backends of the table, 0 if not selected.
type Choice struct {
	Backend
	Selected bool
	Weight   uint32
	Reason   string
}

// OnWithdraw says what becomes of the connections to a backend that is no
// longer selected.
type OnWithdraw uint8

// The values of the clustermesh.io/on-withdraw annotation. Keep, the default,
// leaves them alone; Drain lets them end within a time the agent sets; Reset
// ends them at once.
const (
	WithdrawKeep OnWithdraw = iota
	WithdrawDrain
	WithdrawReset
)

// FrontendTable is one frontend with every backend that matches it, selected
// ones first, each group sorted by locality, cluster, address. Consistent asks
// for [Maglev] instead of a random pick. SessionAffinity is in seconds, 0 for
// none.
type FrontendTable struct {
	Service         ServiceName
	Frontend        Frontend
	Affinity        Affinity
	Consistent      bool
	OnWithdraw      OnWithdraw
	SessionAffinity uint32
	Backends        []Choice
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
