package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Policy says what is accepted of one remote cluster beyond what holds for all
// of them. The zero value accepts everything.
type Policy struct {
	// ID is the only id that the cluster may announce, and is for no other; 0 means
	// any that is free.
	ID uint32
	// Allow lists the ranges that the cluster's backends must lie in (its pod
	// CIDRs); empty means any that no other cluster's policy lists.
	Allow []netip.Prefix
	// Namespaces lists the namespaces whose services take backends of this
	// cluster; empty means any.
	Namespaces []string
	// MaxServices, MaxSlices, MaxBackends and MaxServiceBackends take the place of the limits of
	// [Config]; 0 leaves those in force.
	MaxServices, MaxSlices, MaxBackends, MaxServiceBackends int
	// Brake takes the place of [Config.Brake]; 0 leaves that in force, NoBrake
	// means none.
	Brake int
	// Refuse, if not empty, says why the cluster is not accepted at all now. What
	// is known of it stays.
	Refuse string
}

// NoBrake as a policy's brake lets a cluster withdraw whatever it likes.
const NoBrake = -1

// ValidateBrake reports whether percent can be a brake: 0 for none, or a share
// of 1 to 99 percent.
func ValidateBrake(percent int) error {
	if percent < 0 || percent > 99 {
		return fmt.Errorf("%d percent is no share that can be exceeded; use 1 to 99, or 0 for no brake", percent)
	}
	return nil
}

// Validate reports every problem of the policy, joined; maxClusters is that of
// the mesh.
func (p Policy) Validate(maxClusters uint32) error {
	var errs []error
	if p.ID != 0 {
		errs = append(errs, schema.ValidateClusterID(p.ID, maxClusters))
	}
	if p.MaxServices < 0 || p.MaxSlices < 0 || p.MaxBackends < 0 || p.MaxServiceBackends < 0 {
		errs = append(errs, fmt.Errorf("check limits %d, %d, %d and %d: none may be negative, 0 means the default", p.MaxServices, p.MaxSlices, p.MaxBackends, p.MaxServiceBackends))
	}
	if p.Brake != NoBrake {
		errs = append(errs, ValidateBrake(p.Brake))
	}
	for i, r := range p.Allow {
		if !r.IsValid() {
			errs = append(errs, fmt.Errorf("check Allow[%d]: the range is not valid, write it as address/bits", i))
		}
	}
	return errors.Join(errs...)
}

// equal reports whether both policies accept the same in the same words.
func (p Policy) equal(o Policy) bool {
	return p.ID == o.ID && p.MaxServices == o.MaxServices && p.MaxSlices == o.MaxSlices && p.MaxBackends == o.MaxBackends && p.MaxServiceBackends == o.MaxServiceBackends &&
		p.Brake == o.Brake && p.Refuse == o.Refuse && slices.Equal(p.Allow, o.Allow) && slices.Equal(p.Namespaces, o.Namespaces)
}

// SetPolicy replaces what is accepted of a configured remote cluster. What is
// known of it, and of clusters without a policy that name addresses in its
// ranges, and would not be accepted any more goes at once. The result names,
// sorted, the cluster itself unless nothing changed, and those that must be
// listed again from an empty memory because something that was refused may be
// acceptable now, or because the id that they held is now this one's. policy must
// be valid.
func (m *Mesh) SetPolicy(name string, policy Policy) (again []string) {
	c := m.clusters[name]
	if c == nil || c.local || !c.configured || c.policy.equal(policy) {
		return nil
	}
	policy.Allow, policy.Namespaces = slices.Clone(policy.Allow), slices.Clone(policy.Namespaces)
	c.policy, c.allow, c.ordered = policy, newRanges(policy.Allow), true
	if m.brakeOf(c) == 0 {
		m.release(c)
	}
	if policy.ID != 0 && c.id != 0 && c.id != policy.ID {
		m.drain(c)
		m.releaseID(c)
	}
	again = append(append(m.setPinned(c), name), m.enforcePins()...)
	m.expel(c, func(a netip.Addr) bool { return !m.admitsAddress(c, a) })
	slices.Sort(again)
	return slices.Compact(again)
}

// SetOwn replaces the ranges that are ours beside those of [Config.Deny], as
// they become known: addresses of our nodes, ranges of our pods. No remote
// backend may lie in them; those that do go at once and count as refused. The
// result is that of [Mesh.SetPolicy].
func (m *Mesh) SetOwn(own []netip.Prefix) (again []string) {
	before := m.denied
	m.denied = newRanges(AlwaysDenied(), m.cfg.Deny, own)
	return m.reconsider(before, m.denied, nil)
}

// setPinned gathers the ranges that policies give to clusters; except is the
// cluster whose own part changed.
func (m *Mesh) setPinned(except *cluster) (again []string) {
	var all [][]netip.Prefix
	for _, c := range m.clusters {
		if c.configured {
			all = append(all, c.policy.Allow)
		}
	}
	before := m.pinned
	m.pinned = newRanges(all...)
	return m.reconsider(before, m.pinned, except)
}

