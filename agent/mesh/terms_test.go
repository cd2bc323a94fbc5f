package mesh_test

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// genTerms makes a record ask for something beyond its affinity, and returns
// what that means.
func genTerms(t *rapid.T, s *schema.LocalService) (out lb.Service) {
	annotations := map[string][]string{
		"tiers":     {"", "local; west; *", "north, local; south", "local;;"},
		"weights":   {"", "local=3, west=1", "*=1, west=0", "local"},
		"staleness": {"", "demote:5m", "withdraw:30m", "demote:5m, withdraw:30m", "soon"},
		"spillover": {"", "min=2", "min=50%"},
		"unheard":   {"", "of"},
	}
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if value := rapid.SampledFrom(annotations[name]).Draw(t, name); value != "" {
			if s.Policy == nil {
				s.Policy = map[string]string{}
			}
			s.Policy[name] = value
		}
	}
	if rapid.Bool().Draw(t, "consistent") {
		s.Policy = map[string]string{"consistent": "true"}
	}
	out.Policy, _ = lb.ParsePolicy(s.Policy)
	s.SessionAffinitySeconds = rapid.Uint32Range(0, 1).Draw(t, "session") * 60
	if s.SessionAffinitySeconds > 0 && rapid.Bool().Draw(t, "by client") {
		s.SessionAffinity, out.SessionAffinity = schema.SessionAffinityClientIP, s.SessionAffinitySeconds
	}
	if rapid.IntRange(0, 3).Draw(t, "node only") == 0 {
		s.InternalTrafficPolicy, out.NodeOnly = schema.TrafficPolicyLocal, true
	}
	s.TrafficDistribution = rapid.SampledFrom([]string{"", "PreferClose", "PreferSameNode"}).Draw(t, "distribution")
	out.Distribution = lb.ParseDistribution(s.TrafficDistribution)
	return out
}

// lose says how long clusters have been out of contact.
func (m *machine) lose(t *rapid.T) {
	lost := map[string]uint32{}
	for _, c := range []string{remote, "north"} {
		if age := rapid.SampledFrom([]uint32{0, 299, 300, 1799, 1800, 9999}).Draw(t, "age"); age > 0 {
			lost[c] = age
		}
	}
	m.m.SetLost(lost)
	m.o.lost = maps.Clone(lost)
	clear(lost) // it is not kept
}

// move puts our node into another zone.
func (m *machine) move(t *rapid.T) {
	m.o.zone = rapid.SampledFrom([]string{"", "zone-a", "zone-b"}).Draw(t, "zone")
	m.m.SetZone(m.o.zone)
}

// steady leaves out the services of which the kernel does not hold all that
// decides.
func (m *machine) steady(tables []lb.FrontendTable) (out []lb.FrontendTable) {
	for _, t := range tables {
		if !m.governed[t.Service] {
			out = append(out, t)
		}
	}
	return out
}

// findGoverned lists the services for whose decisions more counts than what the
// kernel holds.
func (m *machine) findGoverned() {
	m.governed = map[lb.ServiceName]bool{}
	for n, s := range m.o.services() {
		p := s.Policy
		m.governed[n] = len(p.Tiers) > 0 || len(p.Weights) > 0 || !p.Spillover.IsZero() || p.Staleness != (lb.Staleness{}) ||
			s.NodeOnly || s.Distribution != lb.DistributionNone
	}
}

// checkAging: the next age that matters is the soonest of all services'.
func (m *machine) checkAging(t *rapid.T) {
	var all uint32
	for n, s := range m.o.services() {
		var one uint32
		for _, c := range []string{remote, "north"} {
			age, lost := m.o.lost[c]
			in := slices.ContainsFunc(m.m.Shares(n), func(s mesh.Share) bool { return s.Cluster == c })
			if next := s.Policy.Staleness.Next(age); lost && in && next > 0 && (one == 0 || next-age < one) {
				one = next - age
			}
		}
		if got := m.m.Aging(n); got != one {
			t.Fatalf("%s changes after %d s, want %d", n, got, one)
		}
		if one > 0 && (all == 0 || one < all) {
			all = one
		}
	}
	if got := m.m.Aging(); got != all {
		t.Fatalf("something changes after %d s, want %d", got, all)
	}
}

