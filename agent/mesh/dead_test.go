package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// selected lists the backends that the first frontend of a service uses.
func selected(t *testing.T, m *mesh.Mesh, name string) []string {
	t.Helper()
	s, ok := m.Service(svc(name))
	if !ok {
		t.Fatalf("there is no service %s", name)
	}
	out := []string{}
	for _, c := range lb.Merge(s)[0].Backends {
		if c.Selected {
			out = append(out, c.Cluster)
		}
	}
	slices.Sort(out)
	return out
}

// only is the own cluster's record of a service without backends.
func only(name, frontend string) mesh.Change {
	s := schema.LocalService{Cluster: own, ClusterID: ownID, Namespace: "shop", Name: name, Shared: true,
		Frontends: []schema.LocalFrontend{{Address: netip.MustParseAddr(frontend), Port: 80, Protocol: schema.TCP, PortName: "http"}}}
	return mesh.Change{Key: keyOf(own, svc(name)), Value: s.Encode()}
}

// TestADeadClusterIsUsedOnlyWhereNothingElseIs: it leaves the services that
// have other backends and stays with the others, through news of it and
// reconnects, and comes back with the last word on it.
func TestADeadClusterIsUsedOnlyWhereNothingElseIs(t *testing.T) {
	m := joined(t, config(), remote, "north")
	m.Apply(own, []mesh.Change{only("alone", "10.96.0.2")})
	m.Apply(remote, []mesh.Change{far(remote, "alone", "10.1.0.9"), far(remote, "unknown-here", "10.1.0.8")})
	m.Dirty()
	check := func(step string, want ...string) {
		t.Helper()
		if got := selected(t, m, "cart"); !slices.Equal(got, want) {
			t.Errorf("%s: %v are used, want %v", step, got, want)
		}
	}
	check("alive", own, "north", remote)
	m.SetDead(remote, true)
	if got, want := m.Dirty(), []lb.ServiceName{svc("alone"), svc("cart")}; !slices.Equal(got, want) {
		t.Errorf("dirty are %v, want %v", got, want)
	}
	check("dead", own, "north")
	m.SetDead(remote, true)
	m.SetDead(own, true)
	m.SetDead("nobody", true)
	if got := m.Dirty(); got != nil {
		t.Errorf("dirty are %v", got)
	}
	m.Disconnected(remote, "cut")
	if got := selected(t, m, "alone"); !slices.Equal(got, []string{remote}) {
		t.Errorf("%v serve what no other cluster has", got)
	}
	m.Apply(own, []mesh.Change{only("cart", "10.96.0.1")})
	check("no local backends left", "north")
	m.SetDead("north", true)
	check("all are dead", "north", remote)
	m.SetDead("north", false)
	m.SetDead(remote, false)
	check("back", "north", remote)
}

// TestADeadClusterIsStillDeadAfterARestart: what the kernel has as quarantined
// is as before, nothing is dirty by it, and the cluster's return undoes it.
func TestADeadClusterIsStillDeadAfterARestart(t *testing.T) {
	m := joined(t, config(), remote)
	m.SetDead(remote, true)
	s, _ := m.Service(svc("cart"))
	for i := range s.Backends {
		s.Backends[i].Names = nil
	}
	next := mesh.New(config())
	next.Restore([]mesh.Restored{{Service: s.Name, Frontend: s.Frontends[0], Backends: s.Backends}})
	if got := next.Dirty(); got != nil {
		t.Errorf("dirty are %v", got)
	}
	next.AddCluster(remote, mesh.Policy{})
	if got := selected(t, next, "cart"); !slices.Equal(got, []string{own}) || !status(next, remote).Dead {
		t.Errorf("%v are used, status %+v", got, status(next, remote))
	}
	next.SetDead(remote, false)
	if got := selected(t, next, "cart"); !slices.Equal(got, []string{own, remote}) || status(next, remote).Dead {
		t.Errorf("%v are used, status %+v", got, status(next, remote))
	}
}

// TestSampleHoldsWhatCanBeProbed: TCP backends of services that are used here,
// each once, no more than asked for.
func TestSampleHoldsWhatCanBeProbed(t *testing.T) {
	m := joined(t, config(), remote)
	var addrs []string
	want := map[netip.AddrPort]bool{}
	for i := range 5 {
		addrs = append(addrs, fmt.Sprintf("10.1.0.%d", i+1))
		want[netip.MustParseAddrPort(addrs[i]+":8080")] = true
	}
	m.Apply(own, []mesh.Change{only("more", "10.96.0.3")})
	m.Apply(remote, []mesh.Change{far(remote, "cart", addrs...), far(remote, "more", addrs...), far(remote, "unknown-here", "10.1.0.99")})
	got := m.Sample(remote, 64)
	for _, a := range got {
		if !want[a] {
			t.Errorf("%s is sampled", a)
		}
	}
	if len(got) != 5 || len(m.Sample(remote, 2)) != 2 || m.Sample("nobody", 3) != nil {
		t.Errorf("got %v", got)
	}
}
