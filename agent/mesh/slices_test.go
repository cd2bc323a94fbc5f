package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

func announceSlices(cluster string) schema.ClusterConfig {
	return layout{mode: schema.ModeServicesAndEndpointSlices}.announce(cluster)
}

// sliceOf is a slice of cart with one port; change encodes it.
func sliceOf(cluster, name string, addrs ...string) *schema.EndpointSlice {
	s := &schema.EndpointSlice{Cluster: cluster, ClusterID: ids[cluster], Namespace: "shop", Name: name, AddressType: schema.IPv4,
		Labels: map[string]string{serviceLabel: "cart"}, Ports: []schema.SlicePort{{Name: "http", Protocol: schema.TCP, Port: 8080}}}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, schema.Endpoint{Addresses: []netip.Addr{netip.MustParseAddr(a)}})
	}
	return s
}

func change(codec *schema.SliceCodec, s *schema.EndpointSlice) mesh.Change {
	return mesh.Change{Key: schema.EndpointSliceKey(s.Cluster, s.Namespace, s.Name), Value: codec.Encode(s)}
}

// joinedBySlices is joined whose first remote is read from slices.
func joinedBySlices(t *testing.T, cfg mesh.Config) *mesh.Mesh {
	t.Helper()
	m := joined(t, cfg, "north")
	m.AddCluster(remote, mesh.Policy{})
	if _, err := m.Connected(remote, announceSlices(remote)); err != nil {
		t.Fatal(err)
	}
	return m
}

func wantSum(t *testing.T, m *mesh.Mesh, services, backends int, refused string) {
	t.Helper()
	s := status(m, remote)
	if s.Services != services || s.Backends != backends || rejections(s) != refused {
		t.Errorf("%d services, %d backends, refused %q; want %d, %d, %q", s.Services, s.Backends, rejections(s), services, backends, refused)
	}
	if err := m.Audit(); err != nil {
		t.Error(err)
	}
}

// TestLimitsOfSlices: slices, services and mentions of backends are bounded per
// cluster; what fits stays, and room that comes free can be used.
func TestLimitsOfSlices(t *testing.T) {
	cfg := config()
	cfg.MaxServices, cfg.MaxSlices, cfg.MaxBackends = 2, 3, 4
	m, codec := joinedBySlices(t, cfg), &schema.SliceCodec{}
	put := func(s *schema.EndpointSlice) { m.Apply(remote, []mesh.Change{change(codec, s)}) }
	other := func(name, service string) *schema.EndpointSlice {
		s := sliceOf(remote, name, "10.1.0.9")
		s.Labels[serviceLabel] = service
		return s
	}
	put(sliceOf(remote, "a", "10.1.0.1", "10.1.0.2"))
	put(other("b", "web"))
	put(other("c", "third"))
	wantSum(t, m, 2, 3, "limit keys=1 total=1")
	put(sliceOf(remote, "c", "10.1.0.1", "10.1.0.2"))
	wantSum(t, m, 2, 3, "limit keys=1 total=2")
	put(sliceOf(remote, "c", "10.1.0.1")) // mentions a known backend
	wantSum(t, m, 2, 3, "limit keys=0 total=2")
	put(sliceOf(remote, "d"))
	wantSum(t, m, 2, 3, "limit keys=1 total=3")
	m.Apply(remote, []mesh.Change{{Key: change(codec, sliceOf(remote, "b")).Key, Deleted: true}})
	put(other("b", "third"))
	wantSum(t, m, 2, 3, "limit keys=1 total=3")
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1", "west:10.1.0.2")
}

// TestProvisionalServicesNeedRoomAgain: a service that is only still in force
// does not count, and is counted when it is said again.
func TestProvisionalServicesNeedRoomAgain(t *testing.T) {
	cfg := config()
	cfg.MaxServices = 1
	m, codec := joinedBySlices(t, cfg), &schema.SliceCodec{}
	web := sliceOf(remote, "b", "10.1.0.2")
	web.Labels[serviceLabel] = "web"
	m.Apply(remote, []mesh.Change{change(codec, sliceOf(remote, "a", "10.1.0.1"))})
	m.Relist(remote)
	m.Apply(remote, []mesh.Change{change(codec, web), change(codec, sliceOf(remote, "a", "10.1.0.1"))})
	wantSum(t, m, 1, 1, "limit keys=1 total=1")
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1")
	m.Synced(remote)
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
}

