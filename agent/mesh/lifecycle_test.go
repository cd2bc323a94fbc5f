package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// local is the own cluster's record of a service with one frontend and one
// ready backend.
func local(name string, addrs ...string) mesh.Change {
	if addrs == nil {
		addrs = []string{"10.0.0.1"}
	}
	s := schema.LocalService{Cluster: own, ClusterID: ownID, Namespace: "shop", Name: name, Shared: true,
		Frontends: []schema.LocalFrontend{{Address: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: schema.TCP, PortName: "http"}},
	}
	for _, a := range addrs {
		s.Backends = append(s.Backends, schema.LocalBackend{Address: netip.MustParseAddr(a), Port: 8080, Protocol: schema.TCP, PortNames: []string{"http"}, Ready: true, Serving: true})
	}
	return mesh.Change{Key: keyOf(own, svc(name)), Value: s.Encode()}
}

// far is a remote cluster's record of a service with the given backends.
func far(cluster, name string, addrs ...string) mesh.Change {
	return farIn(cluster, svc(name), addrs...)
}

func farIn(cluster string, n lb.ServiceName, addrs ...string) mesh.Change {
	s := schema.Service{Cluster: cluster, ClusterID: ids[cluster], Namespace: n.Namespace, Name: n.Name, Shared: true, IncludeExternal: true,
		Backends: map[netip.Addr]schema.PortMap{}}
	for _, a := range addrs {
		s.Backends[netip.MustParseAddr(a)] = schema.PortMap{"http": {Protocol: schema.TCP, Port: 8080}}
	}
	return mesh.Change{Key: keyOf(cluster, n), Value: s.Encode()}
}

// joined returns a mesh whose own cluster has service cart and that is synced
// with the named remote clusters, each with one backend 10.<id>.0.1.
func joined(t *testing.T, cfg mesh.Config, remotes ...string) *mesh.Mesh {
	t.Helper()
	m := mesh.New(cfg)
	for _, c := range append([]string{own}, remotes...) {
		m.AddCluster(c, mesh.Policy{})
		if _, err := m.Connected(c, announce(c)); err != nil {
			t.Fatal(err)
		}
		ch := local("cart")
		if c != own {
			ch = far(c, "cart", fmt.Sprintf("10.%d.0.1", ids[c]))
		}
		m.Apply(c, []mesh.Change{ch})
		m.Synced(c)
	}
	m.Dirty()
	return m
}

// backends lists the backends of a service, or nil without the service.
func backends(m *mesh.Mesh, n lb.ServiceName) []string {
	s, ok := m.Service(n)
	if !ok {
		return nil
	}
	out := []string{}
	for _, b := range s.Backends {
		out = append(out, b.Cluster+":"+b.Addr.Addr().String())
	}
	slices.Sort(out)
	return out
}

func wantBackends(t *testing.T, m *mesh.Mesh, want ...string) {
	t.Helper()
	if got := backends(m, svc("cart")); !slices.Equal(got, want) {
		t.Errorf("backends %v, want %v", got, want)
	}
}

func TestContactLostKeepsEverything(t *testing.T) {
	m := joined(t, config(), remote)
	m.Disconnected(remote, "dial tcp: no route to host")
	m.Disconnected(own, "our own etcd is down")
	if dirty := m.Dirty(); dirty != nil {
		t.Errorf("dirty %v", dirty)
	}
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
	if s := status(m, remote); s.State != mesh.Stale || s.LastError != "dial tcp: no route to host" {
		t.Errorf("status %+v", s)
	}
}

func TestRemovedClusterIsGone(t *testing.T) {
	m := joined(t, config(), remote, "north")
	m.RemoveCluster(remote)
	if dirty := m.Dirty(); !slices.Equal(dirty, []lb.ServiceName{svc("cart")}) {
		t.Errorf("dirty %v", dirty)
	}
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	m.AddCluster("other", mesh.Policy{})
	if _, err := m.Connected("other", announce(remote)); err != nil {
		t.Errorf("the id of a removed cluster is not free: %v", err)
	}
	m.RemoveCluster(own)
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
}

