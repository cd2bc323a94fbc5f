package mesh

import (
	"maps"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// terms is how the own cluster wants a service balanced beyond its affinity. Few
// services have any; the others have nil. It is never changed once it was made.
type terms struct {
	written      map[string]string // annotations, without their prefix
	policy       lb.Policy         // what they mean
	wrong        []*lb.AnnotationError
	distribution lb.Distribution
	nodeOnly     bool
	session      uint32 // seconds
}

// termsOf reads a record's terms; former are those of the record before, whose
// annotations need not be read again if they are the same.
func termsOf(v *schema.LocalService, former *terms) *terms {
	t := terms{distribution: lb.ParseDistribution(v.TrafficDistribution), nodeOnly: v.InternalTrafficPolicy == schema.TrafficPolicyLocal}
	if v.SessionAffinity == schema.SessionAffinityClientIP {
		t.session = v.SessionAffinitySeconds
	}
	switch {
	case len(v.Policy) == 0 && t.distribution == lb.DistributionNone && !t.nodeOnly && t.session == 0:
		return nil
	case len(v.Policy) > 0 && former != nil && maps.Equal(former.written, v.Policy):
		t.written, t.policy, t.wrong = former.written, former.policy, former.wrong
	case len(v.Policy) > 0:
		t.policy, t.wrong = lb.ParsePolicy(v.Policy)
		t.written = make(map[string]string, len(v.Policy))
		for name, value := range v.Policy {
			t.written[strings.Clone(name)] = strings.Clone(value)
		}
	}
	return &t
}

// restoredTerms is the part of the terms that is remembered over a restart.
func restoredTerms(r *Restored) *terms {
	switch {
	case len(r.Policy) > 0:
		t := &terms{session: r.SessionAffinity, written: maps.Clone(r.Policy)}
		t.policy, t.wrong = lb.ParsePolicy(r.Policy)
		return t
	case r.SessionAffinity == 0 && !r.Consistent && r.OnWithdraw == lb.WithdrawKeep:
		return nil
	}
	return &terms{session: r.SessionAffinity, policy: lb.Policy{Consistent: r.Consistent, OnWithdraw: r.OnWithdraw, Drain: r.Drain}}
}

// equal compares the annotations as they were written: what they mean follows.
func (t *terms) equal(o *terms) bool {
	if t == nil || o == nil {
		return t == o
	}
	return t.distribution == o.distribution && t.nodeOnly == o.nodeOnly && t.session == o.session && maps.Equal(t.written, o.written)
}

func (s *service) terms() *terms {
	switch {
	case s.said != nil:
		return s.said.terms
	case s.kept != nil:
		return s.kept.terms
	}
	return nil
}

// govern fills in what the terms of s say, and what they refer to.
func (m *Mesh) govern(s *service, out *lb.Service) {
	t := s.terms()
	if t == nil {
		return
	}
	out.Policy, out.Distribution, out.NodeOnly, out.SessionAffinity = t.policy, t.distribution, t.nodeOnly, t.session
	out.Zone, out.Lost, out.Ranks = m.zone, m.lost, m.ranks
}

// SetRanks says how near remote clusters are, as [lb.Service].Ranks has it, and
// reports whether that is new. The services that want the nearest clusters first
// and have backends of one whose rank changed are returned, sorted. They are not
// dirty by it: their content is what it was, so that the caller may take his time
// in deciding on them anew. ranks is not kept.
func (m *Mesh) SetRanks(ranks map[string]uint8) (concerned []lb.ServiceName, changed bool) {
	if maps.Equal(m.ranks, ranks) {
		return nil, false
	}
	before := m.ranks
	m.ranks = maps.Clone(ranks) // lb.Service values that were handed out share the former one
	for s := range m.special {
		if s.global() && s.terms().policy.Nearest() && slices.ContainsFunc(s.parts, func(p part) bool {
			was, knew := before[p.cluster.name]
			is, know := m.ranks[p.cluster.name]
			return was != is || knew != know
		}) {
			concerned = append(concerned, s.name)
		}
	}
	slices.SortFunc(concerned, lb.ServiceName.Compare)
	return concerned, true
}

// SetZone says in which zone our own node is, "" for unknown. Services that
// prefer near backends become dirty if that is new.
func (m *Mesh) SetZone(zone string) {
	if m.zone == zone {
		return
	}
	m.zone = strings.Clone(zone)
	for s := range m.special {
		if s.terms().distribution != lb.DistributionNone {
			m.touch(s)
		}
	}
}

// SetLost says for how many seconds each remote cluster has been out of contact
// by now; clusters in contact are not in it. Services become dirty for which a
// cluster thereby reached an age at which their policy demotes it or gives it
// up, or came back from there. lost is not kept.
func (m *Mesh) SetLost(lost map[string]uint32) {
	before := m.lost
	m.lost = maps.Clone(lost) // lb.Service values that were handed out share the former one
	for s := range m.special {
		st := s.terms().policy.Staleness
		if slices.ContainsFunc(s.parts, func(p part) bool {
			name := p.cluster.name
			return !p.cluster.local && st.Next(before[name]) != st.Next(m.lost[name])
		}) {
			m.touch(s)
		}
	}
}

// Aging returns how many seconds after the ages of the last [Mesh.SetLost] the
// next one is reached that changes a decision on one of the named services, or
// on any service if none is named; 0 for never.
func (m *Mesh) Aging(names ...lb.ServiceName) (seconds uint32) {
	if len(m.lost) == 0 {
		return 0
	}
	if len(names) == 0 {
		for s := range m.special {
			seconds = sooner(seconds, m.aging(s))
		}
	}
	for _, name := range names {
		if s := m.services[name]; s != nil && s.terms() != nil {
			seconds = sooner(seconds, m.aging(s))
		}
	}
	return seconds
}

func (m *Mesh) aging(s *service) (seconds uint32) {
	st := s.terms().policy.Staleness
	for i := range s.parts {
		if age, lost := m.lost[s.parts[i].cluster.name]; lost && st.Next(age) > 0 {
			seconds = sooner(seconds, st.Next(age)-age)
		}
	}
	return seconds
}

// sooner is the smaller number that is not 0.
func sooner(a, b uint32) uint32 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// Annotations returns the annotations of a service as the own cluster wrote
// them, their names without prefix; they must not be changed.
func (m *Mesh) Annotations(name lb.ServiceName) map[string]string {
	if s := m.services[name]; s != nil && s.terms() != nil {
		return s.terms().written
	}
	return nil
}

// Wrong returns what is wrong with the annotations of a service; it must not be
// changed.
func (m *Mesh) Wrong(name lb.ServiceName) []*lb.AnnotationError {
	if s := m.services[name]; s != nil && s.terms() != nil {
		return s.terms().wrong
	}
	return nil
}
