package mesh

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// record is one backend, 28 bytes without a pointer; names and zone are pool
// numbers. Records of a set are sorted by address, port, protocol, each triple
// once.
type record struct {
	addr  [16]byte // v4-mapped for IPv4
	names uint32
	zone  uint32
	port  uint16
	proto lb.Protocol
	state lb.State // with here
}

// here marks in the state of a record that the backend is on our own node.
const here lb.State = 1 << 7

func compareRecords(a, b record) int {
	if c := bytes.Compare(a.addr[:], b.addr[:]); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.proto, b.proto))
}

// part is one cluster's share in a service. said is what its current record or
// its slices say, if present; kept is what the kernel had when the agent
// started, until the cluster is synced.
type part struct {
	cluster   *cluster
	present   bool
	unsettled bool // said is not yet what the slices say
	curbed    bool // said is less than the slices or the record say
	said      []record
	kept      []record
	first     *slice     // of a list, if the cluster is read from slices
	brake     *withdrawn // nil unless the cluster has a brake
	heard     Heard      // of the latest record, or slice, that counts in said
}

func (p *part) isPresent() bool { return p != nil && p.present }

// each calls f for the records in force: those said, and those kept that no
// said one replaces.
func (p *part) each(f func(*record)) {
	for i := range p.said {
		f(&p.said[i])
	}
	for i := range p.kept {
		if _, replaced := slices.BinarySearchFunc(p.said, p.kept[i], compareRecords); !replaced {
			f(&p.kept[i])
		}
	}
	for i := range p.inForce() {
		f(&p.brake.held[i])
	}
}

// inForce counts the held records that are in use: those of a cluster whose
// brake holds. What is said or kept is not among them.
func (p *part) inForce() int {
	if !p.cluster.braked {
		return 0
	}
	return p.held()
}

// face is the local side of a service: the addresses clients connect to and
// the policy.
type face struct {
	affinity  lb.Affinity
	limited   bool          // its ways in from outside are none of ours
	unshared  bool          // other clusters do not get our backends
	fixed     []lb.Frontend // as said, sorted and each key once like frontends
	ports     []nodePort    // what else frontends has, at this node's addresses
	onNode    bool          // clients outside get only backends on this node
	frontends []lb.Frontend // unmapped, sorted by compareFrontends, each key once
	terms     *terms        // nil without any
}

func (f *face) equal(o *face) bool {
	return f != nil && o != nil && f.affinity == o.affinity && f.unshared == o.unshared && f.limited == o.limited && f.onNode == o.onNode && slices.Equal(f.fixed, o.fixed) &&
		slices.Equal(f.ports, o.ports) && f.terms.equal(o.terms)
}

func compareFrontends(a, b lb.Frontend) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Scope, b.Scope))
}

// canonicalFrontends sorts in place and drops repeated keys (the first kind and
// port name in order stay).
func canonicalFrontends(in []lb.Frontend) []lb.Frontend {
	slices.SortFunc(in, func(a, b lb.Frontend) int {
		return cmp.Or(compareFrontends(a, b), cmp.Compare(a.Kind, b.Kind), strings.Compare(a.PortName, b.PortName))
	})
	return slices.CompactFunc(in, func(a, b lb.Frontend) bool { return compareFrontends(a, b) == 0 })
}

// service gathers one service of all clusters. It exists while anything of it
// does.
type service struct {
	name  lb.ServiceName
	said  *face // the local cluster's record, nil without one
	kept  *face // restored from the kernel, until the local cluster is synced
	parts []part
}

func (s *service) global() bool { return s.said != nil || s.kept != nil }

// frontends returns the ones in force: those said, and those kept that no said
// one replaces.
func (s *service) frontends() []lb.Frontend {
	if s.said == nil && s.kept == nil {
		return nil
	}
	if s.said == nil {
		return s.kept.frontends
	}
	if s.kept == nil {
		return s.said.frontends
	}
	out := slices.Clone(s.said.frontends)
	for _, f := range s.kept.frontends {
		if _, replaced := slices.BinarySearchFunc(s.said.frontends, f, compareFrontends); !replaced {
			out = append(out, f)
		}
	}
	return out
}

