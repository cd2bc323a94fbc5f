package mesh_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// braking is a mesh whose cluster west has 10 backends of service cart and may
// lose half of them at once.
func braking(t *testing.T) *mesh.Mesh {
	m := joined(t, config(), "north")
	m.AddCluster(remote, mesh.Policy{Brake: 50})
	m.Connected(remote, announce(remote))
	m.Apply(remote, []mesh.Change{farTen(10)})
	m.Synced(remote)
	m.Dirty()
	return m
}

// farTen says the first n of ten backends.
func farTen(n int) mesh.Change { return far(remote, "cart", tenOf(n)...) }

func tenOf(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("10.1.0.%d", i))
	}
	return out
}

// wantWest checks which of west's backends are in use and how many of them are
// held.
func wantWest(t *testing.T, m *mesh.Mesh, held int, addrs ...string) {
	t.Helper()
	want := []string{"east:10.0.0.1", "north:10.3.0.1"}
	for _, a := range addrs {
		want = append(want, "west:"+a)
	}
	wantBackends(t, m, want...)
	s := status(m, remote)
	if s.Held != held || s.Braked != (held > 0) || len(m.Held(svc("cart"))) != held {
		t.Errorf("%d held, braked %v, %d of the service, want %d", s.Held, s.Braked, len(m.Held(svc("cart"))), held)
	}
	if err := m.Audit(); err != nil {
		t.Error(err)
	}
}

// TestBrakeHoldsAMassWithdrawal: in one change, in several within a window, by
// deletion or by a value that is refused. What comes back is not held any more.
func TestBrakeHoldsAMassWithdrawal(t *testing.T) {
	gone := mesh.Change{Key: keyOf(remote, svc("cart")), Deleted: true}
	broken := mesh.Change{Key: gone.Key, Value: []byte("{")}
	for name, changes := range map[string][][]mesh.Change{
		"deletion": {{gone}}, "refusal": {{broken}}, "smaller": {{farTen(4)}}, "steps": {{farTen(7)}, {farTen(4)}}, "batch": {{farTen(7), farTen(4)}},
	} {
		t.Run(name, func(t *testing.T) {
			m := braking(t)
			for _, c := range changes {
				m.Apply(remote, c)
			}
			held := 6
			if name == "deletion" || name == "refusal" {
				held = 10
			}
			wantWest(t, m, held, tenOf(10)...)
			m.EndWindow(remote)
			wantWest(t, m, held, tenOf(10)...)
			m.Apply(remote, []mesh.Change{farTen(8)})
			wantWest(t, m, 2, tenOf(10)...)
			m.Dirty()
			m.Apply(remote, []mesh.Change{farTen(10)})
			wantWest(t, m, 0, tenOf(10)...)
			m.Apply(remote, []mesh.Change{farTen(9)})
			wantWest(t, m, 0, tenOf(9)...)
		})
	}
}

func TestBrakeLetsSmallAndSlowChangesPass(t *testing.T) {
	m := braking(t)
	for n := 9; n >= 0; n-- {
		m.Apply(remote, []mesh.Change{farTen(n)})
		wantWest(t, m, 0, tenOf(n)...)
		m.EndWindow(remote)
		if n > 5 {
			continue
		}
		break
	}
	m = braking(t)
	m.Apply(remote, []mesh.Change{farTen(5)}) // exactly the share
	wantWest(t, m, 0, tenOf(5)...)
	m = braking(t)
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.1.9.0", "10.1.9.1", "10.1.9.2", "10.1.9.3", "10.1.9.4")}) // replaced, half of them
	wantWest(t, m, 0, "10.1.9.0", "10.1.9.1", "10.1.9.2", "10.1.9.3", "10.1.9.4")
}

// TestBrakeCountsServicesThatBecomeOurs: a service that is made while a window is
// open counts with what its cluster had.
func TestBrakeCountsServicesThatBecomeOurs(t *testing.T) {
	m := braking(t)
	web := func(n int) mesh.Change {
		var addrs []string
		for i := range n {
			addrs = append(addrs, fmt.Sprintf("10.1.1.%d", i))
		}
		return far(remote, "web", addrs...)
	}
	m.Apply(remote, []mesh.Change{web(100)})
	m.Apply(remote, []mesh.Change{farTen(9)})
	m.Apply(own, []mesh.Change{local("web")})
	m.Apply(remote, []mesh.Change{web(60)})
	wantWest(t, m, 0, tenOf(9)...)
	m.Apply(remote, []mesh.Change{web(40)})
	if s := status(m, remote); !s.Braked || s.Held != 61 {
		t.Errorf("%d held, braked %v", s.Held, s.Braked)
	}
}