func TestIDsAreFirstComeFirstServed(t *testing.T) {
	for want, id := range map[string]uint32{
		"is held by cluster west, which was first": ids[remote],
		"is the local cluster's own":               ownID,
		"is reserved":                              0,
		"from 1 to 255":                            256,
	} {
		m := joined(t, config(), remote)
		m.AddCluster("north", mesh.Policy{})
		_, err := m.Connected("north", schema.ClusterConfig{ID: id})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("id %d: error %v, want %q", id, err, want)
		}
		m.Apply("north", []mesh.Change{far("north", "cart", "10.3.0.1")})
		m.Synced("north")
		wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
		m.Disconnected("north", "closed")
		if s := status(m, "north"); s.State != mesh.Refused || !strings.Contains(s.LastError, want) {
			t.Errorf("id %d: status %+v", id, s)
		}
		if _, err := m.Connected("north", announce("north")); err != nil {
			t.Errorf("mending id %d: %v", id, err)
		}
	}
}

// TestIDConflictKeepsWhatIsKnown: a cluster that comes back with an id it cannot
// have is refused; its content stays, and so does everybody else's.
func TestIDConflictKeepsWhatIsKnown(t *testing.T) {
	m := joined(t, config(), remote, "north")
	if _, err := m.Connected(remote, announce("north")); err == nil {
		t.Error("accepted")
	}
	m.Apply(remote, []mesh.Change{{Key: keyOf(remote, svc("cart")), Deleted: true}})
	m.Synced(remote)
	if m.Dirty() != nil {
		t.Error("a refused cluster changed something")
	}
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1")
	if s := status(m, remote); s.ID != ids[remote] {
		t.Errorf("id %d", s.ID)
	}
}

func TestIDChangeDropsWhatIsKnown(t *testing.T) {
	m := joined(t, config(), remote)
	fresh, err := m.Connected(remote, schema.ClusterConfig{ID: 9})
	if err != nil || !fresh {
		t.Fatalf("fresh %v, %v", fresh, err)
	}
	if dirty := m.Dirty(); len(dirty) != 1 {
		t.Errorf("dirty %v", dirty)
	}
	wantBackends(t, m, "east:10.0.0.1")
	if fresh, err := m.Connected(remote, schema.ClusterConfig{ID: 9}); err != nil || fresh {
		t.Errorf("second time: fresh %v, %v", fresh, err)
	}
	m.AddCluster("north", mesh.Policy{})
	if _, err := m.Connected("north", announce(remote)); err != nil {
		t.Errorf("the old id is not free: %v", err)
	}
}

func TestOwnStoreMustBeOurs(t *testing.T) {
	m := mesh.New(config())
	if _, err := m.Connected(own, schema.ClusterConfig{ID: 5}); err == nil || !strings.Contains(err.Error(), "configured with 2") {
		t.Errorf("got %v", err)
	}
	if _, err := m.Connected("nobody", announce(remote)); err == nil || !strings.Contains(err.Error(), "not configured") {
		t.Errorf("got %v", err)
	}
}

// TestRestartWithoutContact: until a cluster is synced nothing that was restored
// goes, whoever else is; then exactly what was not said again does.
func TestRestartWithoutContact(t *testing.T) {
	m := mesh.New(config())
	m.AddCluster(remote, mesh.Policy{})
	m.Restore([]mesh.Restored{{
		Service: svc("cart"), Frontend: lb.Frontend{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: lb.TCP, PortName: "http"},
		Backends: []lb.Backend{
			backend(own, netip.MustParseAddrPort("10.0.0.7:8080"), nil, lb.Active, ""),
			backend(remote, netip.MustParseAddrPort("10.1.0.7:8080"), nil, lb.Active, ""),
			backend("south", netip.MustParseAddrPort("10.4.0.7:8080"), nil, lb.Active, ""),
		},
	}})
	all := []string{"east:10.0.0.7", "south:10.4.0.7", "west:10.1.0.7"}
	wantBackends(t, m, all...)
	for _, name := range []string{own, remote, "south"} {
		if s := status(m, name); s.Backends != 0 || s.Provisional != (mesh.Provisional{Services: 1, Backends: 1}) {
			t.Errorf("%s says %d backends and has provisional %+v, want none and one of one service", name, s.Backends, s.Provisional)
		}
	}
	if got := m.Provisional(svc("cart")); len(got) != 3 {
		t.Errorf("provisional backends %v, want all three", got)
	}
	if a, b := status(m, remote).State, status(m, "south").State; a != mesh.Stale || b != mesh.Removed {
		t.Errorf("states %v %v", a, b)
	}
	m.Connected(own, announce(own))
	m.Apply(own, []mesh.Change{local("web")})
	wantBackends(t, m, all...)
	m.Apply(own, []mesh.Change{local("cart"), {Key: keyOf(own, svc("cart")), Deleted: true}})
	wantBackends(t, m, all...)
	m.Apply(own, []mesh.Change{local("cart")})
	m.Synced(own)
	wantBackends(t, m, "east:10.0.0.1", "south:10.4.0.7", "west:10.1.0.7")
	m.Connected(remote, announce(remote))
	wantBackends(t, m, "east:10.0.0.1", "south:10.4.0.7", "west:10.1.0.7")
	m.Synced(remote)
	wantBackends(t, m, "east:10.0.0.1", "south:10.4.0.7")
	if a, b := status(m, own), status(m, remote); a.Provisional != (mesh.Provisional{}) || b.Provisional != a.Provisional {
		t.Errorf("synced clusters have provisional %+v and %+v", a.Provisional, b.Provisional)
	}
	m.RemoveCluster("south")
	wantBackends(t, m, "east:10.0.0.1")
}