func (s *service) affinity() lb.Affinity {
	if s.said != nil {
		return s.said.affinity
	}
	return s.kept.affinity
}

func (s *service) part(c *cluster) *part {
	for i := range s.parts {
		if s.parts[i].cluster == c {
			return &s.parts[i]
		}
	}
	return nil
}

func (s *service) ensurePart(c *cluster) *part {
	if p := s.part(c); p != nil {
		return p
	}
	s.parts = append(s.parts, part{cluster: c})
	return &s.parts[len(s.parts)-1]
}

// ensure returns the service, creating it with a name of its own memory: the
// caller's may be part of a larger string.
func (m *Mesh) ensure(name lb.ServiceName) *service {
	s := m.services[name]
	if s == nil {
		name = lb.ServiceName{Namespace: strings.Clone(name.Namespace), Name: strings.Clone(name.Name)}
		s = &service{name: name}
		m.services[name] = s
	}
	return s
}

// tidy drops parts without content, and the service with its last one.
func (m *Mesh) tidy(s *service) {
	s.parts = slices.DeleteFunc(s.parts, func(p part) bool {
		empty := !p.present && p.kept == nil && p.held() == 0
		if empty {
			m.unhold(&p)
		}
		return empty
	})
	if len(s.parts) == 0 && !s.global() {
		delete(m.services, s.name)
	}
}

// touch marks a service for recomputation if it concerns the kernel at all.
func (m *Mesh) touch(s *service) {
	if !s.global() {
		return
	}
	records, others := 1, 0
	for i := range s.parts {
		if s.parts[i].cluster == m.speaker {
			records += len(s.parts[i].said)
		} else {
			others += len(s.parts[i].said)
		}
	}
	records += min(others, records+mostOfOthers)
	if _, already := m.dirty[s.name]; !already {
		m.dirty[s.name] = struct{}{}
		m.work += records * len(s.frontends())
		m.worked++
	}
	m.work += records
}

// mostOfOthers is how many records of others count as work of a cluster whatever it
// has itself: who changes little in a service that others fill does not pay for
// all of that.
const mostOfOthers = 100

// Work returns about how many records have to be looked at for what changed since
// the last call, and of how many services: all of a service's when one of them
// changes, and once more for each of its frontends.
func (m *Mesh) Work() (records, services int) {
	records, services = m.work, m.worked
	m.work, m.worked = 0, 0
	return records, services
}

// provisional counts the kept records that no said one replaces.
func (p *part) provisional() (n int) {
	for i := range p.kept {
		if _, replaced := slices.BinarySearchFunc(p.said, p.kept[i], compareRecords); !replaced {
			n++
		}
	}
	return n
}

// tally adds p to its cluster's count of what is provisional, times sign.
func (p *part) tally(sign int) {
	if n := p.provisional(); n > 0 {
		p.cluster.provisional.Services += sign
		p.cluster.provisional.Backends += sign * n
	}
}

// setKept replaces p's kept records, nil for none, whose references are the
// caller's to take and to drop.
func (p *part) setKept(records []record) {
	p.tally(-1)
	count(&p.cluster.kept, p.kept != nil, records != nil)
	p.kept = records
	p.tally(1)
}

// setSaid replaces what the cluster of p, a part of s, says, records with their
// references, and reports whether that changed.
func (m *Mesh) setSaid(s *service, p *part, present bool, records []record) bool {
	changed := p.present != present || !slices.Equal(p.said, records)
	if changed && !p.cluster.local {
		m.noteWithdrawn(s, p, records)
	}
	count(&p.cluster.services, p.present, present)
	p.cluster.backends += len(records) - len(p.said)
	p.cluster.booked += m.weight(records) - m.weight(p.said)
	p.tally(-1)
	m.drop(p.said)
	p.present, p.said = present, records
	p.tally(1)
	if !present {
		p.first = nil
	}
	return changed
}

func count(n *int, was, is bool) {
	if was {
		*n--
	}
	if is {
		*n++
	}
}

