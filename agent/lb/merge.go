package lb

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Merge decides for every frontend of s which backends take new connections,
// and with which share.
//
// A backend belongs to a frontend when the IP family and the protocol are the
// same and the port names do not contradict: they are compared only if both
// sides have a name. Of several claims to one address, port and protocol the
// local cluster's wins, then the one that would be preferred, then the one of the
// lowest cluster id; so what a remote cluster says is not ready, or is excluded,
// takes no address from one that is used.
//
// Active backends come first: of the first tier that has any, with spillover of
// the next ones too. Then terminating ones of any tier, then those of clusters
// out of contact for too long, then quarantined ones. So as long as any backend
// of a cluster that the policy names may be used at all, one is selected.
//
// The tables are sorted by address, port, protocol and scope of the frontend, one
// per distinct four. Addresses come back without IPv4-mapping. The result shares
// name slices with s and is otherwise the caller's.
func Merge(s Service) []FrontendTable {
	m := merger{s: &s, pool: canonicalBackends(s.Backends), nearest: s.Policy.nearest()}
	m.plain = len(s.Policy.Weights) == 0 && s.Policy.Spillover.IsZero() && s.Distribution == DistributionNone
	m.fates = make([]fate, len(m.pool))
	var few [8]site
	m.sites = m.survey(few[:0])
	m.claims = m.claimants()
	frontends := canonicalFrontends(s.Frontends)
	tables := make([]FrontendTable, len(frontends))
	for i, f := range frontends {
		tables[i] = m.table(f)
	}
	return tables
}

// merger holds what all frontends of a service have in common. fates is
// scratch space of one frontend, indexed like pool.
type merger struct {
	s      *Service
	pool   []Backend
	claims []int32
	fates  []fate
	sites  []site
	plain  bool // all selected backends have the same share
	here   bool // the frontend at hand uses only backends on this node
	// nearest is the tier that asks for the nearest clusters, or -1.
	nearest int
}

func (m *merger) table(f Frontend) FrontendTable {
	t := FrontendTable{
		Service: m.s.Name, Frontend: f, Affinity: m.s.Affinity,
		Consistent: m.s.Policy.Consistent, SessionAffinity: m.s.SessionAffinity,
		OnWithdraw: m.s.Policy.OnWithdraw, Drain: m.s.Policy.Drain,
	}
	m.here = f.Scope == ScopeOutside || m.s.NodeOnly && f.Kind == KindClusterIP
	matching := m.candidates(f)
	d := m.decide(m.previous(f))
	t.Spilling, t.Kept, t.Ramping = d.spilling, d.kept, d.ramping
	t.Backends = m.collect(&d, m.explain(&d), matching)
	return t
}

func (m *merger) previous(f Frontend) FrontendTable {
	for i := range m.s.Previous {
		if p := &m.s.Previous[i]; unmap(p.Frontend.Addr) == f.Addr && p.Frontend.Protocol == f.Protocol && p.Frontend.Scope == f.Scope {
			return *p
		}
	}
	return FrontendTable{}
}

// candidates marks the backends that match a frontend, counts those of each
// site that may be used, and returns how many match.
func (m *merger) candidates(f Frontend) (matching int) {
	for i := range m.pool {
		m.fates[i] = byNothing
		if matches(&f, &m.pool[i]) {
			m.fates[i] = candidate
			matching++
		}
	}
	for k := range m.sites {
		s := &m.sites[k]
		s.tally = tally{}
		for i := s.first; i < s.end; i++ {
			if m.fates[i] == byNothing {
				continue
			}
			m.fates[i] = m.admit(s, i)
			if m.fates[i] == candidate {
				s.tally.count(&m.pool[i], m.nearness(&m.pool[i]))
			}
		}
	}
	return matching
}

