package mesh_test

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// machine drives a Mesh as a shell would: stores that change, watches that
// deliver in pieces, connections that come and go, restarts.
type machine struct {
	m      *mesh.Mesh
	o      *oracle
	k      kernel
	codec  *schema.SliceCodec
	stores map[string]map[item]entry
	// layouts is how each store announces itself now.
	layouts map[string]layout
	// conn is per cluster: absent (not configured), "idle", "listing", "following".
	conn map[string]string
	// reads is per cluster that was accepted how it was announced then.
	reads map[string]layout
	// heard is what the watch believes it delivered.
	heard map[string]map[item]string
	// governed are services with terms of which the kernel holds only a part.
	governed map[lb.ServiceName]bool
}

// layout is where a cluster's records are.
type layout struct {
	mode   string
	cached bool
}

func (l layout) announce(cluster string) schema.ClusterConfig {
	config := announce(cluster)
	config.Capabilities.EndpointSlicesExportMode, config.Capabilities.Cached = l.mode, l.cached
	return config
}

// kind is what the cluster's services are read from.
func (l layout) kind(cluster string) schema.Kind {
	switch {
	case cluster == own:
		return schema.KindLocalService
	case l.mode == "":
		return schema.KindService
	}
	return schema.KindEndpointSlice
}

// moves tells whether other keys are read under the other layout.
func (l layout) moves(cluster string, o layout) bool {
	return cluster != own && (l.kind(cluster) != o.kind(cluster) || l.cached != o.cached)
}

// TestStateMachine: whatever happens in whatever order, following the dirty
// names gives the tables that recomputing everything gives.
func TestStateMachine(t *testing.T) {
	codec := &schema.SliceCodec{}
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{m: mesh.New(config()), o: newOracle(), k: kernel{}, codec: codec, stores: map[string]map[item]entry{},
			heard: map[string]map[item]string{}, layouts: map[string]layout{}, reads: map[string]layout{}}
		m.conn = map[string]string{own: "idle"}
		for c := range ids {
			m.stores[c] = map[item]entry{}
		}
		m.layouts["north"] = layout{mode: schema.ModeServicesAndEndpointSlices}
		m.layouts["south"] = layout{mode: schema.ModeEndpointSlicesOnly, cached: true}
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
			"change":     m.change,
			"restart":    m.restart,
			"lose":       m.lose,
			"move":       m.move,
			"readdress":  m.readdress,
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

// genItem names a record that a cluster may publish. A remote one may publish
// both kinds, whatever it announces.
func genItem(t *rapid.T, cluster string) item {
	switch {
	case cluster == own:
		return item{schema.KindLocalService, genService(t)}
	case rapid.Bool().Draw(t, "service record"):
		return item{schema.KindService, genService(t)}
	}
	return item{schema.KindEndpointSlice, svc(rapid.SampledFrom([]string{"cart-a", "cart-b", "web-a"}).Draw(t, "slice"))}
}

func (m *machine) publish(t *rapid.T) {
	c := genCluster(t)
	i := genItem(t, c)
	if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
		delete(m.stores[c], i)
		return
	}
	m.stores[c][i] = genEntry(t, m.codec, c, i)
}

// change makes a cluster announce something else at the next connection.
func (m *machine) change(t *rapid.T) {
	modes := []string{"", schema.ModeServicesAndEndpointSlices, schema.ModeEndpointSlicesOnly}
	m.layouts[genCluster(t)] = layout{rapid.SampledFrom(modes).Draw(t, "mode"), rapid.Bool().Draw(t, "cached")}
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
	delete(m.reads, c)
	delete(m.heard, c)
	delete(m.o.delivered, c)
	delete(m.o.restored, c)
}

func (m *machine) connect(t *rapid.T) {
	c := genCluster(t)
	was, accepted := m.reads[c]
	now := m.layouts[c]
	moved := accepted && now.moves(c, was)
	fresh, err := m.m.Connected(c, now.announce(c))
	if configured := m.conn[c] != ""; configured != (err == nil) || fresh != (configured && moved) {
		t.Fatalf("connect %s: fresh %v, %v", c, fresh, err)
	}
	if err != nil {
		return
	}
	if fresh {
		m.forget(t, c)
	}
	m.conn[c], m.reads[c] = "listing", now
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

func (m *machine) lag(c string, deletions bool) []item {
	var out []item
	for i, e := range m.stores[c] {
		if i.kind != m.reads[c].kind(c) {
			continue
		}
		if was, ok := m.heard[c][i]; !ok || was != string(e.value) {
			out = append(out, i)
		}
	}
	for i := range m.heard[c] {
		if _, ok := m.stores[c][i]; !ok && deletions {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, compareItems)
	return out
}

func (m *machine) apply(t *rapid.T, c string, items []item, twice bool) {
	if m.heard[c] == nil {
		m.heard[c] = map[item]string{}
	}
	var changes []mesh.Change
	for _, i := range items {
		e, present := m.stores[c][i]
		ch := mesh.Change{Key: i.key(c, m.reads[c].cached), Value: e.value, Deleted: !present}
		if twice {
			changes = append(changes, mesh.Change{Key: ch.Key, Value: genEntry(t, m.codec, c, i).value}, ch)
		}
		changes = append(changes, ch)
		m.o.deliver(c, i, e, present)
		delete(m.heard[c], i)
		if present {
			m.heard[c][i] = string(e.value)
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
	m.forget(t, c)
	if m.conn[c] == "following" {
		m.conn[c] = "listing"
	}
}

// forget expects what is known of c to be in force and provisional.
func (m *machine) forget(t *rapid.T, c string) {
	if dirty := m.m.Dirty(); len(dirty) > 0 {
		t.Fatalf("dirty: %v", dirty)
	}
	delete(m.heard, c)
	m.o.keep(c)
}

func (m *machine) restart(t *rapid.T) {
	m.k.follow(m.m)
	m.findGoverned()
	before := bare(m.steady(m.k.tables()))
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
	clear(m.reads)
	if dirty := m.m.Dirty(); len(dirty) > 0 {
		t.Fatalf("dirty after restore: %v", dirty)
	}
	for _, n := range m.m.Services() {
		s, _ := m.m.Service(n)
		m.k[n] = lb.Merge(s)
	}
	if after := bare(m.steady(m.k.tables())); after != before {
		t.Fatalf("a restart changed the tables from\n%s\nto\n%s", before, after)
	}
}

func (m *machine) check(t *rapid.T) {
	m.k.follow(m.m)
	if err := m.m.Audit(); err != nil {
		t.Fatal(err)
	}
	if got, want := lb.Format(m.k.tables()), lb.Format(m.o.tables()); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
	m.checkAging(t)
	for n := range m.o.services() {
		if !slices.Contains(m.m.Services(), n) {
			t.Fatalf("%v misses %v", m.m.Services(), n)
		}
	}
	for _, s := range m.m.Status() {
		services, backends, source := 0, 0, ""
		for _, e := range m.o.said(s.Name) {
			services++
			backends += len(e.backends)
		}
		if l, accepted := m.reads[s.Name]; accepted {
			source = l.kind(s.Name).String()
		}
		if s.Source != source {
			t.Fatalf("%s is read from %q, want %q", s.Name, s.Source, source)
		}
		if s.Services != services || s.Backends != backends {
			t.Fatalf("%s counts %d services and %d backends, want %d and %d", s.Name, s.Services, s.Backends, services, backends)
		}
		if want := m.o.provisional(s.Name); s.Provisional != want {
			t.Fatalf("%s counts %+v as provisional, want %+v", s.Name, s.Provisional, want)
		}
	}
}
