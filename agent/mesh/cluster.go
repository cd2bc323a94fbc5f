package mesh

import (
	"fmt"
	"slices"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// State is where a cluster stands in its life.
type State uint8

// The life of a cluster. Content is kept in every state but Removed, where
// only restored content is left that the operator no longer configures.
const (
	NeverConnected State = iota // configured, no connection was ever accepted
	Connecting                  // an attempt is under way and nothing is known yet
	Syncing                     // accepted, the list is not complete
	Synced                      // the content is complete and followed
	Stale                       // out of contact; the last known content stays
	Refused                     // its id is not acceptable; what is known stays
	Removed                     // restored from the kernel, but not configured
)

// String is the state as status output spells it.
func (s State) String() string {
	return [...]string{"never-connected", "connecting", "syncing", "synced", "stale", "refused", "removed"}[s]
}

type cluster struct {
	name       string
	id         uint32 // 0 until known
	local      bool
	configured bool
	accepted   bool        // Connected succeeded at least once since the id was taken
	cached     bool        // its keys lie below a relay's cache prefixes
	kind       schema.Kind // of the records that are read, once accepted
	complete   bool        // its content is not provisional
	state      State
	policy     Policy
	allow      ranges // of the policy
	ordered    bool   // the operator changed what is accepted, it is to be listed anew
	dead       bool   // it was found dead, see [Mesh.SetDead]
	lastError  string

	services, backends int // said
	kept               int // parts with restored records
	provisional        Provisional

	window   window
	braked   bool
	withheld int    // records withdrawn in the window, or since the brake holds
	nextID   uint32 // that the brake refused last, 0 for none
	mayMove  bool   // to nextID, once

	slices map[string]*slice // by <namespace>/<slice>
	held   int               // weight of the slices' records
	booked int               // weight of what is said

	refused    map[uint64]Reason
	described  *described
	rejections [reasons]Rejection
}

func (c *cluster) hasContent() bool { return c.services > 0 || c.kept > 0 }

// AddCluster configures a cluster; content restored for it stays as far as the
// policy accepts it, see [Mesh.SetPolicy]. For the own cluster, and for one that
// is configured already, it does nothing. The result names those that must be
// listed again because the id that they hold is this one's by its policy.
func (m *Mesh) AddCluster(name string, policy Policy) (again []string) {
	c := m.clusters[name]
	if c == nil {
		c = &cluster{name: name}
		m.clusters[name] = c
	}
	if c.configured {
		return nil
	}
	c.configured = true
	again = append(m.SetPolicy(name, policy), m.enforcePins()...)
	c.ordered = false // that is how it was before a restart, too
	c.state = c.resting()
	return slices.DeleteFunc(again, func(other string) bool { return other == name })
}

// RemoveCluster drops everything of a cluster, configured or only restored,
// and releases its id. The own cluster cannot be removed. The result is that of
// [Mesh.SetPolicy].
func (m *Mesh) RemoveCluster(name string) (again []string) {
	c := m.clusters[name]
	if c == nil || c.local {
		return nil
	}
	m.drain(c)
	m.releaseID(c)
	delete(m.clusters, name)
	return m.setPinned(nil)
}

// Connecting notes that an attempt to reach the cluster has begun. Only a
// cluster of which nothing is known shows it.
func (m *Mesh) Connecting(name string) {
	if c := m.clusters[name]; c != nil && c.state == NeverConnected {
		c.state = Connecting
	}
}

// Connected offers what the cluster announced of itself over a connection
// whose peer is known to be the named one. It must be accepted before changes
// are.
//
// The error says why the cluster is refused and what to do: its id is 0, too
// large, ours, pinned for another cluster or held by one that was first, or another one than
// before while the brake keeps what is in use of it, see [Mesh.Release]; or its
// configuration cannot be meshed with ours. Nothing changes then but the state; the
// connection should be closed and tried again later.
//
// If the cluster held another id before, everything known of it is dropped, as
// Cilium does (addresses and identities belong to an id). If its records are
// now to be read from other keys, because it began or ceased to publish endpoint
// slices or moved below or out of a relay's prefixes, its content is kept as by
// [Mesh.Relist]. In both cases fresh is true: its watch must start from an empty
// memory.
func (m *Mesh) Connected(name string, announced schema.ClusterConfig) (fresh bool, err error) {
	c := m.clusters[name]
	if c == nil || !c.configured {
		return false, fmt.Errorf("accept cluster %s: it is not configured; add it first", name)
	}
	if err := m.checkID(c, announced); err != nil {
		c.state, c.lastError = Refused, err.Error()
		return false, err
	}
	cached, kind := announced.Capabilities.Cached, schema.ReadServicesFrom(announced)
	if c.local {
		cached, kind = false, schema.KindLocalService
	}
	switch {
	case c.id != 0 && c.id != announced.ID:
		fresh = true
		m.drain(c)
		m.releaseID(c)
	case c.accepted && (c.cached != cached || c.kind != kind):
		fresh = true
		m.Relist(name)
	}
	c.id, c.accepted, c.cached, c.kind = announced.ID, true, cached, kind
	m.ids[c.id] = c
	c.state, c.lastError = Syncing, ""
	return fresh, nil
}

func (m *Mesh) checkID(c *cluster, announced schema.ClusterConfig) error {
	if c.local {
		if announced.ID != c.id {
			return fmt.Errorf("accept own cluster %s: its store announces id %d but this agent is configured with %d; set both to the same", c.name, announced.ID, c.id)
		}
		return nil
	}
	if why := c.policy.Refuse; why != "" {
		return fmt.Errorf("accept cluster %s: %s", c.name, why)
	}
	if id := c.policy.ID; id != 0 && announced.ID != id {
		return fmt.Errorf("accept cluster %s: it announces id %d but %d is pinned for it here; find out which of the two is right before changing either", c.name, announced.ID, id)
	}
	if o := m.pinning(announced.ID); o != nil && c.policy.ID == 0 {
		return fmt.Errorf("accept cluster %s: its id %d is pinned for cluster %s here; give it another id, or correct cluster-id in that one's peer file", c.name, announced.ID, o.name)
	}
	own := schema.ClusterConfig{ID: m.cfg.LocalID}
	if err := schema.CheckCompatible(own, announced, m.cfg.MaxClusters); err != nil {
		return fmt.Errorf("accept cluster %s: %w", c.name, err)
	}
	if holder := m.ids[announced.ID]; holder != nil && holder != c {
		return fmt.Errorf("accept cluster %s: its id %d is held by cluster %s, which was first; give one of the two another id", c.name, announced.ID, holder.name)
	}
	return m.checkMove(c, announced.ID)
}

// pinning is a configured cluster whose policy pins an id.
func (m *Mesh) pinning(id uint32) *cluster {
	if id == 0 {
		return nil
	}
	for _, c := range m.clusters {
		if c.configured && c.policy.ID == id {
			return c
		}
	}
	return nil
}

// enforcePins drops what is known of configured clusters under an id that a
// policy pins for another, as if they had changed it, and names them: who comes
// first must not keep out whom the operator means.
func (m *Mesh) enforcePins() (again []string) {
	for _, c := range m.clusters {
		if !c.configured || c.local || c.id == 0 || c.policy.ID == c.id || m.ids[c.id] != c {
			continue
		}
		if m.pinning(c.id) != nil {
			m.drain(c)
			m.releaseID(c)
			again = append(again, c.name)
		}
	}
	return again
}

// Disconnected notes that contact was lost, and why. The content stays.
func (m *Mesh) Disconnected(name, reason string) {
	c := m.clusters[name]
	if c == nil || !c.configured {
		return
	}
	if c.state == Refused { // that reason says more than the end of the attempt
		return
	}
	c.state, c.lastError = c.resting(), reason
}

// resting is the state of a cluster without a connection.
func (c *cluster) resting() State {
	switch {
	case !c.configured:
		return Removed
	case c.accepted || c.hasContent():
		return Stale
	}
	return NeverConnected
}

// Synced says that all keys the cluster has now were applied. What was restored
// and not said again is dropped. It is ignored without an accepted connection.
func (m *Mesh) Synced(name string) {
	c := m.clusters[name]
	if c == nil || c.state != Syncing {
		return
	}
	c.state = Synced
	m.noteList(c)
	for _, s := range m.services {
		m.confirm(c, s)
	}
	c.complete, c.ordered = true, false
	m.judge(c)
}

// Relist says that the cluster's watch starts again with an empty memory: it
// will not name the keys that vanished meanwhile. All that is known becomes
// provisional, as if it had been restored: it stays in force until the cluster
// is synced, and goes then unless it was said again.
func (m *Mesh) Relist(name string) {
	c := m.clusters[name]
	if c == nil {
		return
	}
	if c.state == Synced {
		c.state = Syncing
	}
	c.complete = false
	for _, s := range m.services {
		m.keep(c, s)
	}
	m.shed(c)
	m.forgetSlices(c)
	c.forgetRefused()
}

// confirm drops what s holds restored from c.
func (m *Mesh) confirm(c *cluster, s *service) {
	touched := false
	if p := s.part(c); p != nil && p.kept != nil {
		m.touch(s)
		m.forget(p)
		touched = true
	}
	if c.local && s.kept != nil {
		m.reface(s, func() { s.kept = nil })
		touched = true
	}
	if touched {
		m.tidy(s)
	}
}

// drain drops all content of c, said and restored.
func (m *Mesh) drain(c *cluster) {
	c.complete = false
	m.release(c)
	for _, s := range m.services {
		m.confirm(c, s)
		m.withdraw(c, s.name)
	}
	m.forgetSlices(c)
	c.forgetRefused()
}

func (m *Mesh) releaseID(c *cluster) {
	if c.id != 0 && m.ids[c.id] == c {
		delete(m.ids, c.id)
	}
	c.id, c.accepted, c.nextID, c.mayMove = 0, false, 0, false
}
