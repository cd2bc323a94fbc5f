package lb

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Why a backend was selected or not. Every [Choice] carries exactly one.
const (
	// ReasonActive: selected, it is ready and on a side the affinity wants.
	ReasonActive = "active"
	// ReasonFallback: selected and ready, but only because the side that the
	// affinity prefers has nothing to offer.
	ReasonFallback = "fallback"
	// ReasonTerminatingLast: selected although it is going away, because no
	// active backend is left among the candidates.
	ReasonTerminatingLast = "terminating-last"
	// ReasonTerminating: not selected, it is going away and active ones exist.
	ReasonTerminating = "terminating"
	// ReasonNotReady: not selected, it serves nobody.
	ReasonNotReady = "not-ready"
	// ReasonAffinity: not selected, the preferred side is healthy.
	ReasonAffinity = "affinity"
	// ReasonDuplicate: not selected, a nearer cluster claims the same address,
	// port and protocol.
	ReasonDuplicate = "duplicate"
)

// Merge decides for every frontend of s which backends take new connections.
//
// A backend belongs to a frontend when the IP family and the protocol are the
// same and the port names do not contradict: they are compared only if both
// sides have a name. Of several claims to one address, port and protocol the
// local cluster's wins, then the one of the lowest cluster id.
//
// The tables are sorted by address, port and protocol of the frontend, one per
// distinct triple. Addresses come back without IPv4-mapping. The result shares
// name slices with s and is otherwise the caller's.
func Merge(s Service) []FrontendTable {
	m := merger{pool: canonicalBackends(s.Backends), affinity: s.Affinity}
	m.claims = claims(m.pool)
	m.reasons = make([]string, len(m.pool))
	frontends := canonicalFrontends(s.Frontends)
	tables := make([]FrontendTable, len(frontends))
	for i, f := range frontends {
		tables[i] = FrontendTable{Service: s.Name, Frontend: f, Affinity: s.Affinity, SessionAffinity: s.SessionAffinity, Backends: m.choose(f)}
	}
	return tables
}

// merger holds what all frontends of a service have in common. reasons is
// scratch space of one frontend, indexed like pool; "" is no match.
type merger struct {
	pool     []Backend
	claims   []int32
	affinity Affinity
	reasons  []string
}

// choose builds one frontend's table: selected backends first, each group in
// the pool's order.
func (m *merger) choose(f Frontend) []Choice {
	t := m.candidates(f)
	rule := ruleOf(m.affinity, t)
	active := rule.local && t.localActive > 0 || rule.remote && t.remoteActive > 0
	selected := 0
	for i, b := range m.pool {
		if m.reasons[i] == candidate {
			m.reasons[i] = rule.reason(b, active)
		}
		if Selecting(m.reasons[i]) {
			selected++
		}
	}
	return m.collect(selected, t.matching)
}

func (m *merger) collect(selected, matching int) []Choice {
	choices := make([]Choice, matching)
	next := [2]int{0, selected}
	for i, b := range m.pool {
		if m.reasons[i] == "" {
			continue
		}
		c := Choice{Backend: b, Selected: Selecting(m.reasons[i]), Reason: m.reasons[i]}
		group := 1
		if c.Selected {
			group, c.Weight = 0, 1
		}
		choices[next[group]] = c
		next[group]++
	}
	return choices
}

// candidate marks a matching backend on which nothing is decided yet.
const candidate = "candidate"

// tally counts a frontend's candidates. Healthy is active or terminating.
type tally struct {
	matching                    int
	localActive, localHealthy   int
	remoteActive, remoteHealthy int
}

func (m *merger) candidates(f Frontend) tally {
	var t tally
	for i := range m.pool {
		b := &m.pool[i]
		m.reasons[i] = ""
		if !Matches(f, *b) {
			continue
		}
		t.matching++
		m.reasons[i] = candidate
		if m.claimed(i) {
			m.reasons[i] = ReasonDuplicate
		} else {
			t.count(b)
		}
	}
	return t
}