// hostileSlices are values that are small and mean much.
func hostileSlices() map[string]*schema.EndpointSlice {
	product := sliceOf(remote, "a")
	product.Ports = nil
	for i := range 1000 {
		product.Ports = append(product.Ports, schema.SlicePort{Name: fmt.Sprintf("port-%d", i), Protocol: schema.TCP, Port: uint16(i + 1)})
	}
	one := sliceOf(remote, "a")
	one.Endpoints = make([]schema.Endpoint, 1)
	for i := range 5000 {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		product.Endpoints = append(product.Endpoints, schema.Endpoint{Addresses: []netip.Addr{a}})
		one.Endpoints[0].Addresses = append(one.Endpoints[0].Addresses, a)
	}
	one.Ports = product.Ports
	return map[string]*schema.EndpointSlice{"endpoints times ports": product, "addresses times ports": one}
}

// TestSmallValuesThatMeanMillions: a slice that multiplies addresses by ports
// beyond the limits is refused at little cost.
func TestSmallValuesThatMeanMillions(t *testing.T) {
	for name, s := range hostileSlices() {
		t.Run(name, func(t *testing.T) {
			m, codec := joinedBySlices(t, config()), &schema.SliceCodec{}
			ch := change(codec, s)
			before := totalAlloc()
			m.Apply(remote, []mesh.Change{ch})
			if used := totalAlloc() - before; used > 64<<20 {
				t.Errorf("%d bytes cost %d of memory", len(ch.Value), used)
			}
			wantSum(t, m, 0, 0, "limit keys=1 total=1")
			if last := status(m, remote).Rejections[0].Last; !strings.Contains(last, "at most 10000, 100000 and 30000 are kept") {
				t.Error(last)
			}
		})
	}
}

// TestManySlicesOfOneService: all slices of a service that arrive together cost
// one computation of it.
func TestManySlicesOfOneService(t *testing.T) {
	const n = 20_000
	cfg := config()
	cfg.MaxServiceBackends = 3 * n
	m, codec := joinedBySlices(t, cfg), &schema.SliceCodec{}
	changes := make([]mesh.Change, n)
	for i := range changes {
		a := func(k int) string { return netip.AddrFrom4([4]byte{10, byte(1 + k), byte(i >> 8), byte(i)}).String() }
		changes[i] = change(codec, sliceOf(remote, fmt.Sprintf("slice-%d", i), a(0), a(1), "10.200.0.1"))
	}
	before := totalAlloc()
	m.Apply(remote, changes)
	if used := totalAlloc() - before; used > 256<<20 { // each computation makes a list of 1 MB
		t.Errorf("%d slices cost %d bytes of memory", n, used)
	}
	wantSum(t, m, 1, 2*n+1, "")
	if dirty := m.Dirty(); !slices.Equal(dirty, []lb.ServiceName{svc("cart")}) {
		t.Errorf("dirty %v", dirty)
	}
	m.RemoveCluster(remote)
	if err := m.Audit(); err != nil {
		t.Error(err)
	}
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
}

// TestWhatChangesNothingIsNotDirty: slices that are split otherwise, or say
// again what is known, cause no work.
func TestWhatChangesNothingIsNotDirty(t *testing.T) {
	m, codec := joinedBySlices(t, config()), &schema.SliceCodec{}
	m.Apply(remote, []mesh.Change{change(codec, sliceOf(remote, "a", "10.1.0.1", "10.1.0.2"))})
	if dirty := m.Dirty(); len(dirty) != 1 {
		t.Errorf("dirty %v", dirty)
	}
	m.Apply(remote, []mesh.Change{
		change(codec, sliceOf(remote, "a", "10.1.0.2")),
		change(codec, sliceOf(remote, "b", "10.1.0.1")),
		change(codec, sliceOf(remote, "b", "10.1.0.1")),
	})
	if dirty := m.Dirty(); dirty != nil {
		t.Errorf("dirty %v", dirty)
	}
	wantSum(t, m, 1, 2, "")
}