// reconsider drops what lies in ranges that are denied now and were not before,
// and names the clusters that may have been refused what is denied no more.
func (m *Mesh) reconsider(before, after ranges, except *cluster) (again []string) {
	added, removed := after.minus(before), before.minus(after)
	for c := range m.naming(added) {
		if c != except {
			m.expel(c, func(a netip.Addr) bool { return added.has(a) && !m.admitsAddress(c, a) })
		}
	}
	for _, c := range m.clusters {
		if c != except && len(removed) > 0 && c.refusedAny(ReasonAddress) {
			again = append(again, c.name)
		}
	}
	slices.Sort(again)
	return again
}

// naming returns the remote clusters that name an address in a range.
func (m *Mesh) naming(in ranges) map[*cluster]bool {
	if len(in) == 0 {
		return nil
	}
	out := map[*cluster]bool{}
	for _, s := range m.services {
		for i := range s.parts {
			p := &s.parts[i]
			if p.cluster.local || out[p.cluster] {
				continue
			}
			p.each(func(r *record) {
				if in.has(netip.AddrFrom16(r.addr)) {
					out[p.cluster] = true
				}
			})
		}
	}
	return out
}

// expel drops of what is known of c the services that take nothing of it, and
// the backends whose address is bad. It is the operator's doing, so no brake
// holds it.
func (m *Mesh) expel(c *cluster, bad func(netip.Addr) bool) {
	m.expelling = true
	e := expulsion{m: m, c: c, bad: bad}
	for id, sl := range c.slices {
		e.slice(id, sl)
	}
	m.settle(c)
	for _, s := range m.services {
		if p := s.part(c); p != nil {
			e.part(s, p)
		}
	}
	m.expelling = false
	if !c.braked {
		m.release(c)
	}
}

// expulsion drops what one cluster may not say any more.
type expulsion struct {
	m   *Mesh
	c   *cluster
	bad func(netip.Addr) bool
}

func (e *expulsion) slice(id string, sl *slice) {
	key := schema.WatchPrefix(e.c.kind, e.c.name, e.c.cached) + id
	name := sl.service.name
	if err := e.m.admitsService(e.c, name); err != nil {
		e.c.reject(refusal{key: key, service: name, reason: ReasonPolicy}, err)
		e.m.dropSlice(e.c, id)
		return
	}
	good, dropped := e.filter(sl.records, key, name)
	if !dropped {
		return
	}
	e.c.held += e.m.weight(good) - e.m.weight(sl.records)
	e.m.drop(sl.records)
	sl.records = good
	e.m.unsettle(sl.service, sl.service.part(e.c))
}

func (e *expulsion) part(s *service, p *part) {
	key := ""
	if e.c.kind == schema.KindService && e.c.accepted {
		key = schema.WatchPrefix(e.c.kind, e.c.name, e.c.cached) + s.name.String()
	}
	if err := e.m.admitsService(e.c, s.name); err != nil {
		if p.present {
			e.c.reject(refusal{key: key, service: s.name, reason: ReasonPolicy}, err)
		}
		e.m.unhold(p)
		e.m.confirm(e.c, s)
		e.m.withdraw(e.c, s.name)
		return
	}
	e.said(s, p, key)
	e.provisional(s, p)
}

// said filters what a record says; what slices say is filtered already.
func (e *expulsion) said(s *service, p *part, key string) {
	if !p.present || p.first != nil {
		return
	}
	if good, dropped := e.filter(p.said, key, s.name); dropped {
		e.m.setSaid(s, p, true, good)
		e.m.touch(s)
	}
}

// provisional filters what is in force without being said.
func (e *expulsion) provisional(s *service, p *part) {
	if good, dropped := e.filter(p.kept, "", s.name); dropped {
		e.m.drop(p.kept)
		p.setKept(good)
		e.m.touch(s)
	}
	if p.brake == nil {
		return
	}
	if good, dropped := e.filter(p.brake.held, "", s.name); dropped {
		e.m.setHeld(p, good)
		e.m.touch(s)
	}
}

// filter returns the good records with references of their own, if any is not
// good. Without a key nothing counts as refused: the cluster does not say it.
func (e *expulsion) filter(in []record, key string, name lb.ServiceName) (good []record, dropped bool) {
	is := func(r record) bool { return e.bad(netip.AddrFrom16(r.addr)) }
	if !slices.ContainsFunc(in, is) {
		return nil, false
	}
	good = make([]record, 0, len(in))
	for _, r := range in {
		switch a := netip.AddrFrom16(r.addr); {
		case !e.bad(a):
			good = append(good, r)
		case key != "":
			e.c.reject(refusal{key: key, service: name, address: a, reason: ReasonAddress}, e.m.addressError(e.c, name, a))
		}
	}
	e.m.share(good)
	return good, true
}
