package mesh_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// manyNames is a slice of cart with one endpoint whose port has 1,000 names that
// no other slice has.
func manyNames(i int, addr netip.Addr) *schema.EndpointSlice {
	s := sliceOf(remote, fmt.Sprintf("cart-%04d", i), addr.String())
	s.Ports = nil
	for k := range 1000 {
		name := fmt.Sprintf("%s-%04d-%04d", strings.Repeat("n", 53), i, k)
		s.Ports = append(s.Ports, schema.SlicePort{Name: name, Protocol: schema.TCP, Port: 8080})
	}
	return s
}

// TestPortNamesAreCounted: slices that name one port a thousand times over are
// not kept as if they named it once, whether each has an address of its own or
// all have the same, and the last of a thousand costs what the tenth did.
func TestPortNamesAreCounted(t *testing.T) {
	const n = 1000
	other := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }
	same := func(int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, 1}) }
	for name, addr := range map[string]func(int) netip.Addr{"addresses": other, "one address": same} {
		for _, quota := range []int{1000, 0} {
			t.Run(fmt.Sprintf("%s, quota %d", name, quota), func(t *testing.T) {
				cfg := config()
				cfg.MaxBackends = quota
				m, codec := joinedBySlices(t, cfg), &schema.SliceCodec{}
				m.Apply(remote, []mesh.Change{change(codec, manyNames(0, addr(0)))}) // what is allocated once
				before, tenth, last := heap(), uint64(0), uint64(0)
				for i := range n {
					ch := change(codec, manyNames(i, addr(i)))
					start := totalAlloc()
					m.Apply(remote, []mesh.Change{ch})
					last = totalAlloc() - start
					if i == 9 {
						tenth = last
					}
				}
				if used := int64(heap()) - int64(before); used > 20<<20 {
					t.Errorf("%d slices take %d bytes", n, used)
				}
				if last > 2*tenth+256<<10 {
					t.Errorf("the last slice cost %d bytes of memory, the tenth %d", last, tenth)
				}
				for _, b := range served(t, m) {
					if len(b.Names) > 64 {
						t.Fatalf("%s has %d names", b.Addr, len(b.Names))
					}
				}
				if err := m.Audit(); err != nil {
					t.Error(err)
				}
				runtime.KeepAlive(m)
			})
		}
	}
}

// served are the backends of cart.
func served(t *testing.T, m *mesh.Mesh) []lb.Backend {
	t.Helper()
	s, ok := m.Service(svc("cart"))
	if !ok {
		t.Fatal("no service")
	}
	return s.Backends
}

// TestNamesBeyondTheLimitAreRefused: the first names in order stay, whatever the
// order in which they come and however they are cut into slices, and what is
// left out is told of under reason limit until it is withdrawn.
func TestNamesBeyondTheLimitAreRefused(t *testing.T) {
	codec := &schema.SliceCodec{}
	cut := func(slice string, first, n int) mesh.Change {
		s := sliceOf(remote, slice, "10.1.0.1")
		s.Ports = nil
		for k := first; k < first+n; k++ {
			s.Ports = append(s.Ports, schema.SlicePort{Name: fmt.Sprintf("port-%02d", k), Protocol: schema.TCP, Port: 8080})
		}
		return change(codec, s)
	}
	record := func(n int) mesh.Change {
		s := schema.Service{Cluster: remote, ClusterID: ids[remote], Namespace: "shop", Name: "cart", Shared: true, IncludeExternal: true}
		ports := schema.PortMap{}
		for k := range n {
			ports[fmt.Sprintf("port-%02d", k)] = schema.L4{Protocol: schema.TCP, Port: 8080}
		}
		s.Backends = map[netip.Addr]schema.PortMap{netip.MustParseAddr("10.1.0.1"): ports}
		return mesh.Change{Key: keyOf(remote, svc("cart")), Value: s.Encode()}
	}
	for name, tt := range map[string]struct {
		config    schema.ClusterConfig
		long, few []mesh.Change
	}{
		"one slice": {announceSlices(remote), []mesh.Change{cut("a", 0, 70)}, []mesh.Change{cut("a", 0, 64)}},
		"slices":    {announceSlices(remote), []mesh.Change{cut("b", 40, 30), cut("a", 0, 40)}, []mesh.Change{cut("b", 40, 24)}},
		"record":    {announce(remote), []mesh.Change{record(70)}, []mesh.Change{record(64)}},
	} {
		t.Run(name, func(t *testing.T) {
			m := joined(t, config(), "north")
			m.AddCluster(remote, mesh.Policy{})
			m.Connected(remote, tt.config)
			m.Apply(remote, tt.long)
			wantSum(t, m, 1, 1, "limit keys=1 total=1")
			wantNames(t, m)
			if r := m.Refusals(); len(r) != 1 || r[0].Service != svc("cart") || !strings.Contains(r[0].Text, "at most 64") {
				t.Errorf("refusals %+v", r)
			}
			m.Apply(remote, tt.few)
			wantSum(t, m, 1, 1, "limit keys=0 total=1")
			wantNames(t, m)
		})
	}
}

