package datapath_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// The chain is mesh, lb and datapath together, as an agent joins them: cluster 1
// is its own, 2 and 3 are remote.
type chain struct {
	mem    *datapath.Memory
	r      *datapath.Reconciler
	m      *mesh.Mesh
	stores [4]map[lb.ServiceName][]byte
}

func clusterName(id int) string { return fmt.Sprintf("c%d", id) }

func newMesh() *mesh.Mesh {
	m := mesh.New(mesh.Config{LocalCluster: clusterName(1), LocalID: 1, MaxClusters: 255})
	for id := 1; id <= 3; id++ {
		m.AddCluster(clusterName(id), mesh.Policy{})
	}
	return m
}

// TestChain: whatever is published, lost, killed and restarted on the way, once
// every cluster is synced the maps equal what a fresh agent computes; and a
// restart alone writes nothing.
func TestChain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &chain{mem: newMemory(64, 2000)}
		for id := range c.stores {
			c.stores[id] = map[lb.ServiceName][]byte{}
		}
		c.start(t, false)
		t.Repeat(map[string]func(*rapid.T){
			"publish":  c.publish,
			"publish2": c.publish,
			"list":     c.list,
			"kill":     c.kill,
			"restart":  c.restart,
			"":         func(t *rapid.T) { checkSound(t, c.mem) },
		})
		c.converge(t)
	})
}

// start is a new life: everything restored, computed again, and nothing written,
// unless the last life was killed between two writes; no frontend is emptied
// even then.
func (c *chain) start(t *rapid.T, killed bool) {
	c.mem.Grace()
	c.r, c.m = datapath.New(c.mem), newMesh()
	loaded, err := c.r.Load()
	if err != nil || len(loaded.Repairs) > 0 {
		t.Fatalf("load: %v, repairs %v", err, loaded.Repairs)
	}
	restored := make([]mesh.Restored, len(loaded.Frontends))
	for i, f := range loaded.Frontends {
		restored[i] = mesh.Restored{
			Service: f.Service, Frontend: f.Frontend, Affinity: f.Affinity, Backends: f.Backends,
			SessionAffinity: loaded.Selections[i].SessionAffinity, Consistent: loaded.Selections[i].Consistent,
		}
	}
	c.m.Restore(restored)
	before := have(nil, c.mem)
	writes := c.mem.Writes()
	for _, n := range c.m.Services() {
		c.set(n)
	}
	after := have(nil, c.mem)
	if !killed && c.mem.Writes() != writes {
		t.Fatalf("a restart wrote %d times; before:\n%s\nafter:\n%s", c.mem.Writes()-writes, before, after)
	}
	now := byKey(after)
	for k, was := range byKey(before) {
		if strings.Contains(was, "+") && !strings.Contains(now[k], "+") {
			t.Fatalf("a restart emptied %s; before:\n%s\nafter:\n%s", k, before, after)
		}
	}
}

func (c *chain) set(n lb.ServiceName) {
	s, _ := c.m.Service(n)
	must(c.r.Set(n, lb.Merge(s)))
}

func (c *chain) flush() {
	for _, n := range c.m.Dirty() {
		c.set(n)
	}
	if ticket, waiting := c.r.Quarantined(); waiting {
		c.mem.Grace()
		c.r.Release(ticket)
	}
}

func (c *chain) publish(t *rapid.T) {
	id, n := rapid.IntRange(1, 3).Draw(t, "cluster"), serviceName(rapid.IntRange(0, 2).Draw(t, "service"))
	switch {
	case rapid.IntRange(0, 3).Draw(t, "delete") == 0:
		delete(c.stores[id], n)
	case id == 1:
		c.stores[id][n] = genLocalValue(t, n)
	default:
		c.stores[id][n] = genRemoteValue(t, id, n)
	}
}

func genPorts(t *rapid.T) []string {
	return rapid.SampledFrom([][]string{{""}, {"http"}, {"http", "grpc"}}).Draw(t, "ports")
}