// governed is the own cluster's record of cart with annotations and two
// backends, one of them on our node.
func governed(policy map[string]string, adjust func(*schema.LocalService)) mesh.Change {
	s := schema.LocalService{Cluster: own, ClusterID: ownID, Namespace: "shop", Name: "cart", Shared: true, Policy: policy,
		Frontends: []schema.LocalFrontend{{Address: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: schema.TCP, PortName: "http"}}}
	for i, node := range []string{"n1", "n2"} {
		s.Backends = append(s.Backends, schema.LocalBackend{Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Port: 8080, Protocol: schema.TCP,
			PortNames: []string{"http"}, Ready: true, Serving: true, Node: node, Zone: "zone-" + node})
	}
	if adjust != nil {
		adjust(&s)
	}
	return mesh.Change{Key: keyOf(own, svc("cart")), Value: s.Encode()}
}

// used lists the selected backends of cart's only frontend.
func used(m *mesh.Mesh) string {
	s, _ := m.Service(svc("cart"))
	var out []string
	for _, c := range lb.Merge(s)[0].Backends {
		if c.Selected {
			out = append(out, c.Addr.Addr().String())
		}
	}
	return strings.Join(out, " ")
}

func wantUsed(t *testing.T, m *mesh.Mesh, want string) {
	t.Helper()
	if got := used(m); got != want {
		t.Errorf("used are %s, want %s", got, want)
	}
}

// TestEveryTermReachesTheDecision: one after the other, each changing what is
// used and marking the service alone as changed.
func TestEveryTermReachesTheDecision(t *testing.T) {
	m := joined(t, config(), remote, "north")
	west, north := "10.1.0.1", "10.3.0.1"
	for _, step := range []struct {
		policy map[string]string
		adjust func(*schema.LocalService)
		want   string
	}{
		{nil, nil, "10.0.0.1 10.0.0.2 " + west + " " + north},
		{map[string]string{"tiers": "north; *"}, nil, north},
		{map[string]string{"tiers": "north; *", "weights": "north=0, *=1"}, nil, "10.0.0.1 10.0.0.2 " + west},
		{nil, func(s *schema.LocalService) { s.InternalTrafficPolicy = schema.TrafficPolicyLocal }, "10.0.0.1"},
		{nil, func(s *schema.LocalService) { s.TrafficDistribution = "PreferSameNode" }, "10.0.0.1"},
		{nil, func(s *schema.LocalService) { s.TrafficDistribution = "PreferClose" }, "10.0.0.2"},
		{nil, nil, "10.0.0.1 10.0.0.2 " + west + " " + north},
	} {
		m.SetZone("zone-n2")
		m.Apply(own, []mesh.Change{governed(step.policy, step.adjust)})
		if dirty := m.Dirty(); !slices.Equal(dirty, []lb.ServiceName{svc("cart")}) {
			t.Errorf("%v: dirty %v", step.policy, dirty)
		}
		wantUsed(t, m, step.want)
		m.Apply(own, []mesh.Change{governed(step.policy, step.adjust)})
		if dirty := m.Dirty(); len(dirty) > 0 {
			t.Errorf("the same again makes %v dirty", dirty)
		}
	}
}

// TestZoneAndNodeAreOurs: a zone that becomes known concerns the services that
// ask for it.
func TestZoneAndNodeAreOurs(t *testing.T) {
	m := joined(t, config())
	m.Apply(own, []mesh.Change{governed(nil, func(s *schema.LocalService) { s.TrafficDistribution = "PreferSameZone" })})
	m.Dirty()
	wantUsed(t, m, "10.0.0.1 10.0.0.2")
	m.SetZone("zone-n1")
	if dirty := m.Dirty(); len(dirty) != 1 {
		t.Errorf("dirty %v", dirty)
	}
	wantUsed(t, m, "10.0.0.1")
	m.Apply(own, []mesh.Change{governed(nil, nil)})
	m.Dirty()
	m.SetZone("zone-n2")
	if dirty := m.Dirty(); len(dirty) > 0 {
		t.Errorf("dirty %v", dirty)
	}
}

