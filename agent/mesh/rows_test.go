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

// The tests below are named after the rows of the threat model that they hold:
// what a compromised or broken remote cluster may try. Rows about the wire are
// held by tests of package agent.

// assail lets clusters make hostile changes of the classes of one row.
func assail(t *testing.T, row string, n int) *poisonWorld {
	t.Helper()
	w := newPoisonWorld(t, 7)
	w.poison.classes = slices.DeleteFunc(w.poison.classes, func(c poisonClass) bool { return !strings.HasPrefix(c.name, row) })
	for i := range w.poison.classes {
		w.poison.classes[i].rare = false
	}
	for range 50 {
		w.goodChange()
	}
	for range n {
		w.hostileChange()
	}
	w.compare(int64(n))
	return w
}

// a cluster speaks for another one, by the name or id in a value, by the
// key of another cluster, or by another cluster's configuration.
func TestR01_SpeakingForAnotherCluster(t *testing.T) {
	w := assail(t, "R-01", 4000)
	for _, c := range []string{byRecords, bySlices} {
		var seen []mesh.Reason
		for _, r := range status(w.hit, c).Rejections {
			seen = append(seen, r.Reason)
		}
		if !slices.Contains(seen, mesh.ReasonKey) || !slices.Contains(seen, mesh.ReasonOwner) {
			t.Errorf("%s was refused for %v only", c, seen)
		}
	}
	w.end()
}

// a cluster claims our id or name, or an id in use: the first keeps it,
// however often the second tries, and a pinned id cannot change.
func TestR02_ClaimingAnIDOrName(t *testing.T) {
	m := joined(t, config(), remote)
	m.AddCluster("north", mesh.Policy{})
	before := fmt.Sprint(status(m, remote), status(m, own))
	for range 100 {
		for _, id := range []uint32{ids[remote], ownID, 0, 256, 1 << 31} {
			if _, err := m.Connected("north", schema.ClusterConfig{ID: id}); err == nil {
				t.Fatalf("id %d is accepted", id)
			}
			m.Apply("north", []mesh.Change{far("north", "cart", "10.3.0.1"), far(remote, "cart", "10.3.0.2"), local("cart")})
			m.Synced("north")
			m.Disconnected("north", "closed")
		}
	}
	if dirty := m.Dirty(); dirty != nil || fmt.Sprint(status(m, remote), status(m, own)) != before {
		t.Errorf("dirty %v, west %v", dirty, status(m, remote))
	}
	m.AddCluster(own, mesh.Policy{ID: 9}) // our own name as a remote's
	m.RemoveCluster(own)
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")

	m.SetPolicy(remote, mesh.Policy{ID: ids[remote]})
	if _, err := m.Connected(remote, schema.ClusterConfig{ID: 9}); err == nil {
		t.Error("another id than the pinned one is accepted")
	}
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
}

// backends that mean something else here: all of a corpus are refused, of
// records and of slices, alone and among good ones, and no valid one is.
func TestR03_BackendsThatPointElsewhere(t *testing.T) {
	w := assail(t, "R-03", 6000)
	w.end()
	m, p := fortress(t), newPoisoner(1)
	for i := range 5000 {
		out := poisoned{cluster: pick(p.rng, byRecords, bySlices), service: svc(fmt.Sprintf("victim-%d", i%victims))}
		p.entry(&out, p.good(out.cluster), p.good(out.cluster))
		m.Apply(out.cluster, []mesh.Change{out.change})
	}
	for c := range attackers() {
		if got := rejections(status(m, c)); got != "" {
			t.Errorf("valid backends of %s were refused: %s", c, got)
		}
	}
}

// a remote cluster hijacks services: protected ones, those of namespaces
// that are not its own, those that we do not have. It never makes a frontend.
func TestR04_HijackingServices(t *testing.T) {
	w := assail(t, "R-04", 4000)
	names, before := w.hit.Services(), len(w.spared.Services())
	for _, c := range []string{byRecords, bySlices} {
		for _, n := range []lb.ServiceName{svc("unknown"), {Namespace: "default", Name: "unknown"}, {Namespace: "kube-system", Name: "unknown"}, {Namespace: "bank", Name: "unknown"}} {
			out := poisoned{cluster: c, service: n}
			w.poison.entry(&out, w.poison.good(c))
			w.hit.Apply(c, []mesh.Change{out.change})
			if got, ok := w.hit.Service(n); ok {
				t.Errorf("%s made service %v", c, got)
			}
		}
	}
	if len(w.hit.Services()) != before || w.hit.Dirty() != nil {
		t.Errorf("services %v, were %v", w.hit.Services(), names)
	}
	for _, n := range names {
		hit, _ := w.hit.Service(n)
		spared, _ := w.spared.Service(n)
		if !slices.Equal(hit.Frontends, spared.Frontends) || hit.Affinity != spared.Affinity {
			t.Errorf("%s: frontends %v, affinity %v", n, hit.Frontends, hit.Affinity)
		}
	}
	w.end()
}

