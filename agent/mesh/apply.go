package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Change is one key of a cluster's watch: its new value, or its deletion. The
// value is not kept.
type Change struct {
	Key     string
	Value   []byte
	Deleted bool
	Heard
}

// Heard is which state of a cluster's store something comes from, and when it was
// heard, in seconds of a clock that is the caller's. Nothing is decided by it.
type Heard struct {
	Revision int64
	At       int64
}

// Apply takes changes of the named cluster in order. Keys of the local cluster
// hold [schema.LocalService] records, those of the others what
// [schema.ReadServicesFrom] says of the accepted announcement: [schema.Service]
// records or [schema.EndpointSlice] ones. The slices of a service add up: what
// several say of one address, port and protocol is joined. A value that cannot
// be decoded or is not admitted makes its key count as deleted and is
// remembered in the cluster's status. Changes of a cluster that is unknown, was
// never accepted by [Mesh.Connected] or is refused now are ignored.
func (m *Mesh) Apply(name string, changes []Change) {
	c := m.clusters[name]
	if c == nil || !c.accepted || c.state == Refused {
		return
	}
	m.speaker = c
	for i := range changes {
		m.apply(c, &changes[i])
	}
	m.settle(c)
	m.judge(c)
	m.speaker = nil
}

func (m *Mesh) apply(c *cluster, ch *Change) {
	m.heard = ch.Heard
	c.readmit(ch.Key)
	ns, short, err := schema.ParseServiceKey(c.kind, c.name, c.cached, ch.Key)
	if err != nil {
		if !ch.Deleted {
			c.reject(refusal{key: ch.Key, reason: ReasonKey}, err)
		}
		return
	}
	name := lb.ServiceName{Namespace: ns, Name: short}
	switch {
	case c.kind == schema.KindEndpointSlice:
		m.applySlice(c, ns, ch.Key[len(ch.Key)-len(ns)-1-len(short):], ch)
	case ch.Deleted:
		m.withdraw(c, name)
	case c.local:
		m.putLocal(c, name, ch)
	default:
		m.putRemote(c, name, ch)
	}
}

func (c *cluster) source() schema.Source {
	return schema.Source{Cluster: c.name, ClusterID: c.id, Cached: c.cached}
}

// refuse counts the value as a rejection and its key as deleted.
func (m *Mesh) refuse(c *cluster, name lb.ServiceName, ch *Change, reason Reason, err error) {
	c.reject(refusal{key: ch.Key, service: name, reason: reason}, err)
	m.withdraw(c, name)
}

// reasonOf tells a value too large from one that speaks for somebody else and
// from one that is malformed.
func reasonOf(err error) Reason {
	var e *schema.Error
	if !errors.As(err, &e) {
		return ReasonValue
	}
	switch e.Field {
	case "cluster", "clusterID", "namespace", "name":
		return ReasonOwner
	case "value bytes", "decoded bytes":
		return ReasonLimit
	}
	return ReasonValue
}

// withdraw makes the cluster's record of a service not exist. What was
// restored stays until the cluster is synced.
func (m *Mesh) withdraw(c *cluster, name lb.ServiceName) {
	s := m.services[name]
	if s == nil {
		return
	}
	if p := s.part(c); p != nil && m.setSaid(s, p, false, nil) {
		m.touch(s)
	}
	if c.local && s.said != nil {
		m.reface(s, func() { s.said = nil })
	}
	m.tidy(s)
}

func (m *Mesh) putLocal(c *cluster, name lb.ServiceName, ch *Change) {
	v, err := schema.DecodeLocalService(c.source(), ch.Key, ch.Value, m.cfg.Limits)
	if err != nil {
		m.refuse(c, name, ch, reasonOf(err), err)
		return
	}
	records, _ := m.records(m.localBackends(v), anyNames)
	s := m.ensure(name)
	if m.setSaid(s, m.hearPart(s, c), true, records) {
		m.touch(s)
	}
	if f := faceOf(v, s.terms()); !f.equal(s.said) {
		m.expand(f)
		m.reface(s, func() { s.said = f })
	}
}

func (m *Mesh) putRemote(c *cluster, name lb.ServiceName, ch *Change) {
	v, err := schema.DecodeService(c.source(), ch.Key, ch.Value, m.cfg.Limits)
	switch {
	case err != nil:
		m.refuse(c, name, ch, reasonOf(err), err)
		return
	case !v.Shared: // Cilium reads this as a deletion
		m.withdraw(c, name)
		return
	}
	if err := m.admitsService(c, name); err != nil {
		m.refuse(c, name, ch, ReasonPolicy, err)
		return
	}
	raw := m.remoteBackends(c, ch.Key, v)
	if err := m.fits(c, name, len(raw)); err != nil {
		m.refuse(c, name, ch, ReasonLimit, err)
		return
	}
	records, cut := m.records(raw, maxPortNames)
	s := m.ensure(name)
	p := m.hearPart(s, c)
	if m.setSaid(s, p, true, m.curb(p, name, ch.Key, records, cut)) {
		m.touch(s)
	}
}

// hearPart is the part of s that the change under way is about.
func (m *Mesh) hearPart(s *service, c *cluster) *part {
	p := s.ensurePart(c)
	p.heard = m.heard
	return p
}

// fits checks the bounds on what is kept of one cluster, as if name's record
// were replaced by one of n ports and names.
func (m *Mesh) fits(c *cluster, name lb.ServiceName, n int) error {
	services, backends := c.services+1, c.booked+n
	if s := m.services[name]; s != nil {
		if p := s.part(c); p != nil && p.present {
			services, backends = services-1, backends-m.weight(p.said)
		}
	}
	if most := m.limitsOf(c); services > most.services || backends > most.backends {
		return fmt.Errorf("cluster %s would have %d services and %d backends: at most %d and %d are kept; raise the limits or share fewer services",
			c.name, services, backends, most.services, most.backends)
	}
	return nil
}