// TestKeysOfTheOtherKindAreRefused: of a cluster that is read from slices no
// service record counts, and the other way round.
func TestKeysOfTheOtherKindAreRefused(t *testing.T) {
	m, codec := joinedBySlices(t, config()), &schema.SliceCodec{}
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.1.0.1")})
	wantSum(t, m, 0, 0, "key keys=1 total=1")
	m.Connected(remote, announce(remote))
	m.Apply(remote, []mesh.Change{change(codec, sliceOf(remote, "a", "10.1.0.1"))})
	wantSum(t, m, 0, 0, "key keys=1 total=2")
}

// TestSlicesAndServicesAgree: what one record says of a service, its slices
// say too, however it is cut into slices. A record and a slice share what
// differs: only slices know endpoints that are not ready.
func TestSlicesAndServicesAgree(t *testing.T) {
	codec := &schema.SliceCodec{}
	rapid.Check(t, func(t *rapid.T) {
		s := schema.Service{Cluster: remote, ClusterID: ids[remote], Namespace: "shop", Name: "cart", Shared: true, IncludeExternal: true,
			Backends: map[netip.Addr]schema.PortMap{}, Zones: map[netip.Addr]schema.Zone{}}
		var cut []mesh.Change
		for i := range rapid.IntRange(0, 6).Draw(t, "backends") {
			cut = append(cut, cutBackend(t, codec, &s, i)...)
		}
		whole := playRemote(announce(remote), []mesh.Change{{Key: keyOf(remote, svc("cart")), Value: s.Encode()}})
		got := playRemote(announceSlices(remote), rapid.Permutation(cut).Draw(t, "order"))
		if whole != got {
			t.Fatalf("by record:\n%s\nby slices:\n%s", whole, got)
		}
	})
}

// cutBackend adds a backend to s and returns slices that say the same of it.
func cutBackend(t *rapid.T, codec *schema.SliceCodec, s *schema.Service, i int) (out []mesh.Change) {
	a := netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})
	family := schema.IPv4
	if rapid.Bool().Draw(t, "v6") {
		a, family = netip.MustParseAddr(fmt.Sprintf("fd00:1::%d", i+1)), schema.IPv6
	}
	zone := rapid.SampledFrom([]string{"", "zone-a", "zone-b"}).Draw(t, "zone")
	if zone != "" {
		s.Zones[a] = schema.Zone{Zone: zone}
	}
	ports := schema.PortMap{}
	s.Backends[a] = ports
	var last *schema.EndpointSlice
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"", "http", "admin", "x"}), 0, 4, rapid.ID).Draw(t, "names") {
		ports[name] = schema.L4{Protocol: rapid.SampledFrom([]schema.Protocol{schema.TCP, schema.UDP}).Draw(t, "protocol"), Port: rapid.Uint16Range(8080, 8081).Draw(t, "port")}
		if last == nil || rapid.Bool().Draw(t, "cut") {
			last = sliceOf(remote, fmt.Sprintf("s-%d-%d", i, len(ports)), a.String())
			last.AddressType, last.Ports, last.Endpoints[0].Zone = family, nil, zone
		}
		last.Ports = append(last.Ports, schema.SlicePort{Name: name, Protocol: ports[name].Protocol, Port: ports[name].Port})
		out = append(out, change(codec, last))
	}
	return out[:latest(out)]
}

// latest moves the last version of every key to the front and counts them.
func latest(changes []mesh.Change) int {
	n := 0
	for i := range changes {
		if i+1 == len(changes) || changes[i+1].Key != changes[i].Key {
			changes[n] = changes[i]
			n++
		}
	}
	return n
}

func playRemote(config schema.ClusterConfig, changes []mesh.Change) string {
	m := mesh.New(mesh.Config{LocalCluster: own, LocalID: ownID, MaxClusters: 255})
	m.Connected(own, announce(own))
	s := schema.LocalService{Cluster: own, ClusterID: ownID, Namespace: "shop", Name: "cart"}
	for _, address := range []string{"10.96.0.1", "fd00:96::1"} {
		for port, name := range []string{"", "http", "admin"} {
			s.Frontends = append(s.Frontends, schema.LocalFrontend{Address: netip.MustParseAddr(address), Port: uint16(80 + port), Protocol: schema.TCP, PortName: name})
		}
	}
	m.Apply(own, []mesh.Change{{Key: keyOf(own, svc("cart")), Value: s.Encode()}})
	m.AddCluster(remote, mesh.Policy{})
	m.Connected(remote, config)
	m.Apply(remote, changes)
	k := kernel{}
	k.follow(m)
	return lb.Format(k.tables())
}
