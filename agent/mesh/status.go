package mesh

import (
	"cmp"
	"hash/fnv"
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
// restart is still in force. LastError says what is wrong and what to do, ""
// while nothing is.
type ClusterStatus struct {
	Name       string
	ID         uint32
	Local      bool
	Configured bool
	State      State
	Source     string
	Services   int
	Backends   int
	Restored   int
	LastError  string
	Rejections []Rejection // only reasons that occurred, in the order of the constants
}

// Status describes all clusters, the own one first, the others by name.
func (m *Mesh) Status() []ClusterStatus {
	out := make([]ClusterStatus, 0, len(m.clusters))
	for _, c := range m.clusters {
		out = append(out, c.status())
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
		Services: c.services, Backends: c.backends, Restored: c.kept, LastError: c.lastError,
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

// maxRefusedKeys bounds what is remembered of a hostile cluster's keys.
const maxRefusedKeys = 10_000

// maxExample bounds the text that is kept of a refused value.
const maxExample = 512

// reject remembers that the value of key was not accepted. Keys are remembered
// by hash: a remote that searches for collisions confuses only its own count.
func (c *cluster) reject(key string, reason Reason, err error) {
	r := &c.rejections[reason]
	r.Reason = reason
	r.Total++
	r.Last = err.Error()
	if len(r.Last) > maxExample {
		r.Last = r.Last[:maxExample]
	}
	h := hashKey(key)
	if _, known := c.refused[h]; known || len(c.refused) >= maxRefusedKeys {
		return
	}
	if c.refused == nil {
		c.refused = map[uint64]Reason{}
	}
	c.refused[h] = reason
	r.Keys++
}

// readmit forgets that a value of key was refused.
func (c *cluster) readmit(key string) {
	if len(c.refused) == 0 {
		return
	}
	h := hashKey(key)
	if reason, known := c.refused[h]; known {
		delete(c.refused, h)
		c.rejections[reason].Keys--
	}
}

// forgetRefused starts the count of refused keys anew.
func (c *cluster) forgetRefused() {
	c.refused = nil
	for i := range c.rejections {
		c.rejections[i].Keys = 0
	}
}

func hashKey(key string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	return h.Sum64()
}