// claimed reports whether an earlier backend of the pool, one that matches the
// same frontend, has the same address.
func (m *merger) claimed(i int) bool {
	for j := m.claims[i]; j >= 0; j = m.claims[j] {
		if m.reasons[j] != "" {
			return true
		}
	}
	return false
}

func (t *tally) count(b *Backend) {
	active, healthy := &t.remoteActive, &t.remoteHealthy
	if b.Local {
		active, healthy = &t.localActive, &t.localHealthy
	}
	if b.State == Active {
		*active++
	}
	if b.State != NotReady {
		*healthy++
	}
}

// rule says which sides may be used and which of them only for want of the
// other.
type rule struct {
	local, remote   bool
	fallbackIsLocal bool
	fallback        bool
}

// ruleOf applies the affinity table of Cilium v1.20 (selectbackends.go). Its
// two rows are not mirror images: terminating local backends do not hold back
// the fallback to remote ones, terminating remote backends do hold back the
// fallback to local ones.
//
// Cilium lets unhealthy backends of the preferred side stay in the set; here a
// backend that serves nobody is never selected. Kubernetes' rule comes second:
// among the sides that the affinity allows, terminating backends are used only
// if no active one is left. The affinity therefore decides about sides and the
// state decides within them.
func ruleOf(a Affinity, t tally) rule {
	switch a {
	case AffinityLocal:
		use := t.localActive == 0 && t.remoteHealthy > 0
		return rule{local: true, remote: use, fallback: true}
	case AffinityRemote:
		use := t.remoteHealthy == 0 && t.localHealthy > 0
		return rule{local: use, remote: true, fallback: true, fallbackIsLocal: true}
	default:
		return rule{local: true, remote: true}
	}
}

// reason decides on one candidate; active says whether an active one is among
// the backends of the allowed sides.
func (r rule) reason(b Backend, active bool) string {
	allowed := r.remote
	if b.Local {
		allowed = r.local
	}
	switch {
	case b.State == NotReady:
		return ReasonNotReady
	case !allowed:
		return ReasonAffinity
	case b.State == Terminating && active:
		return ReasonTerminating
	case b.State == Terminating:
		return ReasonTerminatingLast
	case r.fallback && b.Local == r.fallbackIsLocal:
		return ReasonFallback
	}
	return ReasonActive
}

// Selecting reports whether reason is one that a selected backend carries.
func Selecting(reason string) bool {
	return reason == ReasonActive || reason == ReasonFallback || reason == ReasonTerminatingLast
}

// Matches reports whether b can answer for f: same family, same protocol, and
// port names that do not contradict each other.
func Matches(f Frontend, b Backend) bool {
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
	return cmp.Or(
		cmp.Compare(a.ClusterID, b.ClusterID), strings.Compare(a.Cluster, b.Cluster),
		a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.State, b.State),
		slices.Compare(a.Names, b.Names), strings.Compare(a.Zone, b.Zone))
}

// canonicalFrontends returns the frontends unmapped, sorted and with one entry
// per address, port and protocol (the first port name in order).
func canonicalFrontends(in []Frontend) []Frontend {
	out := slices.Clone(in)
	for i := range out {
		out[i].Addr = unmap(out[i].Addr)
	}
	slices.SortFunc(out, func(a, b Frontend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), strings.Compare(a.PortName, b.PortName))
	})
	return slices.CompactFunc(out, func(a, b Frontend) bool { return a.Addr == b.Addr && a.Protocol == b.Protocol })
}

// claims returns for each backend of the sorted pool the index of the nearest
// one before it with the same address, port and protocol, or -1.
func claims(pool []Backend) []int32 {
	order := make([]int32, 2*len(pool))
	prev := order[len(pool):]
	order = order[:len(pool)]
	for i := range order {
		order[i], prev[i] = int32(i), -1
	}
	slices.SortFunc(order, func(i, j int32) int {
		a, b := &pool[i], &pool[j]
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(i, j))
	})
	for k := 1; k < len(order); k++ {
		a, b := &pool[order[k-1]], &pool[order[k]]
		if a.Addr == b.Addr && a.Protocol == b.Protocol {
			prev[order[k]] = order[k-1]
		}
	}
	return prev
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