func (m *Mesh) drop(records []record) {
	for i := range records {
		m.words.drop(records[i].names)
		m.words.drop(records[i].zone)
	}
}

// share takes references for another use of records.
func (m *Mesh) share(records []record) {
	for i := range records {
		m.words.share(records[i].names)
		m.words.share(records[i].zone)
	}
}

// forget drops p's kept records.
func (m *Mesh) forget(p *part) {
	m.drop(p.kept)
	p.setKept(nil)
}

// keep turns what c says of s into kept content; what is in force stays as it
// is, so nothing becomes dirty.
func (m *Mesh) keep(c *cluster, s *service) {
	if c.local && s.said != nil {
		s.kept, s.said = &face{affinity: s.said.affinity, unshared: s.said.unshared, terms: s.said.terms, frontends: canonicalFrontends(slices.Clone(s.frontends()))}, nil
	}
	p := s.part(c)
	if p == nil || !p.present && p.inForce() == 0 {
		return
	}
	all := make([]record, 0, len(p.said)+len(p.kept)+p.inForce())
	p.each(func(r *record) { all = append(all, *r) })
	if !c.local { // it may have come back with another list time and again; what was there first stays
		var left []record
		slices.Reverse(all)
		if all, left = m.fitting(all, 2*m.limitsOf(c).ofService); len(left) > 0 {
			m.touch(s)
		}
	}
	slices.SortFunc(all, compareRecords)
	m.share(all)  // before the old references go
	if c.braked { // they are among those in force
		m.setHeld(p, nil)
	}
	if p.kept != nil {
		m.forget(p)
	}
	m.setSaid(s, p, false, nil)
	p.setKept(all)
}

// claim is what makes a frontend one: no two services can have it. What takes the
// place of another for some clients goes with that one.
type claim struct {
	addr  netip.AddrPort
	proto lb.Protocol
	host  bool // it is for the node's own sockets
}

func claimOf(f lb.Frontend) claim { return claim{f.Addr, f.Protocol, f.Scope == lb.ScopeHost} }

// holder is the service that has the best claim to a frontend; nil if none has,
// for what takes the place of a frontend that is not there.
func (m *Mesh) holder(f lb.Frontend) *service {
	if holders := m.claims[claimOf(f)]; len(holders) > 0 {
		return holders[0]
	}
	return nil
}

// reface changes a service's local side through change and keeps the index of
// claims: of several services that name the same frontend the first in name
// order has it, the others are without until it lets go.
func (m *Mesh) reface(s *service, change func()) {
	m.touch(s)
	before := s.frontends()
	change()
	m.disown(s)
	m.enlist(s)
	after := s.frontends()
	for _, f := range before {
		if _, stays := findFrontend(after, f); !stays && f.Scope != lb.ScopeOutside {
			m.unclaim(s, claimOf(f))
		}
	}
	for _, f := range after {
		if _, was := findFrontend(before, f); !was && f.Scope != lb.ScopeOutside {
			m.addClaim(s, claimOf(f))
		}
	}
	m.touch(s)
}

// enlist keeps the index of services with terms.
func (m *Mesh) enlist(s *service) {
	if s.terms() == nil {
		delete(m.special, s)
	} else {
		m.special[s] = struct{}{}
	}
}

func findFrontend(in []lb.Frontend, f lb.Frontend) (int, bool) {
	i := slices.IndexFunc(in, func(o lb.Frontend) bool { return compareFrontends(o, f) == 0 })
	return i, i >= 0
}

func (m *Mesh) addClaim(s *service, k claim) {
	holders := append(m.claims[k], s)
	slices.SortFunc(holders, func(a, b *service) int { return a.name.Compare(b.name) })
	m.claims[k] = holders
	m.touchAll(holders)
}

func (m *Mesh) unclaim(s *service, k claim) {
	holders := slices.DeleteFunc(m.claims[k], func(o *service) bool { return o == s })
	m.claims[k] = holders
	if len(holders) == 0 {
		delete(m.claims, k)
	}
	m.touchAll(holders)
}

func (m *Mesh) touchAll(services []*service) {
	for _, s := range services {
		m.touch(s)
	}
}