// TestAgesOfLostContact: a lost cluster is demoted, then given up; each age
// marks the service once, and contact takes all back.
func TestAgesOfLostContact(t *testing.T) {
	m := joined(t, config(), remote, "north")
	m.Apply(own, []mesh.Change{governed(map[string]string{"tiers": "west; north; *", "staleness": "demote:5m, withdraw:30m"}, nil)})
	m.Dirty()
	for _, step := range []struct {
		age, next uint32
		dirty     int
		want      string
	}{
		{0, 300, 0, "10.1.0.1"}, {299, 1, 0, "10.1.0.1"}, {300, 1500, 1, "10.3.0.1"}, {301, 1499, 0, "10.3.0.1"},
		{1800, 0, 1, "10.3.0.1"}, {5000, 0, 0, "10.3.0.1"}, {0, 300, 1, "10.1.0.1"},
	} {
		m.SetLost(map[string]uint32{remote: step.age})
		if dirty := m.Dirty(); len(dirty) != step.dirty {
			t.Errorf("after %d s: dirty %v", step.age, dirty)
		}
		if next := m.Aging(); next != step.next {
			t.Errorf("after %d s the next change comes in %d s, want %d", step.age, next, step.next)
		}
		wantUsed(t, m, step.want)
	}
	m.SetLost(nil)
	if next := m.Aging(); next != 0 {
		t.Errorf("all in contact, but something changes in %d s", next)
	}
}

// TestRanksConcernWhoAsksForThem: services that want the nearest clusters first
// are named when one of theirs changes its rank, and follow it; the others and
// other clusters do not matter, and nothing is dirty by it.
func TestRanksConcernWhoAsksForThem(t *testing.T) {
	m := joined(t, config(), remote, "north")
	m.Apply(own, []mesh.Change{governed(map[string]string{"tiers": "nearest; local"}, nil)})
	m.Dirty()
	west, north := "10.1.0.1", "10.3.0.1"
	for _, step := range []struct {
		ranks              map[string]uint8
		changed, concerned bool
		want               string
	}{
		{nil, false, false, west + " " + north},
		{map[string]uint8{"elsewhere": 0}, true, false, west + " " + north},
		{map[string]uint8{"elsewhere": 0, remote: 1}, true, true, west},
		{map[string]uint8{"elsewhere": 0, remote: 1, "north": 0}, true, true, north},
		{map[string]uint8{"elsewhere": 0, remote: 1, "north": 0}, false, false, north},
		{map[string]uint8{remote: 0, "north": 0}, true, true, west + " " + north},
		{map[string]uint8{}, true, true, west + " " + north},
	} {
		concerned, changed := m.SetRanks(step.ranks)
		if changed != step.changed || slices.Contains(concerned, svc("cart")) != step.concerned || len(concerned) > 1 || m.Dirty() != nil {
			t.Errorf("%v: changed %v, concerned %v", step.ranks, changed, concerned)
		}
		wantUsed(t, m, step.want)
	}
	m.Apply(own, []mesh.Change{governed(map[string]string{"tiers": "*"}, nil)})
	m.Dirty()
	if concerned, _ := m.SetRanks(map[string]uint8{remote: 3}); len(concerned) > 0 {
		t.Error("a service that does not ask for it is decided on again")
	}
}

