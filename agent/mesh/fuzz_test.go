package mesh_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// FuzzRemote lets two clusters say anything about anything, one in service
// records and one in endpoint slices. Nothing of it may become a frontend, point
// where no backend may be, depend on the order it came in, or stay once its
// cluster is gone.
func FuzzRemote(f *testing.F) {
	var codec schema.SliceCodec
	good, bad := far(remote, "cart", "10.1.0.1", "10.1.0.2"), far(remote, "cart", "127.0.0.1", "169.254.169.254", "10.1.0.3")
	dns := farIn(remote, kubeDNS, "10.1.0.66")
	f.Add(good.Key, good.Value, "x", []byte("{}"), []byte{10, 3, 0, 1, 127, 0, 0, 1})
	f.Add(bad.Key, bad.Value, bad.Key, good.Value, []byte{224, 0, 0, 1, 10, 1, 0, 1})
	f.Add(dns.Key, dns.Value, good.Key, []byte("{"), []byte{})
	f.Fuzz(func(t *testing.T, key1 string, value1 []byte, key2 string, value2, addresses []byte) {
		west := []mesh.Change{{Key: key1, Value: value1}, {Key: key2, Value: value2}}
		north := []mesh.Change{fuzzedSlice(&codec, "cart-a", addresses), fuzzedSlice(&codec, "cart-b", addresses[len(addresses)/2:])}
		north = append(north, mesh.Change{Key: schema.EndpointSliceKey("north", "shop", "cart-c"), Value: value2})
		m, again := attacked(t), attacked(t)
		untouched := tables(t, m)
		cost.Bounded(t, len(key1)+len(value1)+len(key2)+len(value2), 8<<20, func() { m.Apply(remote, west) }) // two slices may need a decompressor each
		m.Apply("north", north)
		first := tables(t, m)
		slices.Reverse(north)
		again.Apply("north", append(north, north...))
		again.Apply(remote, []mesh.Change{west[0], west[1], {Key: key1, Deleted: true}, west[0], west[1]})
		if second := tables(t, again); first != second {
			t.Fatalf("in one order\n%s\nin another\n%s", first, second)
		}
		m.RemoveCluster(remote)
		m.RemoveCluster("north")
		if left := tables(t, m); left != untouched {
			t.Fatalf("without the clusters there are\n%s\nas before them\n%s", left, untouched)
		}
	})
}

var kubeDNS = lb.ServiceName{Namespace: "kube-system", Name: "kube-dns"}

// attacked is a mesh with two services of its own, one of them protected, and
// two clusters that have not said anything.
func attacked(t *testing.T) *mesh.Mesh {
	t.Helper()
	m := mesh.New(config())
	for _, c := range []string{own, remote, "north"} {
		m.AddCluster(c, mesh.Policy{})
		config := announce(c)
		if c == "north" {
			config.Capabilities.EndpointSlicesExportMode = schema.ModeEndpointSlicesOnly
		}
		if _, err := m.Connected(c, config); err != nil {
			t.Fatal(err)
		}
	}
	m.Apply(own, []mesh.Change{local("cart"), localIn(kubeDNS)})
	return m
}

// fuzzedSlice is a slice of north with the addresses that the bytes spell.
func fuzzedSlice(codec *schema.SliceCodec, name string, spelled []byte) mesh.Change {
	s := schema.EndpointSlice{Cluster: "north", ClusterID: ids["north"], Namespace: "shop", Name: name, AddressType: schema.IPv4,
		Labels: map[string]string{"kubernetes.io/service-name": "cart"}, Ports: []schema.SlicePort{{Name: "http", Protocol: schema.TCP, Port: 80}}}
	for ; len(spelled) >= 4 && len(s.Endpoints) < 10; spelled = spelled[4:] {
		s.Endpoints = append(s.Endpoints, schema.Endpoint{Addresses: []netip.Addr{netip.AddrFrom4([4]byte(spelled))}})
	}
	return mesh.Change{Key: schema.EndpointSliceKey("north", "shop", name), Value: codec.Encode(&s)}
}

// tables renders what belongs into the kernel, after a look at every backend of
// another cluster.
func tables(t *testing.T, m *mesh.Mesh) string {
	t.Helper()
	if err := m.Audit(); err != nil {
		t.Fatal(err)
	}
	var all []lb.FrontendTable
	for _, n := range m.Services() {
		s, _ := m.Service(n)
		for _, b := range s.Backends {
			a := b.Addr.Addr()
			denied := slices.ContainsFunc(mesh.AlwaysDenied(), func(p netip.Prefix) bool { return p.Contains(a) })
			if !b.Local && (denied || !a.IsValid() || b.Addr.Port() == 0 || n == kubeDNS || b.Cluster == own) {
				t.Fatalf("service %v has backend %+v", n, b)
			}
		}
		all = append(all, lb.Merge(s)...)
	}
	return lb.Format(all)
}