func TestReleasedBackendsLeave(t *testing.T) {
	m := braking(t)
	if n := m.Release(remote); n != 0 {
		t.Errorf("released %d", n)
	}
	m.Apply(remote, []mesh.Change{farTen(1)})
	m.Dirty()
	if n := m.Release(remote); n != 9 || len(m.Dirty()) != 1 {
		t.Errorf("released %d", n)
	}
	wantWest(t, m, 0, tenOf(1)...)
	m.Apply(remote, []mesh.Change{farTen(10)})
	m.EndWindow(remote)
	m.Apply(remote, []mesh.Change{farTen(0)})
	wantWest(t, m, 10, tenOf(10)...)
	m.SetPolicy(remote, mesh.Policy{Brake: mesh.NoBrake})
	wantWest(t, m, 0)
}

// TestBrakeAtTheEndOfAList: what a fresh list lacks is held too: after a
// reconnect with an empty memory, a change of source, a restart of the agent.
// While it is held, another list changes nothing.
func TestBrakeAtTheEndOfAList(t *testing.T) {
	m := braking(t)
	for range 2 {
		m.Relist(remote)
		m.Apply(remote, []mesh.Change{farTen(3)})
		m.Synced(remote)
		wantWest(t, m, 7, tenOf(10)...)
	}
	if fresh, err := m.Connected(remote, announceSlices(remote)); !fresh || err != nil {
		t.Fatal(fresh, err)
	}
	m.Synced(remote)
	wantWest(t, m, 10, tenOf(10)...)
	m.Apply(remote, []mesh.Change{change(&schema.SliceCodec{}, sliceOf(remote, "cart-a", tenOf(9)...))})
	wantWest(t, m, 1, tenOf(10)...)
	m.Release(remote)
	wantWest(t, m, 0, tenOf(9)...)

	k := kernel{}
	m = braking(t)
	m.Apply(own, []mesh.Change{local("cart")})
	for _, n := range m.Services() {
		k.set(m, n)
	}
	m = mesh.New(config())
	m.AddCluster(remote, mesh.Policy{Brake: 50, ID: ids[remote]})
	m.Restore(k.restored())
	m.Connected(remote, announce(remote))
	m.Synced(remote)
	wantWest(t, m, 10, tenOf(10)...)
}

// TestBrakeDoesNotHoldWhatTheOperatorDrops: a policy, own ranges, a removal.
func TestBrakeDoesNotHoldWhatTheOperatorDrops(t *testing.T) {
	m := braking(t)
	m.SetPolicy(remote, mesh.Policy{Brake: 50, Allow: prefixes("10.1.0.0/31")})
	wantWest(t, m, 0, tenOf(2)...)
	m.SetOwn(prefixes("10.1.0.0/32"))
	wantWest(t, m, 0, "10.1.0.1")
	m = braking(t)
	m.Apply(remote, []mesh.Change{farTen(0)})
	m.SetOwn(prefixes("10.1.0.0/32"))
	wantWest(t, m, 9, tenOf(10)[1:]...)
	m.RemoveCluster(remote)
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	m = braking(t)
	m.Apply(remote, []mesh.Change{farTen(3)})
	wantWest(t, m, 7, tenOf(10)...)
	m.SetPolicy(remote, mesh.Policy{Brake: 50, Namespaces: []string{"bank"}})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
}