// wantNames checks that west's backend has the first 64 names.
func wantNames(t *testing.T, m *mesh.Mesh) {
	t.Helper()
	all := served(t, m)
	i := slices.IndexFunc(all, func(b lb.Backend) bool { return b.Cluster == remote })
	if i < 0 {
		t.Fatal("no backend")
	}
	if names := all[i].Names; len(names) != 64 || names[0] != "port-00" || names[63] != "port-63" {
		t.Errorf("%d names: %v", len(names), names)
	}
}

// TestOneServiceOfAClusterIsBounded: a cluster that bloats a service does not
// keep local changes of it, nor another cluster's of another service, from the
// tables. The first backends in order stay, however they are cut.
func TestOneServiceOfAClusterIsBounded(t *testing.T) {
	m, codec := joinedBySlices(t, config()), &schema.SliceCodec{}
	web := schema.LocalService{Cluster: own, ClusterID: ownID, Namespace: "shop", Name: "web", Shared: true,
		Frontends: []schema.LocalFrontend{{Address: netip.MustParseAddr("10.96.0.2"), Port: 80, Protocol: schema.TCP, PortName: "http"}}}
	m.Apply(own, []mesh.Change{{Key: keyOf(own, svc("web")), Value: web.Encode()}})
	bloat := sliceOf(remote, "cart-bloat")
	bloat.Ports = nil
	for k := range 1000 {
		bloat.Ports = append(bloat.Ports, schema.SlicePort{Protocol: schema.TCP, Port: uint16(k + 1)})
	}
	for k := range 98 {
		bloat.Endpoints = append(bloat.Endpoints, schema.Endpoint{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(k)})}})
	}
	m.Apply(remote, []mesh.Change{change(codec, bloat)})
	wantSum(t, m, 1, 10000, "limit keys=1 total=1")
	if r := m.Refusals(); len(r) != 1 || !r[0].Concerns(svc("cart")) || !strings.Contains(r[0].Text, "98000") {
		t.Errorf("refusals %+v", r)
	}
	for i, b := range fromWest(served(t, m)) {
		if want := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i / 1000)}), uint16(i%1000+1)); b.Addr != want {
			t.Fatalf("backend %d is %s, want %s", i, b.Addr, want)
		}
	}
	m.Apply(own, []mesh.Change{local("cart", "10.0.0.1", "10.0.0.2")})
	m.Apply("north", []mesh.Change{far("north", "web", "10.3.0.2")})
	for name, want := range map[string]int{"cart": 2 + 1 + 10000, "web": 1} {
		s, _ := m.Service(svc(name))
		n := 0
		for _, c := range lb.Merge(s)[0].Backends {
			if c.Selected {
				n++
			}
		}
		if n != want {
			t.Errorf("%d backends of %s are selected, want %d", n, name, want)
		}
	}
	m.Apply(remote, []mesh.Change{{Key: change(codec, bloat).Key, Deleted: true}})
	wantSum(t, m, 0, 0, "limit keys=0 total=1")
}

func fromWest(in []lb.Backend) []lb.Backend {
	return slices.DeleteFunc(slices.Clone(in), func(b lb.Backend) bool { return b.Cluster != remote })
}