// admit gives a backend a fate that does not depend on others being better, or
// candidate.
func (m *merger) admit(s *site, i int) fate {
	b := &m.pool[i]
	switch {
	case m.claimed(i):
		return byDuplicate
	case m.here && !b.Here:
		return byOtherNode
	case s.level == excluded:
		return byExcluded
	}
	return candidate
}

// nearness is 0 unless the service prefers near backends.
func (m *merger) nearness(b *Backend) int {
	switch {
	case m.s.Distribution == DistributionNone:
		return 0
	case m.s.Distribution == PreferSameNode && b.Here:
		return 2
	case m.s.Zone != "" && b.Zone == m.s.Zone:
		return 1
	}
	return 0
}

// explain turns a decision into fates and returns how many are selected.
func (m *merger) explain(d *decision) (selected int) {
	for k := range m.sites {
		s := &m.sites[k]
		for i := s.first; i < s.end; i++ {
			if m.fates[i] == candidate {
				m.fates[i] = m.judge(d, s, &m.pool[i])
				if m.fates[i].selects() {
					selected++
				}
			}
		}
	}
	return selected
}

// collect builds one frontend's choices: selected backends first, each group in
// the pool's order.
func (m *merger) collect(d *decision, selected, matching int) []Choice {
	choices := make([]Choice, matching)
	on, off := 0, selected
	for k := range m.sites {
		s := &m.sites[k]
		for i := s.first; i < s.end; i++ {
			switch f := m.fates[i]; {
			case f == byNothing:
			case f.selects():
				choices[on] = Choice{Backend: m.pool[i], Selected: true, Weight: s.share, Reason: f.reason()}
				on++
			default:
				choices[off] = Choice{Backend: m.pool[i], Withdrawn: d.withdraws(s, f), Reason: f.reason()}
				off++
			}
		}
	}
	return choices
}

// Matches reports whether b can answer for f: same family, same protocol, and
// port names that do not contradict each other.
func Matches(f Frontend, b Backend) bool { return matches(&f, &b) }

func matches(f *Frontend, b *Backend) bool {
	if f.Protocol != b.Protocol || f.Addr.Addr().Unmap().BitLen() != b.Addr.Addr().Unmap().BitLen() {
		return false
	}
	if f.PortName == "" || len(b.Names) == 0 {
		return b.Addr.IsValid()
	}
	return slices.Contains(b.Names, f.PortName)
}

// canonicalBackends returns the backends unmapped and in a total order whose
// first keys are locality, cluster and address.
func canonicalBackends(in []Backend) []Backend {
	out := slices.Clone(in)
	for i := range out {
		out[i].Addr = unmap(out[i].Addr)
	}
	slices.SortFunc(out, compareBackends)
	return out
}

func compareBackends(a, b Backend) int {
	if a.Local != b.Local {
		if a.Local {
			return -1
		}
		return 1
	}
	if c := cmp.Or(cmp.Compare(a.ClusterID, b.ClusterID), strings.Compare(a.Cluster, b.Cluster)); c != 0 {
		return c
	}
	if c := cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol)); c != 0 {
		return c // nearly always
	}
	return cmp.Or(cmp.Compare(a.State, b.State), slices.Compare(a.Names, b.Names), strings.Compare(a.Zone, b.Zone), compareHere(a, b))
}

func compareHere(a, b Backend) int {
	switch {
	case a.Here == b.Here:
		return 0
	case a.Here:
		return -1
	}
	return 1
}

// canonicalFrontends returns the frontends unmapped, sorted and with one entry
// per address, port, protocol and scope (the first kind and port name in order).
func canonicalFrontends(in []Frontend) []Frontend {
	out := slices.Clone(in)
	for i := range out {
		out[i].Addr = unmap(out[i].Addr)
	}
	slices.SortFunc(out, func(a, b Frontend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Scope, b.Scope),
			cmp.Compare(a.Kind, b.Kind), strings.Compare(a.PortName, b.PortName))
	})
	return slices.CompactFunc(out, Frontend.Same)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
