package mesh_test

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// The clusters of all tests; the own one has not the lowest id.
const (
	own    = "east"
	ownID  = 2
	remote = "west"
)

var ids = map[string]uint32{own: ownID, remote: 1, "north": 3, "south": 4}

func config() mesh.Config {
	return mesh.Config{LocalCluster: own, LocalID: ownID, MaxClusters: 255, Node: "n1"}
}

func announce(name string) schema.ClusterConfig { return schema.ClusterConfig{ID: ids[name]} }

func svc(name string) lb.ServiceName { return lb.ServiceName{Namespace: "shop", Name: name} }

func keyOf(cluster string, n lb.ServiceName) string {
	if cluster == own {
		return schema.LocalServiceKey(cluster, n.Namespace, n.Name)
	}
	return schema.ServiceKey(cluster, n.Namespace, n.Name)
}

// item is what a key of a store names: a record of a kind.
type item struct {
	kind schema.Kind
	name lb.ServiceName // of the record, which may be a slice
}

func (i item) key(cluster string, cached bool) string {
	key := keyOf(cluster, i.name)
	if i.kind == schema.KindEndpointSlice {
		key = schema.EndpointSliceKey(cluster, i.name.Namespace, i.name.Name)
	}
	if cached {
		key = strings.Replace(key, "cilium/state/", "cilium/cache/", 1)
	}
	return key
}

func compareItems(a, b item) int { return cmp.Or(cmp.Compare(a.kind, b.kind), a.name.Compare(b.name)) }

// entry is one value of a cluster's store: what it means to the oracle, and the
// bytes. A refused value means nothing.
type entry struct {
	service   lb.ServiceName // that it is about
	value     []byte
	frontends []lb.Frontend
	ports     []uint16 // on every node
	onNode    bool     // is where clients outside have to stay
	affinity  lb.Affinity
	terms     lb.Service // what else the own cluster says, backends and frontends aside
	backends  []lb.Backend
	refused   bool
}

func genEntry(t *rapid.T, codec *schema.SliceCodec, cluster string, i item) entry {
	if i.kind == schema.KindEndpointSlice {
		return genSlice(t, codec, cluster, i.name)
	}
	e := genRemote
	if i.kind == schema.KindLocalService {
		e = func(t *rapid.T, _ string, n lb.ServiceName) entry { return genLocal(t, n) }
	}
	out := e(t, cluster, i.name)
	out.service = i.name
	return out
}

func genLocal(t *rapid.T, n lb.ServiceName) entry {
	s := schema.LocalService{Cluster: own, ClusterID: ownID, Namespace: n.Namespace, Name: n.Name, Shared: rapid.Bool().Draw(t, "shared")}
	s.Affinity = rapid.SampledFrom([]string{"", "local", "remote"}).Draw(t, "affinity")
	e := entry{affinity: map[string]lb.Affinity{"": lb.AffinityNone, "local": lb.AffinityLocal, "remote": lb.AffinityRemote}[s.Affinity]}
	if rapid.Bool().Draw(t, "terms") {
		e.terms = genTerms(t, &s)
	}
	for _, port := range rapid.SliceOfNDistinct(rapid.Uint16Range(80, 82), 0, 2, rapid.ID).Draw(t, "frontends") {
		f := schema.LocalFrontend{Address: netip.MustParseAddr("10.96.0.1"), Port: port, Protocol: schema.TCP, PortName: genName(t)}
		s.Frontends = append(s.Frontends, f)
		e.frontends = append(e.frontends, lb.Frontend{Addr: netip.AddrPortFrom(f.Address, f.Port), Protocol: lb.TCP, PortName: f.PortName})
	}
	genOutside(t, &s, &e)
	for _, i := range rapid.SliceOfNDistinct(rapid.Uint8Range(1, 4), 0, 3, rapid.ID).Draw(t, "backends") {
		e.addLocal(t, &s, i)
	}
	slices.SortFunc(s.Backends, func(a, b schema.LocalBackend) int { return a.Address.Compare(b.Address) })
	e.value = s.Encode()
	if rapid.IntRange(0, 9).Draw(t, "spoil") == 0 {
		s.ClusterID = 7
		return entry{value: s.Encode(), refused: true}
	}
	return e
}