// TestABloatedServiceStaysBounded: not by a record either, nor by reconnecting
// with another list each time, nor if the operator keeps less of the cluster.
func TestABloatedServiceStaysBounded(t *testing.T) {
	cfg := config()
	cfg.MaxServiceBackends = 3000
	m := joined(t, cfg, remote)
	wide := func(turn, n int) mesh.Change {
		s := schema.Service{Cluster: remote, ClusterID: ids[remote], Namespace: "shop", Name: "cart", Shared: true, IncludeExternal: true,
			Backends: map[netip.Addr]schema.PortMap{}}
		for k := range n {
			s.Backends[netip.AddrFrom4([4]byte{10, 1 + byte(turn), byte(k >> 8), byte(k)})] = schema.PortMap{
				"a": {Protocol: schema.TCP, Port: 80}, "b": {Protocol: schema.TCP, Port: 81}, "c": {Protocol: schema.TCP, Port: 82}}
		}
		return mesh.Change{Key: keyOf(remote, svc("cart")), Value: s.Encode()}
	}
	for turn := range 5 {
		m.Apply(remote, []mesh.Change{wide(turn, 4000)})
		wantSum(t, m, 1, 3*3000, fmt.Sprintf("limit keys=1 total=%d", turn+1))
		if n := len(fromWest(served(t, m))); n > 3*3*3000 {
			t.Errorf("%d backends after %d reconnects", n, turn)
		}
		m.Relist(remote)
	}
	m.SetPolicy(remote, mesh.Policy{MaxServiceBackends: 100})
	m.Relist(remote)
	m.Apply(remote, []mesh.Change{wide(0, 200)})
	m.Synced(remote)
	wantSum(t, m, 1, 300, "limit keys=1 total=6")
	m.SetPolicy(remote, mesh.Policy{MaxBackends: 200})
	m.Relist(remote)
	m.Apply(remote, []mesh.Change{wide(0, 66)})
	m.Synced(remote)
	wantSum(t, m, 1, 198, "limit keys=0 total=6")
}

// TestListsWithoutEndAreBounded: a cluster that connects again and again, each
// time with other services and never to the end of its list, fills no memory;
// what is in use of it stays.
func TestListsWithoutEndAreBounded(t *testing.T) {
	cfg := config()
	cfg.MaxServices, cfg.MaxBackends = 10, 40
	m := joined(t, cfg, remote)
	for turn := range 20 {
		m.Relist(remote)
		for i := range cfg.MaxServices {
			m.Apply(remote, []mesh.Change{far(remote, fmt.Sprintf("other-%d-%d", turn, i), tenOf(4)...)})
		}
		if s := status(m, remote); s.Services != cfg.MaxServices || s.Restored > 2*cfg.MaxServices || s.Provisional.Backends > 2*cfg.MaxBackends {
			t.Fatalf("after %d lists %d services are said, %d are kept with %d backends", turn+1, s.Services, s.Restored, s.Provisional.Backends)
		}
	}
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
	if err := m.Audit(); err != nil {
		t.Error(err)
	}
	m.Synced(remote)
	wantBackends(t, m, "east:10.0.0.1")
}

// TestLongTextsAreKeptWhole: names and zones of any length that is accepted come
// out as they went in.
func TestLongTextsAreKeptWhole(t *testing.T) {
	for _, n := range []int{1, 63, 127, 128, 253} {
		m, codec := joinedBySlices(t, config()), &schema.SliceCodec{}
		s := sliceOf(remote, "a", "10.1.0.1")
		long := strings.Repeat("x", min(n, 63))
		s.Ports = []schema.SlicePort{{Name: long, Protocol: schema.TCP, Port: 80}, {Name: "z", Protocol: schema.TCP, Port: 80}}
		s.Endpoints[0].Zone = strings.Repeat("y", n)
		m.Apply(remote, []mesh.Change{change(codec, s)})
		if b := fromWest(served(t, m)); len(b) != 1 || b[0].Zone != s.Endpoints[0].Zone || !slices.Equal(b[0].Names, []string{long, "z"}) {
			t.Errorf("%d bytes: %+v", n, b)
		}
	}
}

// TestEachFrontendHasItsShare: the bound is on what one frontend takes. Neither does
// one address family or port leave another without backends, nor do those that
// cannot be used take the places of those that can.
func TestEachFrontendHasItsShare(t *testing.T) {
	cfg := config()
	cfg.MaxServiceBackends = 10
	m, codec := joinedBySlices(t, cfg), &schema.SliceCodec{}
	for _, family := range []schema.IPFamily{schema.IPv4, schema.IPv6} {
		s := sliceOf(remote, "cart-"+strings.ToLower(string(family)))
		s.AddressType = family
		s.Ports = append(s.Ports, schema.SlicePort{Name: "metrics", Protocol: schema.TCP, Port: 9090})
		for k := range 20 {
			a := netip.AddrFrom4([4]byte{10, 1, 0, byte(k)})
			if family == schema.IPv6 {
				a = netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", k+1))
			}
			e := schema.Endpoint{Addresses: []netip.Addr{a}}
			if k < 10 {
				e.Ready, e.Serving = schema.ConditionFalse, schema.ConditionFalse
			}
			s.Endpoints = append(s.Endpoints, e)
		}
		m.Apply(remote, []mesh.Change{change(codec, s)})
	}
	wantSum(t, m, 1, 4*10, "limit keys=1 total=2")
	for _, b := range fromWest(served(t, m)) {
		if b.State != lb.Active {
			t.Errorf("%s, which is not ready, takes the place of one that is", b.Addr)
		}
	}
}
