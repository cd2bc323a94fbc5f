package mesh_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// TestBrakeIsFairToHonestClusters: what a cluster that means no harm does, and what
// the own cluster does meanwhile, neither pulls the brake nor keeps it on.
func TestBrakeIsFairToHonestClusters(t *testing.T) {
	others := []string{"10.1.9.0", "10.1.9.1", "10.1.9.2", "10.1.9.3", "10.1.9.4", "10.1.9.5", "10.1.9.6", "10.1.9.7", "10.1.9.8", "10.1.9.9"}
	t.Run("replacements after their predecessors", func(t *testing.T) {
		for name, say := range map[string]func(*mesh.Mesh, ...mesh.Change){
			"list": listWest, "change": func(m *mesh.Mesh, all ...mesh.Change) { m.Apply(remote, all) },
		} {
			m := braking(t)
			m.Apply(remote, []mesh.Change{farTen(0)})
			say(m, far(remote, "cart", others[:9]...))
			wantWest(t, m, 10, append(tenOf(10), others[:9]...)...)
			say(m, far(remote, "cart", others...))
			wantWest(t, m, 0, others...)
			if m.Brake(remote).Window {
				t.Errorf("%s: the window is open", name)
			}
		}
	})
	t.Run("replaced beside a service that lost", func(t *testing.T) {
		m := braking(t)
		m.Apply(own, []mesh.Change{local("web")})
		m.EndWindow(remote)
		m.Apply(remote, []mesh.Change{far(remote, "web", "10.1.1.1", "10.1.1.2")})
		m.EndWindow(remote)
		m.Apply(remote, []mesh.Change{far(remote, "web", "10.1.2.1", "10.1.2.2"), farTen(1)})
		wantWest(t, m, 9, tenOf(10)...)
		if got := backends(m, svc("web")); !slices.Equal(got, []string{"east:10.0.0.1", "west:10.1.2.1", "west:10.1.2.2"}) {
			t.Errorf("web has %v", got)
		}
		m.Apply(remote, []mesh.Change{far(remote, "web", "10.1.2.1")}) // held no more, for it is none of what was there
		wantWest(t, m, 9, tenOf(10)...)
		m.Apply(remote, []mesh.Change{far(remote, "cart", others...)})
		wantWest(t, m, 0, others...)
	})
	t.Run("losses that a list takes back", lossesTakenBack)
	t.Run("a service that is ours no more", oursNoMore)
	t.Run("losses of a service that is ours no more", func(t *testing.T) {
		m := braking(t)
		m.Apply(own, []mesh.Change{local("web")})
		m.Apply(remote, []mesh.Change{far(remote, "web", others...)})
		m.EndWindow(remote)
		m.Apply(remote, []mesh.Change{far(remote, "web")})
		m.Apply(own, []mesh.Change{{Key: keyOf(own, svc("web")), Deleted: true}})
		m.Apply(remote, []mesh.Change{farTen(9)})
		wantWest(t, m, 0, tenOf(9)...)
	})
}

// lossesTakenBack: what a list says again is not lost, whatever came before it.
func lossesTakenBack(t *testing.T) {
	for name, had := range map[string]mesh.Change{"some": farTen(6), "none": farTen(5), "gone": {Key: keyOf(remote, svc("cart")), Deleted: true}} {
		m := braking(t)
		web := far(remote, "web", "10.1.1.1", "10.1.1.2", "10.1.1.3", "10.1.1.4", "10.1.1.5", "10.1.1.6", "10.1.1.7", "10.1.1.8", "10.1.1.9", "10.1.1.10", "10.1.1.11")
		m.Apply(own, []mesh.Change{local("web")})
		m.Apply(remote, []mesh.Change{web})
		m.EndWindow(remote)
		m.Apply(remote, []mesh.Change{had})
		listWest(m, farTen(10), web)
		wantWest(t, m, 0, tenOf(10)...)
		m.Apply(remote, []mesh.Change{far(remote, "web", "10.1.1.1")}) // 10 of 21
		if s := status(m, remote); s.Braked {
			t.Errorf("%s: %d are held", name, s.Held)
		}
		m.Apply(remote, []mesh.Change{farTen(9)})
		if s := status(m, remote); s.Held != 11 {
			t.Errorf("%s: %d are held, want 11", name, s.Held)
		}
	}
}

// oursNoMore: what is held of a service goes when our own cluster has it no more.
func oursNoMore(t *testing.T) {
	m := braking(t)
	m.Apply(own, []mesh.Change{local("web")})
	m.Apply(remote, []mesh.Change{far(remote, "web", "10.1.1.1", "10.1.1.2")})
	m.EndWindow(remote)
	m.Apply(remote, []mesh.Change{{Key: keyOf(remote, svc("cart")), Deleted: true}})
	wantWest(t, m, 10, tenOf(10)...)
	m.Apply(own, []mesh.Change{{Key: keyOf(own, svc("cart")), Deleted: true}})
	if b := m.Brake(remote); b != (mesh.BrakeState{}) {
		t.Errorf("the brake is %+v", b)
	}
	m.Apply(remote, []mesh.Change{far(remote, "web", "10.1.1.1")})
	if got := backends(m, svc("web")); !slices.Equal(got, []string{"east:10.0.0.1", "west:10.1.1.1"}) {
		t.Errorf("web has %v", got)
	}
	m.Apply(own, []mesh.Change{local("cart")})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	if err := m.Audit(); err != nil {
		t.Error(err)
	}
}

// TestReleaseLetsAClusterChangeItsID: once, and only to the id that was refused.
func TestReleaseLetsAClusterChangeItsID(t *testing.T) {
	connect := func(m *mesh.Mesh, id uint32) error {
		_, err := m.Connected(remote, schema.ClusterConfig{ID: id})
		return err
	}
	wantHeld := func(m *mesh.Mesh, n int) {
		t.Helper()
		if b := m.Brake(remote); b.Held != n || b.Braked != (n > 0) {
			t.Errorf("the brake is %+v, want %d held", b, n)
		}
	}
	m := braking(t)
	m.Apply(remote, []mesh.Change{farTen(3)}) // some of it is held already
	if err := connect(m, 9); err == nil || !strings.Contains(err.Error(), "clustermesh release west") {
		t.Errorf("got %v", err)
	}
	wantHeld(m, 10)
	if n := m.Release(remote); n != 10 {
		t.Errorf("released %d", n)
	}
	wantHeld(m, 0)
	wantWest(t, m, 0, tenOf(3)...) // until it connects
	if n := m.Release(remote); n != 0 {
		t.Errorf("released %d again", n)
	}
	if err := connect(m, 8); err == nil {
		t.Error("an id is accepted that nobody released")
	}
	wantHeld(m, 3)
	m.Release(remote)
	if err := connect(m, ids[remote]); err != nil { // it did not mean it
		t.Error(err)
	}
	wantHeld(m, 0)
	if err := connect(m, 8); err == nil {
		t.Error("a release counts twice")
	}
	if err := connect(m, ids["north"]); err == nil || strings.Contains(err.Error(), "release") {
		t.Errorf("another cluster's id is to be released: %v", err)
	}
	m.Release(remote)
	if err := connect(m, 8); err != nil || status(m, remote).ID != 8 {
		t.Error(err)
	}
	wantWest(t, m, 0)
	wantHeld(m, 0)
}

// listWest is a new list of all that west says.
func listWest(m *mesh.Mesh, all ...mesh.Change) {
	m.Relist(remote)
	m.Apply(remote, all)
	m.Synced(remote)
}