func (e *entry) addLocal(t *rapid.T, s *schema.LocalService, i uint8) {
	b := schema.LocalBackend{Address: netip.AddrFrom4([4]byte{10, 0, 0, i}), Port: 8080, Protocol: schema.TCP}
	b.Ready, b.Serving, b.Terminating = rapid.Bool().Draw(t, "ready"), rapid.Bool().Draw(t, "serving"), rapid.Bool().Draw(t, "terminating")
	b.Node = rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "node")
	if n := genName(t); n != "" {
		b.PortNames = []string{n}
	}
	if rapid.Bool().Draw(t, "zoned") {
		b.Zone = "zone-a"
	}
	s.Backends = append(s.Backends, b)
	state := lb.NotReady
	if b.Ready {
		state = lb.Active
	} else if b.Serving && b.Terminating {
		state = lb.Terminating
	}
	known := backend(own, netip.AddrPortFrom(b.Address, 8080), b.PortNames, state, b.Zone)
	known.Here = b.Node == "n1"
	e.backends = append(e.backends, known)
}

func backend(cluster string, addr netip.AddrPort, names []string, state lb.State, zone string) lb.Backend {
	return lb.Backend{Addr: addr, Protocol: lb.TCP, Names: names, Cluster: cluster, ClusterID: uint16(ids[cluster]),
		Local: cluster == own, State: state, Zone: zone}
}

func genName(t *rapid.T) string { return rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "name") }

func genRemote(t *rapid.T, cluster string, n lb.ServiceName) entry {
	s := schema.Service{Cluster: cluster, ClusterID: ids[cluster], Namespace: n.Namespace, Name: n.Name, Shared: true, IncludeExternal: true}
	s.Backends, s.Zones = map[netip.Addr]schema.PortMap{}, map[netip.Addr]schema.Zone{}
	var e entry
	for _, i := range rapid.SliceOfNDistinct(rapid.Uint8Range(3, 6), 0, 3, rapid.ID).Draw(t, "backends") {
		e.addRemote(t, &s, netip.AddrFrom4([4]byte{10, 0, 0, i}))
	}
	if rapid.IntRange(0, 5).Draw(t, "denied") == 0 { // only that address counts for nothing
		s.Backends[netip.MustParseAddr("169.254.169.254")] = schema.PortMap{"a": {Protocol: schema.TCP, Port: 80}}
	}
	e.value = s.Encode()
	switch rapid.IntRange(0, 12).Draw(t, "spoil") {
	case 0:
		return entry{value: e.value[1:], refused: true}
	case 1:
		s.Cluster = "north-by-northwest"
	case 2:
		s.ClusterID = ownID
	case 3:
		s.Shared = false
	default:
		return e
	}
	return entry{value: s.Encode(), refused: true}
}

func (e *entry) addRemote(t *rapid.T, s *schema.Service, a netip.Addr) {
	zone := rapid.SampledFrom([]string{"", "zone-b"}).Draw(t, "zone")
	if zone != "" {
		s.Zones[a] = schema.Zone{Zone: zone}
	}
	ports := schema.PortMap{}
	byPort := map[uint16][]string{}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"", "a", "b"}), 1, 3, rapid.ID).Draw(t, "names") {
		port := rapid.Uint16Range(8080, 8081).Draw(t, "port")
		ports[name] = schema.L4{Protocol: schema.TCP, Port: port}
		byPort[port] = append(byPort[port], name)
	}
	s.Backends[a] = ports
	for port, names := range byPort {
		names = slices.DeleteFunc(names, func(n string) bool { return n == "" })
		slices.Sort(names)
		e.backends = append(e.backends, backend(s.Cluster, netip.AddrPortFrom(a, port), names, lb.Active, zone))
	}
}

// oracle knows what was delivered and what was restored, and computes
// everything anew each time it is asked.
type oracle struct {
	delivered map[string]map[item]entry           // by cluster
	node      []netip.Addr                        // addresses of our node
	restored  map[string]map[lb.ServiceName]entry // by cluster, until it is synced
	zone      string
	lost      map[string]uint32
}