// TestBrakeIsNotEvaded: what a cluster that means harm could do to empty services
// here in spite of the brake.
func TestBrakeIsNotEvaded(t *testing.T) {
	t.Run("a wider own range explains no loss", func(t *testing.T) {
		m := braking(t)
		m.SetOwn(prefixes("10.9.9.9/32"))
		m.Apply(remote, []mesh.Change{farTen(10), far(remote, "web", "10.9.9.9")})
		if again := m.SetOwn(nil); !slices.Equal(again, []string{remote}) {
			t.Fatalf("again %v", again)
		}
		m.Relist(remote)
		m.Apply(remote, []mesh.Change{farTen(2)})
		m.Synced(remote)
		wantWest(t, m, 8, tenOf(10)...)
	})
	t.Run("lists in a row are one window", func(t *testing.T) {
		m := braking(t)
		for _, n := range []int{7, 5, 4} {
			m.Relist(remote)
			m.Apply(remote, []mesh.Change{farTen(n)})
			m.Synced(remote)
		}
		wantWest(t, m, 6, tenOf(10)...)
	})
	t.Run("a list ends no window", func(t *testing.T) {
		m := braking(t)
		m.Apply(remote, []mesh.Change{farTen(6)})
		wantWest(t, m, 0, tenOf(6)...)
		m.Relist(remote)
		m.Apply(remote, []mesh.Change{farTen(6)})
		m.Synced(remote)
		wantWest(t, m, 0, tenOf(6)...)
		m.Apply(remote, []mesh.Change{farTen(4)})
		wantWest(t, m, 6, tenOf(10)...)
	})
	t.Run("services that are not ours do not count", func(t *testing.T) {
		m := braking(t)
		var filler []mesh.Change
		for i := range 50 {
			filler = append(filler, far(remote, fmt.Sprintf("filler-%d", i), tenOf(10)...))
		}
		m.Apply(remote, filler)
		m.EndWindow(remote)
		m.Apply(remote, []mesh.Change{farTen(1)})
		wantWest(t, m, 9, tenOf(10)...)
		m = braking(t)
		m.Apply(remote, filler)
		m.Relist(remote)
		m.Apply(remote, append(filler, farTen(1)))
		m.Synced(remote)
		wantWest(t, m, 9, tenOf(10)...)
	})
	t.Run("junk takes no room", junkTakesNoRoom)
	t.Run("another id", anotherIDIsRefused)
}

// junkTakesNoRoom: what comes and goes in a window uses up nothing of what may be held.
func junkTakesNoRoom(t *testing.T) {
	for _, relist := range []bool{false, true} {
		cfg := config()
		cfg.MaxBackends = 20
		m := joined(t, cfg)
		m.AddCluster("north", mesh.Policy{})
		m.Connected("north", announce("north"))
		m.Apply("north", []mesh.Change{far("north", "cart", "10.3.0.1")})
		m.AddCluster(remote, mesh.Policy{Brake: 50})
		m.Connected(remote, announce(remote))
		m.Apply(own, []mesh.Change{local("web")})
		m.Apply(remote, []mesh.Change{farTen(10), far(remote, "web", "10.1.7.1")})
		m.Synced(remote)
		for i := range 20 {
			junk := []string{fmt.Sprintf("10.1.5.%d", i), fmt.Sprintf("10.1.6.%d", i)}
			m.Apply(remote, []mesh.Change{far(remote, "web", junk...), far(remote, "cart", append(junk, tenOf(10)...)...)})
			m.Apply(remote, []mesh.Change{far(remote, "web"), farTen(10)})
			if i > 10 && relist {
				m.Relist(remote)
				m.Apply(remote, []mesh.Change{far(remote, "web"), farTen(10)})
				m.Synced(remote)
			}
		}
		m.Apply(remote, []mesh.Change{farTen(0)})
		for _, a := range tenOf(10) {
			if !slices.Contains(backends(m, svc("cart")), "west:"+a) {
				t.Errorf("relist %v: %s is not held: %v", relist, a, backends(m, svc("cart")))
			}
		}
		if n := len(m.Held(svc("cart"))) + len(m.Held(svc("web"))); n > 12 {
			t.Errorf("relist %v: %d are held", relist, n)
		}
		if err := m.Audit(); err != nil {
			t.Error(err)
		}
	}
}

// anotherIDIsRefused: an id that changes would drain everything; the operator may allow it.
func anotherIDIsRefused(t *testing.T) {
	m := braking(t)
	_, err := m.Connected(remote, schema.ClusterConfig{ID: 9})
	if err == nil || !strings.Contains(err.Error(), "cluster-id: 9") || status(m, remote).State != mesh.Refused {
		t.Errorf("got %v, state %v", err, status(m, remote).State)
	}
	wantWest(t, m, 0, tenOf(10)...)
	m.SetPolicy(remote, mesh.Policy{Brake: 50, ID: 9})
	if _, err := m.Connected(remote, schema.ClusterConfig{ID: 9}); err != nil {
		t.Error(err)
	}
	wantWest(t, m, 0)
}