func genLocalValue(t *rapid.T, n lb.ServiceName) []byte {
	s := schema.LocalService{Cluster: clusterName(1), ClusterID: 1, Namespace: n.Namespace, Name: n.Name}
	s.Affinity = rapid.SampledFrom([]string{"", "local", "remote"}).Draw(t, "affinity")
	vip := netip.AddrFrom4([4]byte{10, 96, 0, n.Name[len(n.Name)-1]})
	for i, name := range genPorts(t) {
		s.Frontends = append(s.Frontends, schema.LocalFrontend{Address: vip, Port: uint16(80 + i), Protocol: schema.TCP, PortName: name})
		for k := range byte(rapid.IntRange(0, 2).Draw(t, "backends")) {
			b := schema.LocalBackend{Address: netip.AddrFrom4([4]byte{10, 1, 0, k}), Port: uint16(8080 + i), Protocol: schema.TCP, Ready: rapid.Bool().Draw(t, "ready")}
			if name != "" {
				b.PortNames = []string{name}
			}
			s.Backends = append(s.Backends, b)
		}
	}
	slices.SortFunc(s.Backends, func(a, b schema.LocalBackend) int { return a.Address.Compare(b.Address)*10 + int(a.Port) - int(b.Port) })
	return s.Encode()
}

func genRemoteValue(t *rapid.T, id int, n lb.ServiceName) []byte {
	s := schema.Service{Cluster: clusterName(id), ClusterID: uint32(id), Namespace: n.Namespace, Name: n.Name, Shared: true, Backends: map[netip.Addr]schema.PortMap{}}
	ports := schema.PortMap{}
	for i, name := range genPorts(t) {
		ports[name] = schema.L4{Protocol: schema.TCP, Port: uint16(8080 + i)}
	}
	for k := range byte(rapid.IntRange(0, 2).Draw(t, "backends")) {
		s.Backends[netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(1, id).Draw(t, "whose")), 0, k})] = ports
	}
	return s.Encode()
}

// list connects one cluster, hands over all it has, and writes what changed.
func (c *chain) list(t *rapid.T) {
	c.hear(t, rapid.IntRange(1, 3).Draw(t, "cluster"), rapid.Bool().Draw(t, "to the end"))
	c.flush()
}

func (c *chain) hear(t *rapid.T, id int, complete bool) {
	name := clusterName(id)
	c.m.Relist(name)
	if _, err := c.m.Connected(name, schema.ClusterConfig{ID: uint32(id)}); err != nil {
		t.Fatalf("%v", err)
	}
	for n, value := range c.stores[id] {
		key := schema.ServiceKey(name, n.Namespace, n.Name)
		if id == 1 {
			key = schema.LocalServiceKey(name, n.Namespace, n.Name)
		}
		c.m.Apply(name, []mesh.Change{{Key: key, Value: value}})
	}
	if complete {
		c.m.Synced(name)
	} else {
		c.m.Disconnected(name, "cut off")
	}
}

// kill ends the process in the middle of writing a list's changes.
func (c *chain) kill(t *rapid.T) {
	c.hear(t, rapid.IntRange(1, 3).Draw(t, "cluster"), true)
	left := rapid.IntRange(1, 8).Draw(t, "writes")
	c.mem.Written = func() {
		if left--; left == 0 {
			panic(killed{})
		}
	}
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(killed{}) {
				panic(p)
			}
		}()
		c.flush()
	}()
	c.mem.Written = nil
	c.start(t, true)
}

func (c *chain) restart(t *rapid.T) { c.start(t, false) }

// converge syncs every cluster and compares with a fresh agent on empty maps.
func (c *chain) converge(t *rapid.T) {
	fresh := &chain{mem: newMemory(64, 2000), m: newMesh(), stores: c.stores}
	fresh.r = datapath.New(fresh.mem)
	for _, one := range []*chain{c, fresh} {
		for id := 1; id <= 3; id++ {
			one.hear(t, id, true)
		}
		one.flush()
		checkSound(t, one.mem)
	}
	if got, want := have(nil, c.mem), have(nil, fresh.mem); got != want {
		t.Fatalf("maps:\n%s\nwant:\n%s", got, want)
	}
}
