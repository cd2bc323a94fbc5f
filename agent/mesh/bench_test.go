package mesh_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

const benchServices, benchBackends = 1000, 10

// fillMesh makes a mesh of three clusters with a thousand services of ten
// backends each.
func fillMesh(t testing.TB) *mesh.Mesh {
	m := mesh.New(config())
	for _, c := range []string{own, remote, "north"} {
		m.AddCluster(c, mesh.Policy{})
		if _, err := m.Connected(c, announce(c)); err != nil {
			t.Fatal(err)
		}
		for i := range benchServices {
			m.Apply(c, []mesh.Change{bigChange(c, i, benchBackends)})
		}
		m.Synced(c)
	}
	m.Dirty()
	return m
}

func bigChange(cluster string, i, n int) mesh.Change {
	name := fmt.Sprintf("service-%04d", i)
	addr := func(k int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(ids[cluster]), byte(i >> 2), byte(i<<6 | k)})
	}
	if cluster != own {
		addrs := make([]string, n)
		for k := range addrs {
			addrs[k] = addr(k).String()
		}
		return far(cluster, name, addrs...)
	}
	s := schema.LocalService{Cluster: own, ClusterID: ownID, Namespace: "shop", Name: name, Shared: true,
		Frontends: []schema.LocalFrontend{{Address: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Protocol: schema.TCP, PortName: "http"}}}
	for k := range n {
		s.Backends = append(s.Backends, schema.LocalBackend{Address: addr(k), Port: 8080, Protocol: schema.TCP, PortNames: []string{"http"}, Ready: true, Serving: true, Zone: "zone-a"})
	}
	return mesh.Change{Key: keyOf(own, svc(name)), Value: s.Encode()}
}

func heap() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// TestMemoryPerBackend holds the budget: 30,000 backends of 1,000 services stay
// under 100 bytes each, everything included.
func TestMemoryPerBackend(t *testing.T) {
	before := heap()
	m := fillMesh(t)
	used := heap() - before
	n := 0
	for _, s := range m.Status() {
		n += s.Backends
	}
	if n != 3*benchServices*benchBackends {
		t.Fatalf("%d backends", n)
	}
	t.Logf("%d backends in %d bytes: %d bytes each", n, used, used/uint64(n))
	if used/uint64(n) > 100 {
		t.Errorf("%d bytes per backend", used/uint64(n))
	}
}

func BenchmarkApplyRemoteService(b *testing.B) {
	m := fillMesh(b)
	variants := []mesh.Change{bigChange(remote, 500, 9), bigChange(remote, 500, 10)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Apply(remote, variants[i%2:i%2+1])
		m.Dirty()
	}
}

func BenchmarkService(b *testing.B) {
	m := fillMesh(b)
	name := svc("service-0500")
	b.ReportAllocs()
	for b.Loop() {
		if s, ok := m.Service(name); !ok || len(s.Backends) != 3*benchBackends {
			b.Fatal("backends are missing")
		}
	}
}