// identities outside a cluster's own range. The agent uses none, and who
// decodes them with our view of the cluster refuses them.
func TestR05_IdentitiesOutOfRange(t *testing.T) {
	assail(t, "R-05", 1000).end()
	from := schema.Source{Cluster: remote, ClusterID: ids[remote]}
	first, last := schema.IdentityRange(ids[remote], 255)
	labels := []byte("k8s:io.cilium.k8s.policy.cluster=" + remote + ";")
	for id, good := range map[uint32]bool{first: true, last: true, first - 1: false, last + 1: false, 1: false, 0: false, 255: false, 1<<32 - 1: false} {
		if _, err := schema.DecodeIdentity(from, 255, schema.IdentityKey(id), labels, schema.DefaultLimits()); (err == nil) != good {
			t.Errorf("identity %d: %v", id, err)
		}
		value := fmt.Appendf(nil, `{"IP":"10.1.0.1","ID":%d}`, id)
		reserved := id < 256 // they mean the same everywhere
		if _, err := schema.DecodeIPEntry(from, 255, schema.IPKey("10.1.0.1"), value, schema.DefaultLimits()); (err == nil) != (good || reserved) {
			t.Errorf("address entry of identity %d: %v", id, err)
		}
	}
}

// values that are large, become large or nest deeply are refused before
// they cost more than a few times their size, and leave nothing behind.
func TestR06_Bombs(t *testing.T) {
	assail(t, "R-06", 300).end()
	m, p := fortress(t), newPoisoner(1)
	for _, c := range []string{byRecords, bySlices} {
		for i, bomb := range bombs() {
			out := poisoned{cluster: c, service: svc("victim-1")}
			p.entry(&out)
			out.change.Value = bomb
			before := totalAlloc()
			m.Apply(c, []mesh.Change{out.change})
			if used := totalAlloc() - before; used > 4<<20 && used > 20*uint64(len(bomb)) {
				t.Errorf("bomb %d of %d bytes cost %d bytes", i, len(bomb), used)
			}
			if got := len(backends(m, svc("victim-1"))); got != 1 {
				t.Errorf("bomb %d left %d backends", i, got)
			}
		}
		if s := status(m, c); s.Backends != 0 || len(s.Rejections) == 0 {
			t.Errorf("%s: %+v", c, s)
		}
	}
	if err := m.Audit(); err != nil {
		t.Error(err)
	}
}

// however many large records a cluster sends, a million backends in all,
// what is kept of it is bounded, and others are not affected.
func TestR06_AMillionBackends(t *testing.T) {
	m := fortress(t)
	addrs := make([]string, 4000)
	for k := range addrs {
		addrs[k] = netip.AddrFrom4([4]byte{10, 1, byte(k >> 8), byte(k)}).String()
	}
	value := string(far(remote, "large", addrs...).Value)
	before := heap()
	for i := range 250 {
		name := fmt.Sprintf("large-%d", i)
		m.Apply(remote, []mesh.Change{{Key: keyOf(remote, svc(name)), Value: []byte(strings.Replace(value, `"large"`, `"`+name+`"`, 1))}})
	}
	if used := heap() - before; used > 16<<20 {
		t.Errorf("%d bytes are kept", used)
	}
	if s := status(m, remote); s.Backends > 100_000 || !strings.Contains(rejections(s), "limit") || m.Dirty() != nil {
		t.Errorf("%d backends, %s", s.Backends, rejections(s))
	}
}