func newOracle() *oracle {
	return &oracle{delivered: map[string]map[item]entry{}, restored: map[string]map[lb.ServiceName]entry{}}
}

func (o *oracle) deliver(cluster string, i item, e entry, present bool) {
	if o.delivered[cluster] == nil {
		o.delivered[cluster] = map[item]entry{}
	}
	delete(o.delivered[cluster], i)
	if present && !e.refused {
		o.delivered[cluster][i] = e
	}
}

// said is what a cluster's records say of each service, joined.
func (o *oracle) said(cluster string) map[lb.ServiceName]entry {
	out := map[lb.ServiceName]entry{}
	for _, e := range o.delivered[cluster] {
		sum := out[e.service]
		sum.affinity, sum.terms = e.affinity, e.terms // the own cluster has one record per service
		sum.frontends = append(sum.frontends, o.expanded(e)...)
		sum.backends = join(append(slices.Clone(sum.backends), e.backends...))
		out[e.service] = sum
	}
	return out
}

// join is what several mentions of one address come to: all names, the best
// state, and of the zones said with it the first.
func join(in []lb.Backend) (out []lb.Backend) {
	for _, b := range in {
		i := slices.IndexFunc(out, func(o lb.Backend) bool { return o.Addr == b.Addr })
		if i < 0 {
			out = append(out, b)
			continue
		}
		o := &out[i]
		o.Names = slices.Concat(o.Names, b.Names)
		slices.Sort(o.Names)
		o.Names = slices.Compact(o.Names)
		better := b.State < o.State || b.State == o.State && b.Zone != "" && (o.Zone == "" || b.Zone < o.Zone)
		if better {
			o.State, o.Zone = b.State, b.Zone
		}
	}
	return out
}

// restore replaces everything by what tables leave in the kernel.
func (o *oracle) restore(tables []lb.FrontendTable) {
	*o = *newOracle()
	at := func(cluster string, n lb.ServiceName) entry {
		if o.restored[cluster] == nil {
			o.restored[cluster] = map[lb.ServiceName]entry{}
		}
		return o.restored[cluster][n]
	}
	for _, t := range tables {
		e := at(own, t.Service)
		e.affinity, e.frontends = t.Affinity, append(e.frontends, t.Frontend)
		o.recall(t.Frontend)
		e.terms = lb.Service{SessionAffinity: t.SessionAffinity, Policy: lb.Policy{Consistent: t.Consistent}}
		o.restored[own][t.Service] = e
		name := t.Frontend.PortName
		if name == "" && slices.ContainsFunc(tables, func(o lb.FrontendTable) bool { return o.Service == t.Service && o.Frontend.PortName != "" }) {
			name = "?"
		}
		for _, c := range t.Backends {
			e := at(c.Cluster, t.Service)
			e.backends = addRestored(e.backends, c.Backend, name)
			o.restored[c.Cluster][t.Service] = e
		}
	}
}

// keep makes what a cluster said count as restored.
func (o *oracle) keep(cluster string) {
	if o.restored[cluster] == nil {
		o.restored[cluster] = map[lb.ServiceName]entry{}
	}
	for n, e := range o.said(cluster) {
		old := o.restored[cluster][n]
		e.frontends = overlay(e.frontends, old.frontends, frontendKey)
		e.backends = overlay(e.backends, old.backends, backendKey)
		o.restored[cluster][n] = e
	}
	delete(o.delivered, cluster)
}

// provisional counts what is in use of a cluster without being said.
func (o *oracle) provisional(cluster string) (p mesh.Provisional) {
	said := o.said(cluster)
	for n, e := range o.restored[cluster] {
		if more := len(overlay(said[n].backends, e.backends, backendKey)) - len(said[n].backends); more > 0 {
			p.Services++
			p.Backends += more
		}
	}
	return p
}

func addRestored(in []lb.Backend, b lb.Backend, name string) []lb.Backend {
	b.Names, b.Zone = nil, ""
	i := slices.IndexFunc(in, func(o lb.Backend) bool { return o.Addr == b.Addr })
	if i < 0 {
		in, i = append(in, b), len(in)
	}
	if name != "" && !slices.Contains(in[i].Names, name) {
		in[i].Names = append(slices.Clone(in[i].Names), name)
		slices.Sort(in[i].Names)
	}
	return in
}

