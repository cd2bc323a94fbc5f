package mesh

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// maxPortNames is how many names of one backend's port are kept of a remote
// cluster. A name is there because a port of the service has it; more than one
// is rare, as it takes two ports of a service that lead to one of the pod.
const maxPortNames = 64

// anyNames is no bound: for what our own cluster says, and what the kernel had.
const anyNames = math.MaxInt

// limits are what may be kept of one cluster; ofService is how many backends one
// port of a service may have, of each address family.
type limits struct{ services, slices, backends, ofService int }

func (m *Mesh) limitsOf(c *cluster) limits {
	or := func(a, b int) int {
		if a > 0 {
			return a
		}
		return b
	}
	l := limits{services: or(c.policy.MaxServices, m.cfg.MaxServices), slices: or(c.policy.MaxSlices, m.cfg.MaxSlices), backends: or(c.policy.MaxBackends, m.cfg.MaxBackends)}
	l.ofService = min(or(c.policy.MaxServiceBackends, m.cfg.MaxServiceBackends), l.backends)
	return l
}

// weight is what records count against the quota: one for each name of a port,
// since a name takes more memory than the rest of a record.
func (m *Mesh) weight(records []record) int {
	n := len(records)
	for i := range records {
		if names := records[i].names; names != 0 {
			n += len(m.words.list(names)) - 1
		}
	}
	return n
}

// addNames adds a list in order to the first names in order, of which no more
// than are kept, and reports whether one was left out. So joining many lists
// costs little more than looking at the first of each.
func addNames(names, list []string) (_ []string, cut bool) {
	for _, name := range list {
		at, known := slices.BinarySearch(names, name)
		switch {
		case known:
		case at == maxPortNames:
			return names, true
		case len(names) < maxPortNames:
			names = slices.Insert(names, at, name)
		default:
			copy(names[at+1:], names[at:])
			names[at], cut = name, true
		}
	}
	return names, cut
}

// curb bounds what a remote cluster says of one service, so that its part can
// neither fill the kernel's tables nor keep what others say from them. Those
// that can be used, and of these the first in order, stay: it does not depend on how they came. key is what is refused in
// part, and cut counts the records that lost names.
func (m *Mesh) curb(p *part, name lb.ServiceName, key string, records []record, cut int) []record {
	p.curbed = false
	said, most := len(records), m.limitsOf(p.cluster).ofService
	records, left := m.fitting(records, most)
	if len(left) > 0 {
		m.drop(left)
		p.curbed = true
		p.cluster.reject(refusal{key: key, service: name, reason: ReasonLimit},
			fmt.Errorf("cluster %s has %d backends of %s, of which %d are left out: at most %d of one port and address family are kept, first those that can be used, in order of address; raise max-service-backends in its peer file, or spread them over more services",
				p.cluster.name, said, name, len(left), most))
	}
	if cut > 0 {
		p.curbed = true
		p.cluster.reject(refusal{key: key, service: name, reason: ReasonLimit}, namesError(p.cluster, name, cut))
	}
	return records
}

// stream is what one frontend may take of a service: a record is of one for each
// name of its port.
type stream struct {
	four  bool
	proto lb.Protocol
	name  string
}

// fitting parts records into those that fit, at most so many of each stream, and
// the others. Those that can be used come first, then those in front. The records
// themselves stay as they are.
func (m *Mesh) fitting(records []record, most int) (fit, left []record) {
	if len(records) <= most {
		return records, nil
	}
	taken, fits := map[stream]int{}, make([]bool, len(records))
	for _, usable := range []bool{true, false} {
		for i := range records {
			if s := records[i].state &^ here; usable == (s == lb.Active || s == lb.Terminating) {
				fits[i] = m.take(taken, &records[i], most)
			}
		}
	}
	for i := range records {
		if fits[i] {
			fit = append(fit, records[i])
		} else {
			left = append(left, records[i])
		}
	}
	return fit, left
}

// take counts a record in all its streams if there is room in each.
func (m *Mesh) take(taken map[stream]int, r *record, most int) bool {
	names := []string{""}
	if r.names != 0 {
		names = m.words.list(r.names)
	}
	of := stream{four: netip.AddrFrom16(r.addr).Is4In6(), proto: r.proto}
	for _, of.name = range names {
		if taken[of] >= most {
			return false
		}
	}
	for _, of.name = range names {
		taken[of]++
	}
	return true
}

// shed drops what is kept of a cluster for services that we do not have if that is
// more than one list may say. It comes of lists that begin anew without ever
// coming to their end; what is in use stays, and is bounded by keep.
func (m *Mesh) shed(c *cluster) {
	services, backends := 0, 0
	for _, s := range m.services {
		if p := s.part(c); p != nil && p.kept != nil && !s.global() {
			services, backends = services+1, backends+m.weight(p.kept)
		}
	}
	if most := m.limitsOf(c); c.local || services <= most.services && backends <= most.backends {
		return
	}
	for _, s := range m.services {
		if p := s.part(c); p != nil && p.kept != nil && !s.global() {
			m.forget(p)
			m.tidy(s)
		}
	}
}

func namesError(c *cluster, name lb.ServiceName, cut int) error {
	return fmt.Errorf("%d backends of %s have ports of more names than are kept of cluster %s: at most %d of a port are, the first in order; give the service fewer ports that lead to the same one", cut, name, c.name, maxPortNames)
}

// curbSlices is curb for what all slices of a service come to. What is refused
// of them has no key of its own, so it gets one that no slice can have.
func (m *Mesh) curbSlices(p *part, name lb.ServiceName, records []record, cut int) []record {
	c := p.cluster
	if !p.curbed && cut == 0 && len(records) <= m.limitsOf(c).ofService { // what is more may fit, too
		return records
	}
	key := schema.WatchPrefix(c.kind, c.name, c.cached) + name.String() + " (all slices)"
	c.readmit(key)
	return m.curb(p, name, key, records, cut)
}