// rawBackend is one port name of one backend, before names are gathered.
type rawBackend struct {
	record
	name, zoneName string
}

func compareRaw(a, b rawBackend) int {
	return cmp.Or(compareRecords(a.record, b.record), cmp.Compare(a.state, b.state),
		strings.Compare(a.name, b.name), strings.Compare(a.zoneName, b.zoneName))
}

func (m *Mesh) remoteBackends(c *cluster, key string, v *schema.Service) []rawBackend {
	raw := m.raw[:0]
	for addr, ports := range v.Backends {
		if !m.admitsAddress(c, addr) {
			name := lb.ServiceName{Namespace: v.Namespace, Name: v.Name}
			c.reject(refusal{key: key, service: name, address: addr, reason: ReasonAddress}, m.addressError(c, name, addr))
			continue
		}
		for name, l4 := range ports {
			r := record{addr: addr.As16(), port: l4.Port, proto: protocol(l4.Protocol)}
			raw = append(raw, rawBackend{record: r, name: name, zoneName: v.Zones[addr].Zone})
		}
	}
	m.raw = raw
	return raw
}

func (m *Mesh) localBackends(v *schema.LocalService) []rawBackend {
	raw := m.raw[:0]
	for _, b := range v.Backends {
		r := record{addr: b.Address.As16(), port: b.Port, proto: protocol(b.Protocol), state: stateOf(b.Ready, b.Serving, b.Terminating)}
		if b.Node != "" && b.Node == m.cfg.Node {
			r.state |= here
		}
		names := b.PortNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			raw = append(raw, rawBackend{record: r, name: name, zoneName: b.Zone})
		}
	}
	m.raw = raw
	return raw
}

// stateOf follows kube-proxy: ready endpoints first, else those that serve
// while they terminate, never the others.
func stateOf(ready, serving, terminating bool) lb.State {
	switch {
	case ready:
		return lb.Active
	case serving && terminating:
		return lb.Terminating
	}
	return lb.NotReady
}

func protocol(p schema.Protocol) lb.Protocol {
	switch p {
	case schema.UDP:
		return lb.UDP
	case schema.SCTP:
		return lb.SCTP
	}
	return lb.TCP
}

// records sorts raw and gathers the names of each address, port and protocol.
// Of differing states the best counts, and the first zone in order that is said
// together with it. It takes references in the pool. Of more names than most the
// first in order are kept; cut counts the records that lost some by it.
func (m *Mesh) records(raw []rawBackend, most int) (out []record, cut int) {
	slices.SortFunc(raw, compareRaw)
	n := 0
	for i := range raw {
		if i == 0 || compareRecords(raw[i-1].record, raw[i].record) != 0 {
			n++
		}
	}
	out = make([]record, 0, n)
	var names []string
	for first := 0; first < len(raw); {
		next := first + 1
		for next < len(raw) && compareRecords(raw[first].record, raw[next].record) == 0 {
			next++
		}
		r, short := m.gather(raw[first:next], &names, most)
		if short {
			cut++
		}
		out = append(out, r)
		first = next
	}
	clear(raw) // its strings belong to a decoded value
	return out, cut
}

func (m *Mesh) gather(group []rawBackend, scratch *[]string, most int) (r record, cut bool) {
	names := (*scratch)[:0]
	for i := range group {
		if group[i].name != "" {
			names = append(names, group[i].name)
		}
	}
	slices.Sort(names)
	*scratch = names
	names = slices.Compact(names)
	if cut = len(names) > most; cut {
		names = names[:most]
	}
	r = group[0].record
	zone := ""
	for i := range group {
		if group[i].state == r.state {
			zone = firstZone(zone, group[i].zoneName)
		}
	}
	r.names, r.zone = m.words.take(names), m.words.takeWord(zone)
	return r, cut
}

// firstZone is the first in order that is not empty.
func firstZone(a, b string) string {
	if a == "" || b != "" && b < a {
		return b
	}
	return a
}

// faceOf reads a record's local side but for the frontends that follow from it.
func faceOf(v *schema.LocalService, former *terms) *face {
	f := &face{affinity: affinityOf(v.Affinity), unshared: !v.Shared, terms: termsOf(v, former), ports: nodePortsOf(v)}
	f.limited = v.Restricted
	f.onNode = v.ExternalTrafficPolicy == schema.TrafficPolicyLocal
	f.fixed = canonicalFrontends(append(frontendsOf(v.Frontends, false), f.outside(frontendsOf(v.ExternalFrontends, true))...))
	return f
}

// frontendsOf reads addresses, all of them external or those that say so.
func frontendsOf(list []schema.LocalFrontend, external bool) []lb.Frontend {
	out := make([]lb.Frontend, len(list))
	for i, fe := range list {
		out[i] = lb.Frontend{
			Addr:     netip.AddrPortFrom(fe.Address.Unmap(), fe.Port),
			Protocol: protocol(fe.Protocol),
			PortName: strings.Clone(fe.PortName),
		}
		if external || fe.External {
			out[i].Kind = lb.KindExternal
		}
	}
	return out
}

func affinityOf(s string) lb.Affinity {
	switch s {
	case "local":
		return lb.AffinityLocal
	case "remote":
		return lb.AffinityRemote
	}
	return lb.AffinityNone
}
