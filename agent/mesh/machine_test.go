package mesh_test

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
)

// machine drives a Mesh as a shell would: stores that change, watches that
// deliver in pieces, connections that come and go, restarts.
type machine struct {
	m      *mesh.Mesh
	o      *oracle
	k      kernel
	stores map[string]map[lb.ServiceName]entry
	// conn is per cluster: absent (not configured), "idle", "listing", "following".
	conn map[string]string
	// heard is what the watch believes it delivered.
	heard map[string]map[lb.ServiceName]string
}

// TestStateMachine: whatever happens in whatever order, following the dirty
// names gives the tables that recomputing everything gives.
func TestStateMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{m: mesh.New(config()), o: newOracle(), k: kernel{}, stores: map[string]map[lb.ServiceName]entry{}, heard: map[string]map[lb.ServiceName]string{}}
		m.conn = map[string]string{own: "idle"}
		for c := range ids {
			m.stores[c] = map[lb.ServiceName]entry{}
		}
		t.Repeat(map[string]func(*rapid.T){
			"publish":    m.publish,
			"publish2":   m.publish,
			"add":        m.add,
			"remove":     m.remove,
			"connect":    m.connect,
			"disconnect": m.disconnect,
			"deliver":    m.deliver,
			"deliver2":   m.deliver,
			"sync":       m.sync,
			"relist":     m.relist,
			"restart":    m.restart,
			"":           m.check,
		})
	})
}

func genCluster(t *rapid.T) string {
	return rapid.SampledFrom(slices.Sorted(maps.Keys(ids))).Draw(t, "cluster")
}

func genService(t *rapid.T) lb.ServiceName {
	return svc(rapid.SampledFrom([]string{"cart", "web"}).Draw(t, "service"))
}

func (m *machine) publish(t *rapid.T) {
	c, n := genCluster(t), genService(t)
	if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
		delete(m.stores[c], n)
		return
	}
	m.stores[c][n] = genEntry(t, c, n)
}

func (m *machine) add(t *rapid.T) {
	c := genCluster(t)
	m.m.AddCluster(c, mesh.Policy{})
	if m.conn[c] == "" {
		m.conn[c] = "idle"
	}
}

func (m *machine) remove(t *rapid.T) {
	c := genCluster(t)
	m.m.RemoveCluster(c)
	if c == own {
		return
	}
	delete(m.conn, c)
	delete(m.heard, c)
	delete(m.o.delivered, c)
	delete(m.o.restored, c)
}

func (m *machine) connect(t *rapid.T) {
	c := genCluster(t)
	fresh, err := m.m.Connected(c, announce(c))
	if configured := m.conn[c] != ""; configured != (err == nil) || fresh {
		t.Fatalf("connect %s: fresh %v, %v", c, fresh, err)
	}
	if err == nil {
		m.conn[c] = "listing"
	}
}

func (m *machine) disconnect(t *rapid.T) {
	c := genCluster(t)
	m.m.Disconnected(c, "no route to host")
	if m.conn[c] != "" {
		m.conn[c] = "idle"
	}
}

// deliver hands over some of the keys in which the watch lags behind, some of
// them twice or with an older value first. Keys that vanished while the watch
// was away are deleted only once it follows again or ends its list.
func (m *machine) deliver(t *rapid.T) {
	c := genCluster(t)
	if m.conn[c] != "listing" && m.conn[c] != "following" {
		t.Skip("not connected")
	}
	lag := m.lag(c, m.conn[c] == "following")
	if len(lag) == 0 {
		t.Skip("nothing to say")
	}
	lag = rapid.Permutation(lag).Draw(t, "order")[:rapid.IntRange(1, len(lag)).Draw(t, "n")]
	m.apply(t, c, lag, rapid.Bool().Draw(t, "twice"))
}

func (m *machine) lag(c string, deletions bool) []lb.ServiceName {
	var out []lb.ServiceName
	for n, e := range m.stores[c] {
		if was, ok := m.heard[c][n]; !ok || was != string(e.value) {
			out = append(out, n)
		}
	}
	for n := range m.heard[c] {
		if _, ok := m.stores[c][n]; !ok && deletions {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, lb.ServiceName.Compare)
	return out
}

func (m *machine) apply(t *rapid.T, c string, names []lb.ServiceName, twice bool) {
	if m.heard[c] == nil {
		m.heard[c] = map[lb.ServiceName]string{}
	}
	var changes []mesh.Change
	for _, n := range names {
		e, present := m.stores[c][n]
		ch := mesh.Change{Key: keyOf(c, n), Value: e.value, Deleted: !present}
		if twice {
			changes = append(changes, mesh.Change{Key: ch.Key, Value: genEntry(t, c, n).value}, ch)
		}
		changes = append(changes, ch)
		m.o.deliver(c, n, e, present)
		delete(m.heard[c], n)
		if present {
			m.heard[c][n] = string(e.value)
		}
	}
	m.m.Apply(c, changes)
}

func (m *machine) sync(t *rapid.T) {
	c := genCluster(t)
	if m.conn[c] != "listing" {
		m.m.Synced(c) // out of place: must do nothing
		return
	}
	m.apply(t, c, m.lag(c, true), false)
	m.m.Synced(c)
	m.conn[c] = "following"
	delete(m.o.restored, c)
}

// relist loses the watch's memory.
func (m *machine) relist(t *rapid.T) {
	c := genCluster(t)
	m.m.Relist(c)
	if dirty := m.m.Dirty(); len(dirty) > 0 {
		t.Fatalf("dirty: %v", dirty)
	}
	delete(m.heard, c)
	m.o.keep(c)
	if m.conn[c] == "following" {
		m.conn[c] = "listing"
	}
}

func (m *machine) restart(t *rapid.T) {
	m.k.follow(m.m)
	before := bare(m.k.tables())
	m.o.restore(m.k.tables())
	m.m = mesh.New(config())
	configured := m.conn
	m.conn = map[string]string{own: "idle"}
	late := rapid.Bool().Draw(t, "configured late")
	if late {
		m.m.Restore(m.k.restored())
	}
	for c := range configured {
		if c == own || rapid.IntRange(0, 3).Draw(t, "removed meanwhile") > 0 {
			m.m.AddCluster(c, mesh.Policy{})
			m.conn[c] = "idle"
		}
	}
	if !late {
		m.m.Restore(m.k.restored())
	}
	clear(m.heard)
	if dirty := m.m.Dirty(); len(dirty) > 0 {
		t.Fatalf("dirty after restore: %v", dirty)
	}
	for _, n := range m.m.Services() {
		s, _ := m.m.Service(n)
		m.k[n] = lb.Merge(s)
	}
	if after := bare(m.k.tables()); after != before {
		t.Fatalf("a restart changed the tables from\n%s\nto\n%s", before, after)
	}
}

func (m *machine) check(t *rapid.T) {
	m.k.follow(m.m)
	if got, want := lb.Format(m.k.tables()), lb.Format(m.o.tables()); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
	for n := range m.o.services() {
		if !slices.Contains(m.m.Services(), n) {
			t.Fatalf("%v misses %v", m.m.Services(), n)
		}
	}
	for _, s := range m.m.Status() {
		services, backends := 0, 0
		for _, e := range m.o.delivered[s.Name] {
			services++
			backends += len(e.backends)
		}
		if s.Services != services || s.Backends != backends {
			t.Fatalf("%s counts %d services and %d backends, want %d and %d", s.Name, s.Services, s.Backends, services, backends)
		}
	}
}