// TestHeldIsBounded: a cluster that replaces its backends for ever while they
// are held does not fill this node.
func TestHeldIsBounded(t *testing.T) {
	cfg := config()
	cfg.MaxBackends, cfg.Brake = 20, 10
	m := joined(t, cfg, remote)
	for i := range 100 {
		m.Apply(remote, []mesh.Change{far(remote, "cart", fmt.Sprintf("10.1.1.%d", i), fmt.Sprintf("10.1.2.%d", i)), far(remote, "cart")})
	}
	if n := len(backends(m, svc("cart"))); n > 1+2*20 {
		t.Errorf("%d backends", n)
	}
}

// TestBrakeIsolation: with a brake on one cluster, and whatever it does, the
// others' backends are those of a run without one; and once all is quiet and
// released, its own are as well.
func TestBrakeIsolation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		with, without := mesh.New(config()), mesh.New(config())
		for _, m := range []*mesh.Mesh{with, without} {
			for _, c := range []string{own, remote, "north"} {
				m.AddCluster(c, mesh.Policy{})
				m.Connected(c, announce(c))
			}
			m.Apply(own, []mesh.Change{local("cart"), local("web")})
		}
		with.SetPolicy(remote, mesh.Policy{Brake: 30})
		stores := map[string]map[string]mesh.Change{remote: {}, "north": {}}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			step := drawBrakeStep(t, stores)
			step(without)
			step(with)
			if rapid.Bool().Draw(t, "window ends") {
				with.EndWindow(remote)
			}
			if err := with.Audit(); err != nil {
				t.Fatal(err)
			}
			for _, n := range []string{"cart", "web"} {
				a, b := backends(with, svc(n)), backends(without, svc(n))
				if !slices.Equal(others(a), others(b)) {
					t.Fatalf("%v is not %v", a, b)
				}
				for _, x := range b {
					if !slices.Contains(a, x) {
						t.Fatalf("%v lacks %s", a, x)
					}
				}
			}
		}
		with.Release(remote)
		for _, n := range []string{"cart", "web"} {
			if a, b := backends(with, svc(n)), backends(without, svc(n)); !slices.Equal(a, b) {
				t.Fatalf("released, %v is not %v", a, b)
			}
		}
	})
}

// drawBrakeStep draws what happens to both meshes.
func drawBrakeStep(t *rapid.T, stores map[string]map[string]mesh.Change) func(*mesh.Mesh) {
	c := rapid.SampledFrom([]string{remote, remote, "north"}).Draw(t, "cluster")
	if rapid.IntRange(0, 4).Draw(t, "relist") == 0 {
		var all []mesh.Change
		for _, ch := range stores[c] {
			if !ch.Deleted {
				all = append(all, ch)
			}
		}
		return func(m *mesh.Mesh) { m.Relist(c); m.Apply(c, all); m.Synced(c) }
	}
	if rapid.IntRange(0, 5).Draw(t, "own") == 0 {
		name := rapid.SampledFrom([]string{"cart", "web"}).Draw(t, "service")
		ch := local(name)
		if rapid.Bool().Draw(t, "deleted") {
			ch = mesh.Change{Key: keyOf(own, svc(name)), Deleted: true}
		}
		return func(m *mesh.Mesh) { m.Apply(own, []mesh.Change{ch}) }
	}
	var batch []mesh.Change
	for range rapid.IntRange(1, 3).Draw(t, "changes") {
		name := rapid.SampledFrom([]string{"cart", "web"}).Draw(t, "service")
		ch := mesh.Change{Key: keyOf(c, svc(name)), Deleted: true}
		if rapid.IntRange(0, 3).Draw(t, "deleted") > 0 {
			var addrs []string
			for _, i := range rapid.SliceOfDistinct(rapid.IntRange(1, 9), rapid.ID[int]).Draw(t, "addresses") {
				addrs = append(addrs, fmt.Sprintf("10.%d.0.%d", ids[c], i))
			}
			ch = far(c, name, addrs...)
		}
		stores[c][name] = ch
		batch = append(batch, ch)
	}
	return func(m *mesh.Mesh) { m.Apply(c, batch) }
}

func others(in []string) (out []string) {
	for _, s := range in {
		if s[:4] != remote {
			out = append(out, s)
		}
	}
	return out
}