// TestRestoredFrontendGoesWithTheOwnSync: a service that was deleted while the
// agent was away leaves when the own cluster is synced, not before.
func TestRestoredFrontendGoesWithTheOwnSync(t *testing.T) {
	m := mesh.New(config())
	m.Restore([]mesh.Restored{{Service: svc("old"), Frontend: lb.Frontend{Addr: netip.MustParseAddrPort("10.96.0.9:80"), Protocol: lb.TCP}}})
	m.Connected(own, announce(own))
	if s, ok := m.Service(svc("old")); !ok || len(s.Frontends) != 1 {
		t.Errorf("service %v %v before the sync", s, ok)
	}
	m.Synced(own)
	if _, ok := m.Service(svc("old")); ok || !slices.Equal(m.Dirty(), []lb.ServiceName{svc("old")}) {
		t.Errorf("still there or not dirty: %v", ok)
	}
}

// TestRestoredWithoutClusterName: backends of a cluster whose name was never
// written stay apart and in force.
func TestRestoredWithoutClusterName(t *testing.T) {
	m := mesh.New(config())
	b := backend("", netip.MustParseAddrPort("10.8.0.1:80"), nil, lb.Active, "")
	b.ClusterID, b.Local = 8, false
	m.Restore([]mesh.Restored{{Service: svc("cart"), Frontend: lb.Frontend{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: lb.TCP}, Backends: []lb.Backend{b}}})
	wantBackends(t, m, "unknown-8:10.8.0.1")
	m.RemoveCluster("unknown-8")
	wantBackends(t, m)
}

func TestStatesOfALife(t *testing.T) {
	m := mesh.New(config())
	want := func(s mesh.State) {
		t.Helper()
		if got := status(m, remote).State; got != s {
			t.Errorf("state %v, want %v", got, s)
		}
	}
	m.AddCluster(remote, mesh.Policy{})
	want(mesh.NeverConnected)
	m.Connecting(remote)
	want(mesh.Connecting)
	m.Disconnected(remote, "refused")
	want(mesh.NeverConnected)
	m.Connected(remote, announce(remote))
	want(mesh.Syncing)
	m.Synced(remote)
	want(mesh.Synced)
	m.Disconnected(remote, "reset")
	m.Connecting(remote)
	want(mesh.Stale)
	if first := m.Status()[0]; !first.Local || first.Name != own {
		t.Errorf("the own cluster is not first: %+v", first)
	}
}

// TestRelayedKeys: behind a relay the same records lie below cilium/cache.
func TestRelayedKeys(t *testing.T) {
	m := joined(t, config())
	m.AddCluster(remote, mesh.Policy{})
	relayed := announce(remote)
	relayed.Capabilities.Cached = true
	m.Connected(remote, relayed)
	ch := far(remote, "cart", "10.1.0.1")
	m.Apply(remote, []mesh.Change{ch})
	wantBackends(t, m, "east:10.0.0.1")
	ch.Key = strings.Replace(ch.Key, "cilium/state", "cilium/cache", 1)
	m.Apply(remote, []mesh.Change{ch})
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
	if fresh, _ := m.Connected(remote, announce(remote)); !fresh {
		t.Error("other keys, yet the watch may go on")
	}
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.1.0.2")})
	m.Synced(remote)
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.2")
}