// everything is withdrawn. An incomplete list takes nothing away; a
// complete one is believed, of that cluster alone; a brake holds it.
func TestR09_MassWithdrawal(t *testing.T) {
	m := joined(t, config(), remote, "north")
	m.Relist(remote)
	m.Connected(remote, announce(remote))
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1")
	m.Synced(remote)
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	m.Apply(remote, []mesh.Change{{Key: keyOf("north", svc("cart")), Deleted: true}, {Key: keyOf(own, svc("cart")), Deleted: true}})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")

	m = braking(t)
	m.Apply(remote, []mesh.Change{{Key: keyOf(remote, svc("cart")), Deleted: true}})
	wantWest(t, m, 10, tenOf(10)...)
}

// a flapping cluster costs one computation of one service per batch and
// no memory, whatever it said in between.
func TestR10_Flapping(t *testing.T) {
	assail(t, "R-10", 500).end()
	m := joined(t, config(), remote, "north")
	before := heap()
	for range 200 {
		var batch []mesh.Change
		for i := range 100 {
			batch = append(batch, far(remote, "cart", fmt.Sprintf("10.1.0.%d", i)), mesh.Change{Key: keyOf(remote, svc("cart")), Deleted: true})
		}
		m.Apply(remote, batch)
		if dirty := m.Dirty(); len(dirty) != 1 {
			t.Fatalf("dirty %v", dirty)
		}
	}
	if used := int64(heap()) - int64(before); used > 1<<20 {
		t.Errorf("%d bytes are kept", used)
	}
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
}

// what a dead exporter left behind stays as long as its store says so and
// goes with the first complete list that lacks it; no lease or timer takes part.
func TestR11_Leftovers(t *testing.T) {
	m := joined(t, config(), remote)
	m.Disconnected(remote, "its apiserver is gone")
	for range 3 {
		m.Connecting(remote)
		m.Disconnected(remote, "no route to host")
	}
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
	m.Relist(remote)
	m.Connected(remote, announce(remote))
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.1.0.2")})
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1", "west:10.1.0.2")
	m.Synced(remote)
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.2")
}

// a cluster passes on what it heard of others as its own: slices that the
// mesh's own controllers made are not taken, and addresses of other clusters'
// ranges are refused.
func TestR14_PassingOnOtherClustersBackends(t *testing.T) {
	assail(t, "R-14", 2000).end()
	m := joined(t, config(), "north")
	m.SetPolicy("north", mesh.Policy{Allow: prefixes("10.3.0.0/16")})
	m.AddCluster(remote, mesh.Policy{})
	m.Connected(remote, announce(remote))
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.3.0.1", "10.1.0.1")})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1")
}

// TestRefusalsAreDescribed: the latest ones with key, service and addresses, as
// printable text, and not longer than is good.
func TestRefusalsAreDescribed(t *testing.T) {
	m := joined(t, config(), remote)
	m.Apply(remote, []mesh.Change{far(remote, "cart", "127.0.0.1", "10.1.0.1"), {Key: "\x1b[2J" + strings.Repeat("k", 5000), Value: []byte("{")}, {Key: keyOf(remote, svc("web")), Value: []byte("{")}})
	list := m.Refusals()
	if len(list) != 3 {
		t.Fatalf("%+v", list)
	}
	for _, r := range list {
		if r.Cluster != remote || len(r.Key) > 256 || strings.ContainsFunc(r.Key, func(c rune) bool { return c < ' ' || c > '~' }) || r.Text == "" || r.Reason.Remedy() == "" {
			t.Errorf("%+v", r)
		}
	}
	cart, web, other := 0, 0, 0
	for _, r := range list {
		cart, web, other = cart+one(r.Concerns(svc("cart"))), web+one(r.Concerns(svc("web"))), other+one(r.Concerns(svc("car")))
		if r.Concerns(svc("cart")) && !slices.Equal(r.Addresses, []netip.Addr{netip.MustParseAddr("127.0.0.1")}) {
			t.Errorf("addresses %v", r.Addresses)
		}
	}
	if cart != 1 || web != 1 || other != 0 {
		t.Errorf("%d concern cart, %d web, %d car", cart, web, other)
	}
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.1.0.1"), far(remote, "web")})
	if list := m.Refusals(); len(list) != 1 {
		t.Errorf("mended, yet %+v", list)
	}
	for i := range 1000 {
		m.Apply(remote, []mesh.Change{{Key: keyOf(remote, svc(fmt.Sprintf("s%d", i))), Value: []byte("{")}})
	}
	if list := m.Refusals(); len(list) != 256 {
		t.Errorf("%d are described", len(list))
	}
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}