// services computes all services that the own cluster has.
func (o *oracle) services() map[lb.ServiceName]lb.Service {
	out, said := map[lb.ServiceName]lb.Service{}, map[string]map[lb.ServiceName]entry{}
	for cluster := range ids {
		said[cluster] = o.said(cluster)
	}
	for _, layer := range []map[string]map[lb.ServiceName]entry{o.restored, said} { // the latter's affinity wins
		for n, e := range layer[own] {
			s := e.terms
			s.Name, s.Affinity, s.Zone, s.Lost = n, e.affinity, o.zone, o.lost
			out[n] = s
		}
	}
	owner := map[lb.Frontend]lb.ServiceName{}
	for _, n := range slices.SortedFunc(maps.Keys(out), lb.ServiceName.Compare) {
		s := out[n]
		for _, f := range overlay(said[own][n].frontends, o.restored[own][n].frontends, frontendKey) {
			if first, taken := owner[claimKey(f)]; !taken || first == n {
				owner[claimKey(f)] = n
				s.Frontends = append(s.Frontends, f)
			}
		}
		for cluster := range ids {
			s.Backends = append(s.Backends, overlay(said[cluster][n].backends, o.restored[cluster][n].backends, backendKey)...)
		}
		out[n] = s
	}
	return out
}

func backendKey(b lb.Backend) netip.AddrPort { return b.Addr }

// overlay is said, and what was kept under other keys.
func overlay[T any, K comparable](said, kept []T, key func(T) K) []T {
	out := slices.Clone(said)
	for _, k := range kept {
		if !slices.ContainsFunc(said, func(s T) bool { return key(s) == key(k) }) {
			out = append(out, k)
		}
	}
	return out
}

func (o *oracle) tables() []lb.FrontendTable {
	var out []lb.FrontendTable
	for _, s := range o.services() {
		out = append(out, lb.Merge(s)...)
	}
	return out
}

// kernel is what a shell makes of the dirty names: nothing but them is looked
// at again.
type kernel map[lb.ServiceName][]lb.FrontendTable

func (k kernel) follow(m *mesh.Mesh) {
	for _, n := range m.Dirty() {
		k.set(m, n)
	}
}

func (k kernel) set(m *mesh.Mesh, n lb.ServiceName) {
	s, ok := m.Service(n)
	delete(k, n)
	if ok {
		k[n] = lb.Merge(s)
	}
}

func (k kernel) tables() []lb.FrontendTable {
	var out []lb.FrontendTable
	for _, t := range k {
		out = append(out, t...)
	}
	return out
}

// restored is what a new life reads back.
func (k kernel) restored() []mesh.Restored {
	var out []mesh.Restored
	for _, t := range k.tables() {
		r := mesh.Restored{Service: t.Service, Frontend: t.Frontend, Affinity: t.Affinity, SessionAffinity: t.SessionAffinity, Consistent: t.Consistent}
		for _, c := range t.Backends {
			c.Names, c.Zone = nil, ""
			r.Backends = append(r.Backends, c.Backend)
		}
		out = append(out, r)
	}
	return out
}

// bare renders tables without what the kernel does not hold.
func bare(tables []lb.FrontendTable) string {
	var out []lb.FrontendTable
	for _, t := range tables {
		t.Backends = slices.Clone(t.Backends)
		for i := range t.Backends {
			t.Backends[i].Names, t.Backends[i].Zone, t.Backends[i].Here = nil, "", false
		}
		out = append(out, t)
	}
	return lb.Format(out)
}

func status(m *mesh.Mesh, name string) mesh.ClusterStatus {
	for _, s := range m.Status() {
		if s.Name == name {
			return s
		}
	}
	return mesh.ClusterStatus{Name: "none"}
}

func rejections(s mesh.ClusterStatus) string {
	var b strings.Builder
	for _, r := range s.Rejections {
		fmt.Fprintf(&b, "%s keys=%d total=%d; ", r.Reason, r.Keys, r.Total)
	}
	return strings.TrimSuffix(b.String(), "; ")
}
