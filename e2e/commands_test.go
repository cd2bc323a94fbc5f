package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
)

// The parts of the command's JSON that the checks read.

type shownEndpoint struct {
	Address  string `json:"address"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Clients  string `json:"clients"` // of a frontend
}

// frontend is the endpoint as one.
func (e shownEndpoint) frontend(t *testing.T) oracle.Frontend {
	t.Helper()
	f := oracle.Frontend{Addr: e.addr(t), Protocol: e.Protocol}
	if e.Clients != "any" {
		f.Clients = e.Clients
	}
	return f
}

func (e shownEndpoint) addr(t *testing.T) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddr(e.Address)
	must(t, err)
	return netip.AddrPortFrom(a, e.Port)
}

type shownBackend struct {
	shownEndpoint
	Cluster  string `json:"cluster"`
	State    string `json:"state"`
	Selected bool   `json:"selected"`
	Reason   string `json:"reason"`
}

type shownService struct {
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Frontends []shownEndpoint `json:"frontends"`
	Affinity  string          `json:"affinity"`
	Backends  []shownBackend  `json:"backends"`
}

type shownMap struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Frontend  shownEndpoint  `json:"frontend"`
	Affinity  string         `json:"affinity"`
	Backends  []shownBackend `json:"backends"`
}

type shownStatus struct {
	Ready    bool     `json:"ready"`
	Problems []string `json:"problems"`
	Clusters []struct {
		Name      string `json:"name"`
		State     string `json:"state"`
		LastError string `json:"lastError"`
	} `json:"clusters"`
}

func (a *agent) status(t *testing.T) shownStatus {
	t.Helper()
	var s shownStatus
	a.cli(t, &s, "status")
	return s
}

// awaitSynced waits until every agent has heard all of its clusters.
func (w *world) awaitSynced(t *testing.T) {
	t.Helper()
	for _, n := range w.nodes() {
		deadline := time.Now().Add(giveUp)
		for s := n.agent.status(t); !s.synced(len(w.clusters)); s = n.agent.status(t) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not synced after %v: %+v\n%s", n.name, giveUp, s, logTail(n.agent.Process))
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func (s shownStatus) synced(clusters int) bool {
	n := 0
	for _, c := range s.Clusters {
		if c.State == "synced" {
			n++
		}
	}
	return n == clusters && s.Ready
}

// follows reports whether a cluster is still one of the node's: one that was
// removed is shown for a while, as that.
func (s shownStatus) follows(name string) bool {
	for _, c := range s.Clusters {
		if c.Name == name {
			return c.State != "removed"
		}
	}
	return false
}

// requireCommandsAgree compares what the commands `maps` and `services` of all
// nodes show with the oracle.
func (w *world) requireCommandsAgree(t *testing.T) {
	t.Helper()
	p := w.look()
	for _, n := range w.nodes() {
		want := p.want[n.name]
		var entries []shownMap
		n.agent.cli(t, &entries, "maps")
		if has := mapsTable(t, entries); !has.Equal(want) {
			t.Errorf("clustermesh maps on %s:\n%s", n.name, has.Diff(want))
		}
		var services []shownService
		n.agent.cli(t, &services, "services")
		requireServices(t, n, services, want)
	}
}

func mapsTable(t *testing.T, entries []shownMap) oracle.Table {
	t.Helper()
	table := oracle.Table{}
	for _, e := range entries {
		entry := oracle.Entry{
			Service: e.Namespace + "/" + e.Name, Affinity: e.Affinity,
			Selected: map[oracle.Backend]bool{}, Others: map[oracle.Backend]bool{},
		}
		for _, b := range e.Backends {
			backend := oracle.Backend{Addr: b.addr(t), Cluster: b.Cluster, State: b.State}
			if b.Selected {
				entry.Selected[backend] = true
			} else {
				entry.Others[backend] = true
			}
		}
		table[e.Frontend.frontend(t)] = entry
	}
	return table
}

// claimed is one backend of a service in the oracle's table.
type claimed struct {
	oracle.Backend
	protocol string
}

// requireServices compares a list of services with the oracle's table: the same
// services with the same frontends, and each backend once, selected if any
// frontend selects it.
func requireServices(t *testing.T, n *node, services []shownService, want oracle.Table) {
	t.Helper()
	frontends := map[oracle.Frontend]string{}
	backends := map[string]map[claimed]bool{}
	for f, e := range want {
		frontends[f] = e.Service + " " + e.Affinity
		known := backends[e.Service]
		if known == nil {
			known = map[claimed]bool{}
			backends[e.Service] = known
		}
		for b := range e.Others {
			known[claimed{b, f.Protocol}] = known[claimed{b, f.Protocol}] || false
		}
		for b := range e.Selected {
			known[claimed{b, f.Protocol}] = true
		}
	}
	for _, s := range services {
		name := s.Namespace + "/" + s.Name
		for _, f := range s.Frontends {
			key := f.frontend(t)
			if frontends[key] != name+" "+s.Affinity {
				t.Errorf("clustermesh services on %s shows %s %s with affinity %s, want %q", n.name, name, f.Address, s.Affinity, frontends[key])
			}
			delete(frontends, key)
		}
		requireBackends(t, n, s, backends[name])
	}
	for f, service := range frontends {
		t.Errorf("clustermesh services on %s lacks %v of %s", n.name, f, service)
	}
}

func requireBackends(t *testing.T, n *node, s shownService, want map[claimed]bool) {
	t.Helper()
	for _, b := range s.Backends {
		key := claimed{oracle.Backend{Addr: b.addr(t), Cluster: b.Cluster, State: b.State}, b.Protocol}
		selected, known := want[key]
		if !known || selected != b.Selected || b.Reason == "" {
			t.Errorf("clustermesh services on %s shows %s/%s with %+v, want known %v, selected %v, a reason", n.name, s.Namespace, s.Name, b, known, selected)
		}
		delete(want, key)
	}
	for b := range want {
		t.Errorf("clustermesh services on %s lacks %v of %s/%s", n.name, b, s.Namespace, s.Name)
	}
}
