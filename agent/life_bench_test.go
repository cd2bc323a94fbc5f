package agent

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/liveness"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/bpf/layout"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// manyServices is a core with services of ten local and ten remote backends.
func manyServices(b *testing.B, services int) *core {
	return servicesOf(b, services, []string{1: "home", 2: "east"}, nil)
}

// servicesOf is a core with services of ten backends in each cluster, named by
// their numbers, the first of which is its own, under a policy.
func servicesOf(b testing.TB, services int, clusters []string, policy map[string]string) *core {
	kernel := &memoryKernel{Memory: datapath.NewMemory(layout.Capacity{Frontends: 2 * uint32(services), Records: 128 * uint32(services)})}
	cfg := Config{ClusterName: "home", ClusterID: 1, NodeName: "n", Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Probe: true}
	c, err := newCore(cfg.withDefaults(), kernel)
	if err != nil {
		b.Fatal(err)
	}
	for id, name := range clusters {
		if name == "" {
			continue
		}
		c.addCluster(name)
		if _, err := c.connected(name, "memory", schema.ClusterConfig{ID: uint32(id)}); err != nil {
			b.Fatal(err)
		}
		for i := range services {
			c.mesh.Apply(name, []mesh.Change{tenBackends(name, uint32(id), i, policy)})
		}
		c.mesh.Synced(name)
	}
	c.flush()
	return c
}

func tenBackends(cluster string, id uint32, number int, policy map[string]string) mesh.Change {
	service := fmt.Sprintf("s%d", number)
	address := func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(id), byte(number), byte(16*(number>>8) + i)})
	}
	if id == 1 {
		s := schema.LocalService{Cluster: cluster, ClusterID: id, Namespace: "ns", Name: service, Shared: true, Policy: policy,
			Frontends: []schema.LocalFrontend{{Address: netip.AddrFrom4([4]byte{10, 96, byte(number >> 8), byte(number)}), Port: 80, Protocol: schema.TCP}}}
		for i := range 10 {
			s.Backends = append(s.Backends, schema.LocalBackend{Address: address(i), Port: 80, Protocol: schema.TCP, Ready: true, Serving: true})
		}
		return mesh.Change{Key: schema.LocalServiceKey(cluster, "ns", service), Value: s.Encode()}
	}
	s := schema.Service{Cluster: cluster, ClusterID: id, Namespace: "ns", Name: service, Shared: true, IncludeExternal: true,
		Backends: map[netip.Addr]schema.PortMap{}}
	for i := range 10 {
		s.Backends[address(i)] = schema.PortMap{"": {Protocol: schema.TCP, Port: 80}}
	}
	return mesh.Change{Key: schema.ServiceKey(cluster, "ns", service), Value: s.Encode()}
}

// BenchmarkVerdict is from a verdict on a cluster to the maps of 1,000 services
// that use it, of 20 backends each: once dead, once alive again.
func BenchmarkVerdict(b *testing.B) {
	c := manyServices(b, 1000)
	dead := false
	for b.Loop() {
		dead = !dead
		now := signs{}
		if dead {
			now.Verdict, now.Data = liveness.Dead, liveness.DataFailing
		}
		c.noteLife("east", now)
		for _, name := range c.mesh.Dirty() {
			c.set(name)
		}
		b.StopTimer()
		requireSelected(b, c, 1000, map[bool]int{true: 10, false: 20}[dead])
		if t, any := c.maps.Quarantined(); any {
			_ = c.kernel.WaitRCU()
			c.maps.Release(t)
		}
		b.StartTimer()
	}
}

func requireSelected(b testing.TB, c *core, frontends, want int) {
	b.Helper()
	dump, err := c.kernel.Dump()
	if err != nil || len(dump.Frontends) != frontends || len(c.failed) > 0 {
		b.Fatalf("%d frontends, %v, %v", len(dump.Frontends), err, c.failed)
	}
	for _, f := range dump.Frontends {
		if got := int(f.Header.Selected()); got != want {
			b.Fatalf("frontend %d uses %d backends, want %d", f.ID, got, want)
		}
	}
}

// BenchmarkOrderChange is from another order of the nearest clusters to the maps
// of 10,000 services that follow it, of 30 backends each: all sets are replaced,
// in pieces, of which the longest is how long another cluster's change waits.
func BenchmarkOrderChange(b *testing.B) {
	c := servicesOf(b, 10_000, []string{1: "home", 2: "east", 3: "west"}, map[string]string{"tiers": "nearest; local"})
	turn := uint8(0)
	var pieces []time.Duration
	for b.Loop() {
		turn ^= 1
		names, _ := c.mesh.SetRanks(map[string]uint8{"east": turn, "west": 1 - turn})
		c.decideLater(names)
		if len(c.later) != 10_000 {
			b.Fatalf("%d services are decided on", len(c.later))
		}
		for len(c.later) > 0 {
			begin := time.Now()
			c.decideSome()
			pieces = append(pieces, time.Since(begin))
		}
		b.StopTimer()
		requireSelected(b, c, 10_000, 10)
		if t, any := c.maps.Quarantined(); any {
			_ = c.kernel.WaitRCU()
			c.maps.Release(t)
		}
		b.StartTimer()
	}
	slices.Sort(pieces)
	b.ReportMetric(float64(pieces[len(pieces)/2]), "ns/piece")
	b.ReportMetric(float64(pieces[len(pieces)*999/1000]), "p999-ns/piece")
	b.ReportMetric(float64(pieces[len(pieces)-1]), "longest-ns/piece")
}

// BenchmarkRound is one round of the lookout over a cluster of 1,000 services:
// what it costs the core five times a second.
func BenchmarkRound(b *testing.B) {
	c := manyServices(b, 1000)
	c.link("east")
	l := newLookout(b.Context(), (&probing{}).answer, c.cfg.Registry)
	for b.Loop() {
		l.round(c)
	}
}
