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
// backends each. The remote ones are read from the given number of slices per
// service, or from service records if that is 0.
func fillMesh(t testing.TB, slices int) *mesh.Mesh {
	m, codec := mesh.New(config()), &schema.SliceCodec{}
	for _, c := range []string{own, remote, "north"} {
		config := announce(c)
		if slices > 0 {
			config = announceSlices(c)
		}
		m.AddCluster(c, mesh.Policy{})
		if _, err := m.Connected(c, config); err != nil {
			t.Fatal(err)
		}
		for i := range benchServices {
			if slices > 0 && c != own {
				m.Apply(c, bigSlices(codec, c, i, slices, benchBackends))
			} else {
				m.Apply(c, []mesh.Change{bigChange(c, i, benchBackends)})
			}
		}
		m.Synced(c)
	}
	m.Dirty()
	return m
}

// bigSlices spreads the backends of bigChange over slices.
func bigSlices(codec *schema.SliceCodec, cluster string, i, slices, n int) []mesh.Change {
	out := make([]mesh.Change, slices)
	for j := range out {
		name := fmt.Sprintf("service-%04d", i)
		s := sliceOf(cluster, fmt.Sprintf("%s-%05d", name, j))
		s.Labels = map[string]string{serviceLabel: name, managerLabel: "endpointslice-controller.k8s.io", "app": name}
		for k := j; k < n; k += slices {
			a := netip.AddrFrom4([4]byte{10, byte(ids[cluster]), byte(i >> 2), byte(i<<6 | k)})
			s.Endpoints = append(s.Endpoints, schema.Endpoint{Addresses: []netip.Addr{a}, Ready: schema.ConditionTrue, Serving: schema.ConditionTrue,
				Terminating: schema.ConditionFalse, NodeName: "node-1", Zone: "zone-a"})
		}
		out[j] = change(codec, s)
	}
	return out
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

func totalAlloc() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.TotalAlloc
}

// TestMemoryPerBackend holds the budget: 30,000 backends of 1,000 services stay
// under 100 bytes each, everything included, also if two thirds of them are
// read from a slice per service; from two, under twice what records cost, and
// from five slices of two backends each, which Kubernetes does not make, under
// 130.
func TestMemoryPerBackend(t *testing.T) {
	for slices, budget := range map[int]uint64{0: 100, 1: 100, 2: 110, 5: 130} {
		before := heap()
		m := fillMesh(t, slices)
		used := heap() - before
		n := 0
		for _, s := range m.Status() {
			n += s.Backends
		}
		if n != 3*benchServices*benchBackends {
			t.Fatalf("%d backends", n)
		}
		t.Logf("%d slices per service: %d backends in %d bytes: %d bytes each", slices, n, used, used/uint64(n))
		if used/uint64(n) > budget {
			t.Errorf("%d slices per service: %d bytes per backend", slices, used/uint64(n))
		}
		runtime.KeepAlive(m)
	}
}

func benchmarkApply(b *testing.B, m *mesh.Mesh, variants ...mesh.Change) {
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Apply(remote, variants[i%2:i%2+1])
		m.Dirty()
	}
}

func BenchmarkApplyRemoteService(b *testing.B) {
	benchmarkApply(b, fillMesh(b, 0), bigChange(remote, 500, 9), bigChange(remote, 500, 10))
}

func BenchmarkApplySlice(b *testing.B) {
	codec := &schema.SliceCodec{}
	benchmarkApply(b, fillMesh(b, 1), bigSlices(codec, remote, 500, 1, 9)[0], bigSlices(codec, remote, 500, 1, 10)[0])
}

// BenchmarkApplySliceOfTen changes one slice of a service of 1,000 backends in
// ten slices.
func BenchmarkApplySliceOfTen(b *testing.B) {
	codec, m := &schema.SliceCodec{}, fillMesh(b, 1)
	all := wideSlices(codec, 10, 100)
	m.Apply(remote, all)
	benchmarkApply(b, m, wideSlices(codec, 10, 99)[3], all[3])
}

// wideSlices are slices of one service with n backends each.
func wideSlices(codec *schema.SliceCodec, slices, n int) []mesh.Change {
	var out []mesh.Change
	for j := range slices {
		addrs := make([]string, n)
		for k := range addrs {
			addrs[k] = netip.AddrFrom4([4]byte{10, 1, byte(k), byte(j)}).String()
		}
		out = append(out, change(codec, sliceOf(remote, fmt.Sprintf("cart-%d", j), addrs...)))
	}
	return out
}

func BenchmarkService(b *testing.B) {
	m := fillMesh(b, 0)
	name := svc("service-0500")
	b.ReportAllocs()
	for b.Loop() {
		if s, ok := m.Service(name); !ok || len(s.Backends) != 3*benchBackends {
			b.Fatal("backends are missing")
		}
	}
}
