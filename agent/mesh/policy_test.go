package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

func prefixes(text ...string) []netip.Prefix {
	out := []netip.Prefix{}
	for _, s := range text {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestPolicyIsFollowedLive: what a new policy does not accept leaves at once,
// from records and from slices; what it accepts again is asked for.
func TestPolicyIsFollowedLive(t *testing.T) {
	codec := &schema.SliceCodec{}
	for _, sliced := range []bool{false, true} {
		m := joined(t, config(), "north")
		tell := func() {
			m.AddCluster(remote, mesh.Policy{})
			said := announce(remote)
			changes := []mesh.Change{far(remote, "cart", "10.1.0.1", "10.7.0.1"), farIn(remote, lb.ServiceName{Namespace: "bank", Name: "safe"}, "10.1.0.9")}
			if sliced {
				said = announceSlices(remote)
				changes = []mesh.Change{change(codec, sliceOf(remote, "cart-a", "10.1.0.1", "10.7.0.1")), change(codec, sliceOf(remote, "cart-b", "10.7.0.1"))}
			}
			if _, err := m.Connected(remote, said); err != nil {
				t.Fatal(err)
			}
			m.Apply(remote, changes)
			m.Synced(remote)
			m.Dirty()
		}
		tell()
		wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1", "west:10.7.0.1")
		again := m.SetPolicy(remote, mesh.Policy{Allow: prefixes("10.1.0.0/16"), Namespaces: []string{"shop"}})
		if !slices.Equal(again, []string{remote}) || !slices.Equal(m.Dirty(), []lb.ServiceName{svc("cart")}) {
			t.Errorf("again %v", again)
		}
		wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1")
		if again := m.SetPolicy(remote, mesh.Policy{Allow: prefixes("10.1.0.0/16"), Namespaces: []string{"shop"}}); again != nil {
			t.Errorf("the same policy again: %v", again)
		}
		m.SetPolicy(remote, mesh.Policy{})
		m.Relist(remote)
		tell()
		wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1", "west:10.7.0.1")
		m.SetPolicy(remote, mesh.Policy{Namespaces: []string{"bank"}})
		wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
		if err := m.Audit(); err != nil {
			t.Error(err)
		}
	}
}

// TestPinnedID: only the pinned id is accepted; what is known under another
// goes when the pin appears.
func TestPinnedID(t *testing.T) {
	m := joined(t, config(), remote, "north")
	m.SetPolicy(remote, mesh.Policy{ID: 9})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	_, err := m.Connected(remote, announce(remote))
	if err == nil || !strings.Contains(err.Error(), "9 is pinned") || status(m, remote).State != mesh.Refused {
		t.Errorf("got %v, state %v", err, status(m, remote).State)
	}
	if _, err := m.Connected(remote, schema.ClusterConfig{ID: 9}); err != nil {
		t.Error(err)
	}
}

// TestPinnedIDIsKeptForItsCluster: nobody else gets an id that a policy pins, not
// even one who was first, and who has it when the pin appears loses it as if he
// had changed his own: with the new cluster, with its new policy, over a restart.
func TestPinnedIDIsKeptForItsCluster(t *testing.T) {
	pinned := mesh.Policy{ID: ids["north"]}
	claim := schema.ClusterConfig{ID: ids["north"]}
	for name, begin := range map[string]func() (*mesh.Mesh, []string){
		"from the start": func() (*mesh.Mesh, []string) {
			m := joined(t, config())
			m.AddCluster(remote, mesh.Policy{})
			return m, m.AddCluster("north", pinned)
		},
		"cluster added": func() (*mesh.Mesh, []string) { m := stolen(t, claim); return m, m.AddCluster("north", pinned) },
		"policy set": func() (*mesh.Mesh, []string) {
			m := stolen(t, claim)
			m.AddCluster("north", mesh.Policy{})
			return m, m.SetPolicy("north", pinned)
		},
		"restart": func() (*mesh.Mesh, []string) {
			old, k := stolen(t, claim), kernel{}
			k.set(old, svc("cart"))
			m := mesh.New(config())
			m.Restore(k.restored())
			m.Connected(own, announce(own))
			m.Apply(own, []mesh.Change{local("cart")})
			m.Synced(own)
			m.AddCluster("north", pinned)
			return m, m.AddCluster(remote, mesh.Policy{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, again := begin()
			if slices.Contains(again, remote) != (name == "cluster added" || name == "policy set") {
				t.Errorf("again %v", again)
			}
			_, err := m.Connected(remote, claim)
			if err == nil || !strings.Contains(err.Error(), "pinned for cluster north") || status(m, remote).State != mesh.Refused {
				t.Errorf("got %v, state %v", err, status(m, remote).State)
			}
			if _, err := m.Connected("north", announce("north")); err != nil {
				t.Error(err)
			}
			m.Apply("north", []mesh.Change{far("north", "cart", "10.3.0.1")})
			m.Synced("north")
			wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
			if _, err := m.Connected(remote, announce(remote)); err != nil {
				t.Error(err)
			}
			if err := m.Audit(); err != nil {
				t.Error(err)
			}
		})
	}
}

// stolen is a mesh in which west has the id that it claims.
func stolen(t *testing.T, claim schema.ClusterConfig) *mesh.Mesh {
	t.Helper()
	m := joined(t, config())
	m.AddCluster(remote, mesh.Policy{})
	m.Connected(remote, claim)
	s := schema.Service{Cluster: remote, ClusterID: claim.ID, Namespace: "shop", Name: "cart", Shared: true, IncludeExternal: true,
		Backends: map[netip.Addr]schema.PortMap{netip.MustParseAddr("10.1.0.1"): {"http": {Protocol: schema.TCP, Port: 8080}}}}
	m.Apply(remote, []mesh.Change{{Key: keyOf(remote, svc("cart")), Value: s.Encode()}})
	m.Synced(remote)
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
	m.Dirty()
	return m
}

// TestARefusingPolicy: a cluster whose policy is not known is not listened to,
// but what is known of it stays.
func TestARefusingPolicy(t *testing.T) {
	m := joined(t, config(), remote)
	m.SetPolicy(remote, mesh.Policy{Refuse: "its peer file is bad"})
	if _, err := m.Connected(remote, announce(remote)); err == nil || !strings.Contains(err.Error(), "its peer file is bad") {
		t.Errorf("got %v", err)
	}
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
}

// TestOwnRangesAreFollowedLive: a range that turns out to be ours expels who
// names it, and the cluster is listed again when it ceases to be.
func TestOwnRangesAreFollowedLive(t *testing.T) {
	m := joined(t, config(), remote, "north")
	if again := m.SetOwn(prefixes("10.1.0.0/24", "fd00::/64")); again != nil {
		t.Errorf("again %v", again)
	}
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	if got := rejections(status(m, remote)); got != "address keys=1 total=1" {
		t.Error(got)
	}
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.1.0.1", "10.1.1.1")})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.1.1")
	if again := m.SetOwn(prefixes("10.1.0.0/16", "fd00::/64")); again != nil {
		t.Errorf("again %v", again)
	}
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	if again := m.SetOwn(nil); !slices.Equal(again, []string{remote}) {
		t.Errorf("again %v", again)
	}
}

// TestRangesOfOtherClusters: the ranges that a policy gives to one cluster are
// not for clusters without a policy; removing the one frees them.
func TestRangesOfOtherClusters(t *testing.T) {
	m := joined(t, config(), remote, "north")
	m.Apply("north", []mesh.Change{far("north", "cart", "10.3.0.1", "10.1.0.66")})
	wantBackends(t, m, "east:10.0.0.1", "north:10.1.0.66", "north:10.3.0.1", "west:10.1.0.1")
	if again := m.SetPolicy(remote, mesh.Policy{Allow: prefixes("10.1.0.0/16")}); !slices.Equal(again, []string{remote}) {
		t.Errorf("again %v", again)
	}
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1")
	if again := m.RemoveCluster(remote); !slices.Equal(again, []string{"north"}) {
		t.Errorf("again %v", again)
	}
}

func TestQuotasOfAPolicy(t *testing.T) {
	m := joined(t, config(), "north")
	m.AddCluster(remote, mesh.Policy{MaxServices: 1, MaxBackends: 2})
	m.Connected(remote, announce(remote))
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.1.0.1", "10.1.0.2", "10.1.0.3"), far(remote, "a", "10.1.0.1"), far(remote, "b", "10.1.0.1")})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	if s := status(m, remote); s.Services != 1 || rejections(s) != "limit keys=2 total=2" {
		t.Errorf("%d services, %s", s.Services, rejections(s))
	}
}

// TestPolicyPathIndependence: whatever the policies and own ranges were on the
// way, the final ones leave what they leave of the same stores from the start.
func TestPolicyPathIndependence(t *testing.T) {
	codec := &schema.SliceCodec{}
	rapid.Check(t, func(t *rapid.T) {
		stores := map[string][]mesh.Change{}
		for _, c := range []string{remote, "north"} {
			for i, name := range []string{"cart", "web"} {
				addrs := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"10.1.0.1", "10.1.0.2", "10.3.0.1", "10.7.0.1", "10.8.0.1"}), 0, 4, rapid.ID).Draw(t, "addresses")
				if c == "north" {
					s := sliceOf(c, fmt.Sprintf("cart-%d", i), addrs...)
					stores[c] = append(stores[c], change(codec, s))
				} else {
					stores[c] = append(stores[c], far(c, name, addrs...))
				}
			}
		}
		w := &policyWorld{m: mesh.New(config()), stores: stores, policies: map[string]mesh.Policy{}}
		w.join()
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "own") {
				w.own = prefixes(rapid.SliceOfDistinct(rapid.SampledFrom([]string{"10.1.0.2/32", "10.7.0.0/16", "10.0.0.0/14"}), rapid.ID[string]).Draw(t, "ranges")...)
				w.listAgain(w.m.SetOwn(w.own))
				continue
			}
			c := rapid.SampledFrom([]string{remote, "north"}).Draw(t, "cluster")
			w.policies[c] = mesh.Policy{Allow: prefixes(rapid.SliceOfDistinct(rapid.SampledFrom([]string{"10.1.0.0/24", "10.3.0.0/16", "10.7.0.0/16", "10.8.0.0/15"}), rapid.ID[string]).Draw(t, "allow")...),
				Namespaces: rapid.SampledFrom([][]string{nil, {"shop"}, {"bank"}}).Draw(t, "namespaces"), ID: rapid.SampledFrom([]uint32{0, 0, ids[c], 77}).Draw(t, "id")}
			w.listAgain(w.m.SetPolicy(c, w.policies[c]))
		}
		direct := &policyWorld{m: mesh.New(config()), stores: stores, policies: w.policies, own: w.own}
		direct.join()
		if got, want := w.content(), direct.content(); got != want {
			t.Fatalf("got:\n%s\nwant:\n%s", got, want)
		}
		if err := w.m.Audit(); err != nil {
			t.Fatal(err)
		}
	})
}

// policyWorld is a mesh with the stores of its remote clusters.
type policyWorld struct {
	m        *mesh.Mesh
	stores   map[string][]mesh.Change
	policies map[string]mesh.Policy
	own      []netip.Prefix
}

func (w *policyWorld) join() {
	w.m.SetOwn(w.own)
	w.m.Connected(own, announce(own))
	w.m.Apply(own, []mesh.Change{local("cart"), local("web")})
	w.m.Synced(own)
	for c := range w.stores {
		w.m.AddCluster(c, w.policies[c])
	}
	for c := range w.stores {
		w.list(c)
	}
}

func (w *policyWorld) list(c string) {
	said := announce(c)
	if c == "north" {
		said = announceSlices(c)
	}
	if _, err := w.m.Connected(c, said); err == nil {
		w.m.Apply(c, w.stores[c])
		w.m.Synced(c)
	}
}

func (w *policyWorld) listAgain(names []string) {
	for _, c := range names {
		w.m.Relist(c)
		w.list(c)
	}
}

func (w *policyWorld) content() string {
	var b strings.Builder
	for _, n := range w.m.Services() {
		fmt.Fprintln(&b, n, backends(w.m, n))
	}
	return b.String()
}
