package mesh

import (
	"fmt"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// slice is one endpoint slice in force. Its records have references of their
// own in the pool. It is linked with the other slices of its part.
type slice struct {
	service    *service
	records    []record
	prev, next *slice
}

// The label by which the mesh's own controllers mark slices that they made of
// other clusters' backends, and its value (Cilium v1.20,
// pkg/clustermesh/endpointslicesync).
const (
	managedByLabel  = "endpointslice.kubernetes.io/managed-by"
	managedByMesher = "endpointslice-mesh-controller.cilium.io"
)

// applySlice takes one change of a slice; id is <namespace>/<slice> and may be
// part of a larger string. Whatever the slice said before is gone first, so a
// value that is not accepted leaves nothing behind.
func (m *Mesh) applySlice(c *cluster, namespace, id string, ch *Change) {
	m.dropSlice(c, id)
	if ch.Deleted {
		return
	}
	v, err := m.codec.Decode(c.source(), ch.Key, ch.Value, m.cfg.Limits)
	if err != nil {
		c.reject(refusal{key: ch.Key, reason: reasonOf(err)}, err)
		return
	}
	if v.Labels[managedByLabel] == managedByMesher { // other clusters' backends, which they tell us themselves
		return
	}
	name := lb.ServiceName{Namespace: namespace, Name: v.ServiceName()}
	if reason, err := m.admitsSlice(c, id, name); err != nil {
		c.reject(refusal{key: ch.Key, service: name, reason: reason}, err)
		return
	}
	raw := m.sliceBackends(c, ch.Key, v)
	if err := m.sliceFits(c, name, len(raw)); err != nil {
		c.reject(refusal{key: ch.Key, service: name, reason: ReasonLimit}, err)
	} else {
		records, cut := m.records(raw, maxPortNames)
		if cut > 0 {
			c.reject(refusal{key: ch.Key, service: name, reason: ReasonLimit}, namesError(c, name, cut))
		}
		m.addSlice(c, id, m.ensure(name), records)
	}
	m.raw = modest(raw)
}

func (m *Mesh) admitsSlice(c *cluster, id string, name lb.ServiceName) (Reason, error) {
	if name.Name == "" {
		return ReasonValue, fmt.Errorf("slice %s of cluster %s names no service: its label kubernetes.io/service-name must be one's name", id, c.name)
	}
	return ReasonPolicy, m.admitsService(c, name)
}

// sliceFits checks the bounds on what is kept of one cluster, as if a slice of
// n ports were added to the named service.
func (m *Mesh) sliceFits(c *cluster, name lb.ServiceName, n int) error {
	services := c.services
	if s := m.services[name]; s == nil || !s.part(c).isPresent() {
		services++
	}
	if most := m.limitsOf(c); services > most.services || c.held+n > most.backends || len(c.slices) >= most.slices {
		return fmt.Errorf("cluster %s would have %d services, %d backends and %d slices: at most %d, %d and %d are kept; raise the limits or share fewer services",
			c.name, services, c.held+n, len(c.slices)+1, most.services, most.backends, most.slices)
	}
	return nil
}

// sliceBackends lists every address of a slice with every port that has a
// number. A slice states its ports once, so a small value may mean millions of
// pairs: the list ends where it exceeds what is kept of a cluster.
func (m *Mesh) sliceBackends(c *cluster, key string, v *schema.EndpointSlice) []rawBackend {
	raw, room := m.raw[:0], m.limitsOf(c).backends-c.held
	name := lb.ServiceName{Namespace: v.Namespace, Name: v.ServiceName()}
	for i := range v.Endpoints {
		e := &v.Endpoints[i]
		state := stateOfEndpoint(e)
		for _, addr := range e.Addresses {
			if !m.admitsAddress(c, addr) {
				c.reject(refusal{key: key, service: name, address: addr, reason: ReasonAddress}, m.addressError(c, name, addr))
				continue
			}
			for _, port := range v.Ports {
				if port.Port == 0 {
					continue
				}
				r := record{addr: addr.As16(), port: port.Port, proto: protocol(port.Protocol), state: state}
				raw = append(raw, rawBackend{record: r, name: port.Name, zoneName: e.Zone})
			}
			if len(raw) > room {
				return raw
			}
		}
	}
	return raw
}

// maxScratch bounds what is kept for reuse of a list that one large value made.
const maxScratch = 4096

// modest returns scratch memory for the next use, unless it is unusually large.
func modest[T any](scratch []T) []T {
	if cap(scratch) > maxScratch {
		return nil
	}
	return scratch[:0]
}

// stateOfEndpoint fills in what is unknown as Kubernetes' API defines it.
func stateOfEndpoint(e *schema.Endpoint) lb.State {
	ready := e.Ready.Or(true)
	return stateOf(ready, e.Serving.Or(ready), e.Terminating.Or(false))
}

// addSlice puts a slice in force. What its service's part says is computed
// when all changes at hand are taken, see settle.
func (m *Mesh) addSlice(c *cluster, id string, s *service, records []record) {
	p := s.ensurePart(c)
	sl := &slice{service: s, records: records, next: p.first}
	if p.first != nil {
		p.first.prev = sl
	}
	p.first = sl
	if c.slices == nil {
		c.slices = map[string]*slice{}
	}
	c.slices[string([]byte(id))] = sl // a copy: id is part of a key
	c.held += m.weight(records)
	m.unsettle(s, p)
}

func (m *Mesh) dropSlice(c *cluster, id string) {
	sl := c.slices[id]
	if sl == nil {
		return
	}
	delete(c.slices, id)
	p := sl.service.part(c)
	if sl.prev == nil {
		p.first = sl.next
	} else {
		sl.prev.next = sl.next
	}
	if sl.next != nil {
		sl.next.prev = sl.prev
	}
	c.held -= m.weight(sl.records)
	m.drop(sl.records)
	m.unsettle(sl.service, p)
}

// unsettle notes that p's slices changed.
func (m *Mesh) unsettle(s *service, p *part) {
	count(&p.cluster.services, p.present, p.first != nil)
	p.present = p.first != nil
	p.heard = m.heard
	if !p.unsettled {
		p.unsettled = true
		m.unsettled = append(m.unsettled, s)
	}
}

// settle computes what the parts say whose slices changed. Once for all
// changes at hand: a service of many slices would else be computed anew for
// each of them.
func (m *Mesh) settle(c *cluster) {
	for _, s := range m.unsettled {
		p := s.part(c)
		p.unsettled = false
		records, cut := m.union(p.first)
		if m.setSaid(s, p, p.present, m.curbSlices(p, s.name, records, cut)) {
			m.touch(s)
		}
		m.tidy(s)
	}
	clear(m.unsettled)
	m.unsettled = modest(m.unsettled)
}

// forgetSlices drops all slices of c. The parts' own records are the caller's
// to drop.
func (m *Mesh) forgetSlices(c *cluster) {
	for _, sl := range c.slices {
		m.drop(sl.records)
	}
	c.slices, c.held = nil, 0
}

// union returns the records of all slices of a list, each address, port and
// protocol once, and takes references for them. It does not depend on the
// slices' order. A single slice's records are used as they are: they are
// never changed. cut counts the records that lost names by being joined.
func (m *Mesh) union(list *slice) (out []record, cut int) {
	if list == nil {
		return nil, 0
	}
	if list.next == nil {
		m.share(list.records)
		return list.records, 0
	}
	all := m.merged(list)
	out = make([]record, 0, distinct(all))
	for len(all) > 0 {
		n := 1
		for n < len(all) && compareRecords(all[0], all[n]) == 0 {
			n++
		}
		r, short := m.unite(all[:n])
		if short {
			cut++
		}
		out, all = append(out, r), all[n:]
	}
	return out, cut
}

// merged returns the records of all slices of a list in order. Each slice's are
// in order already, so pairs of them are merged until one list is left. The
// result is scratch memory.
func (m *Mesh) merged(list *slice) []record {
	all, ends := m.all[:0], m.ends[:0]
	for ; list != nil; list = list.next {
		all = append(all, list.records...)
		ends = append(ends, len(all))
	}
	spare := slices.Grow(m.spare[:0], len(all))[:len(all)]
	for len(ends) > 1 {
		n, start := 0, 0
		for i := 0; i < len(ends); i += 2 {
			middle, end := ends[i], ends[min(i+1, len(ends)-1)]
			mergeTwo(spare[start:end], all[start:middle], all[middle:end])
			ends[n] = end
			start, n = end, n+1
		}
		all, spare, ends = spare, all, ends[:n]
	}
	m.all, m.spare, m.ends = modest(all), modest(spare), modest(ends)
	return all
}

// mergeTwo merges a and b, which are in order, into out, which has their length.
func mergeTwo(out, a, b []record) {
	for i := range out {
		if len(b) == 0 || len(a) > 0 && compareRecords(a[0], b[0]) <= 0 {
			out[i], a = a[0], a[1:]
		} else {
			out[i], b = b[0], b[1:]
		}
	}
}

// distinct counts the addresses, ports and protocols of a sorted list.
func distinct(sorted []record) int {
	n := 0
	for i := range sorted {
		if i == 0 || compareRecords(sorted[i-1], sorted[i]) != 0 {
			n++
		}
	}
	return n
}

// unite joins what several slices say of one address, port and protocol, by
// the rules of gather, and reports whether names were left out.
func (m *Mesh) unite(group []record) (r record, cut bool) {
	r = group[0]
	if !slices.ContainsFunc(group, func(o record) bool { return o != r }) {
		m.share(group[:1])
		return r, false
	}
	var names []string
	zone := ""
	for i := range group {
		r.state = min(r.state, group[i].state)
		if i > 0 && group[i].names == group[i-1].names {
			continue
		}
		var left bool
		names, left = addNames(names, m.words.list(group[i].names))
		cut = cut || left
	}
	for i := range group {
		if group[i].state == r.state {
			zone = firstZone(zone, m.words.word(group[i].zone))
		}
	}
	r.names, r.zone = m.words.take(names), m.words.takeWord(zone)
	return r, cut
}
