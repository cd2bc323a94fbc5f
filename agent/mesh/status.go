package mesh

import (
	"cmp"
	"slices"
)

// Reason says in one word why something of a cluster was not accepted. There
// are few of them, so they can label a metric.
type Reason uint8

// The reasons of rejections.
const (
	ReasonKey     Reason = iota // the key is not one of those that are read of the cluster
	ReasonValue                 // the value is malformed
	ReasonOwner                 // the value speaks for another cluster or service
	ReasonPolicy                // the service takes no backends of this cluster
	ReasonAddress               // a backend's address is not allowed; the others count
	ReasonLimit                 // the cluster has more than is kept of one
	reasons
)

// String is the reason as metrics and status output spell it.
func (r Reason) String() string {
	return [...]string{"key", "value", "owner", "policy", "address", "limit"}[r]
}

// Reasons lists all reasons.
func Reasons() []Reason {
	all := make([]Reason, reasons)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// Rejection sums up what was not accepted for one reason. Keys counts the keys
// for which it holds now (at most 10,000 over all reasons are remembered),
// Total every time it happened, Last explains the latest.
type Rejection struct {
	Reason Reason
	Keys   int
	Total  uint64
	Last   string
}

// ClusterStatus describes one cluster. Source is the kind of record that it is
// read from, as [schema.Kind] spells it, and "" until it was first accepted;
// services and endpointslices are those of remote clusters. Services and Backends count what it says
// now; Restored counts the services for which content of before the agent's
// restart is still in force, whether the cluster said it again or not, and
// Provisional what of it the cluster did not say again. LastError says what is wrong and what to do, ""
// while nothing is.
type ClusterStatus struct {
	Name        string
	ID          uint32
	Local       bool
	Configured  bool
	State       State
	Source      string
	Services    int
	Backends    int
	Restored    int
	Provisional Provisional
	LastError   string
	Rejections  []Rejection // only reasons that occurred, in the order of the constants

	// Brake is the share of its backends in percent that it may withdraw at once,
	// 0 for any. Window is true from its first change on until [Mesh.EndWindow].
	// Braked says that it withdrew more; Held counts the backends that are in use
	// for that reason although the cluster withdrew them.
	Brake  int
	Window bool
	Braked bool
	Held   int

	// Dead says that the cluster was found dead and that its backends are used
	// only where there are no others, see [Mesh.SetDead].
	Dead bool
}

// Provisional counts what is in use of a cluster although it was not said in the
// present connection, but before a reconnect or by a former life of the agent: it
// stays until the cluster is synced. Services are those with such backends.
type Provisional struct{ Services, Backends int }

// Status describes all clusters, the own one first, the others by name.
func (m *Mesh) Status() []ClusterStatus {
	out := make([]ClusterStatus, 0, len(m.clusters))
	for _, c := range m.clusters {
		s := c.status()
		s.Brake = m.brakeOf(c)
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b ClusterStatus) int {
		if a.Local != b.Local {
			if a.Local {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return out
}

func (c *cluster) status() ClusterStatus {
	s := ClusterStatus{
		Name: c.name, ID: c.id, Local: c.local, Configured: c.configured, State: c.state,
		Services: c.services, Backends: c.backends, Restored: c.kept, Provisional: c.provisional, LastError: c.lastError,
		Window: c.window.open, Braked: c.braked, Dead: c.dead,
	}
	if c.braked {
		s.Held = c.withheld
	}
	if c.accepted {
		s.Source = c.kind.String()
	}
	for _, r := range c.rejections {
		if r.Total > 0 {
			s.Rejections = append(s.Rejections, r)
		}
	}
	return s
}