// TestNodesThatMayBeProbed: no cluster points probes at what is ours, at what has
// a meaning of its own, or into another cluster's range.
func TestNodesThatMayBeProbed(t *testing.T) {
	m := joined(t, config(), remote, "north")
	m.SetPolicy("north", mesh.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/16")}})
	m.SetOwn([]netip.Prefix{netip.MustParsePrefix("172.18.0.4/32")})
	for addr, want := range map[string]string{
		"172.16.0.1": "north west", "10.3.0.9": "north", "172.18.0.4": "", "127.0.0.1": "", "169.254.169.254": "", "fe80::1": "", "fd00::1": "north west",
	} {
		var got []string
		for _, c := range []string{own, "north", remote, "unknown"} {
			if m.AdmitsNode(c, netip.MustParseAddr(addr)) {
				got = append(got, c)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s may be named by %v, want %s", addr, got, want)
		}
	}
}

// TestLostContactNeverTakesTheLast is promise 9: whatever the policy, what is
// known of clusters that are all lost for ever is used as long as nothing else
// is there.
func TestLostContactNeverTakesTheLast(t *testing.T) {
	m := joined(t, config(), remote)
	m.Apply(own, []mesh.Change{governed(map[string]string{"staleness": "withdraw:1s"}, func(s *schema.LocalService) { s.Backends = nil })})
	m.SetLost(map[string]uint32{remote: 1 << 31})
	wantUsed(t, m, "10.1.0.1")
}

// TestWrongAnnotationsAreTold: what is wrong is reported and counts for nothing,
// the rest counts.
func TestWrongAnnotationsAreTold(t *testing.T) {
	m := joined(t, config(), remote)
	m.Apply(own, []mesh.Change{governed(map[string]string{"tiers": "west;;", "weights": "west=1, *=0", "nonsense": "x"}, nil)})
	wrong := m.Wrong(svc("cart"))
	if len(wrong) != 2 || wrong[0].Annotation != "clustermesh.io/nonsense" || wrong[1].Annotation != "clustermesh.io/tiers" || wrong[1].Remedy == "" {
		t.Errorf("wrong are %v", wrong)
	}
	wantUsed(t, m, "10.1.0.1")
	m.Apply(own, []mesh.Change{governed(nil, nil)})
	if wrong := m.Wrong(svc("cart")); len(wrong) > 0 {
		t.Errorf("wrong are %v", wrong)
	}
}

// TestRestartRemembersWhatTheKernelHolds: session affinity and consistent
// hashing hold on from the maps until the own cluster speaks, and no longer.
func TestRestartRemembersWhatTheKernelHolds(t *testing.T) {
	m := joined(t, config(), remote)
	sticky := func(s *schema.LocalService) {
		s.SessionAffinity, s.SessionAffinitySeconds = schema.SessionAffinityClientIP, 60
	}
	m.Apply(own, []mesh.Change{governed(map[string]string{"consistent": "true"}, sticky)})
	k := kernel{}
	k.follow(m)
	m = mesh.New(config())
	m.Restore(k.restored())
	if s, _ := m.Service(svc("cart")); s.SessionAffinity != 60 || !s.Policy.Consistent {
		t.Errorf("after the restart: %+v", s)
	}
	if _, err := m.Connected(own, announce(own)); err != nil {
		t.Fatal(err)
	}
	m.Apply(own, []mesh.Change{governed(nil, sticky)})
	if s, _ := m.Service(svc("cart")); s.SessionAffinity != 60 || s.Policy.Consistent {
		t.Errorf("after the own cluster spoke: %+v", s)
	}
	k = kernel{}
	m.Apply(own, []mesh.Change{governed(map[string]string{"tiers": "west"}, nil)})
	k.follow(m)
	again := mesh.New(config())
	restored := k.restored()
	restored[0].Policy = m.Annotations(svc("cart"))
	again.Restore(restored)
	wantUsed(t, again, "10.1.0.1")
	m.Apply(own, []mesh.Change{governed(nil, sticky)})
	m.Relist(own)
	if s, _ := m.Service(svc("cart")); s.SessionAffinity != 60 {
		t.Errorf("while the own cluster is listed again: %+v", s)
	}
}
