package mesh_test

import (
	"cmp"
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

// genOutside gives a record ways by which clients outside come in.
func genOutside(t *rapid.T, s *schema.LocalService, e *entry) {
	e.ports = rapid.SliceOfNDistinct(rapid.Uint16Range(30080, 30082), 0, 2, rapid.ID).Draw(t, "node ports")
	for _, p := range e.ports {
		s.NodePorts = append(s.NodePorts, schema.LocalNodePort{Port: p, Protocol: schema.TCP, PortName: "a"})
	}
	e.onNode = rapid.Bool().Draw(t, "on node")
	external := rapid.Bool().Draw(t, "external")
	f := schema.LocalFrontend{Address: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: schema.TCP, PortName: "b", External: !e.onNode}
	switch {
	case external && e.onNode:
		s.ExternalFrontends = append(s.ExternalFrontends, f)
	case external:
		s.Frontends = append(s.Frontends, f)
	}
	if e.onNode {
		s.ExternalTrafficPolicy = schema.TrafficPolicyLocal
	}
	if external {
		e.frontends = append(e.frontends, e.both(lb.Frontend{Addr: netip.AddrPortFrom(f.Address, 80), Protocol: lb.TCP, PortName: "b", Kind: lb.KindExternal})...)
	}
	slices.SortFunc(s.Frontends, func(a, b schema.LocalFrontend) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	})
}

// both is a frontend, and what takes its place for clients outside.
func (e *entry) both(f lb.Frontend) []lb.Frontend {
	out := []lb.Frontend{f}
	if e.onNode {
		f.Scope = lb.ScopeOutside
		out = append(out, f)
	}
	return out
}

// expanded is what a record's addresses and node ports come to on our node.
func (o *oracle) expanded(e entry) []lb.Frontend {
	out := slices.Clone(e.frontends)
	if !slices.ContainsFunc(out, func(f lb.Frontend) bool { return f.Kind == lb.KindClusterIP }) {
		return out
	}
	for _, p := range e.ports {
		f := lb.Frontend{Protocol: lb.TCP, PortName: "a", Kind: lb.KindNodePort}
		for _, a := range o.node {
			if f.Addr = netip.AddrPortFrom(a, p); a.Is4() { // all cluster IPs are
				out = append(out, e.both(f)...)
			}
		}
		f.Addr, f.Scope = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p), lb.ScopeHost
		out = append(out, f)
	}
	return out
}

// recall takes a restored frontend for one at an address of our node.
func (o *oracle) recall(f lb.Frontend) {
	if f.Kind == lb.KindNodePort && f.Scope == lb.ScopeAny && !slices.Contains(o.node, f.Addr.Addr()) {
		o.node = append(o.node, f.Addr.Addr())
	}
}

// readdress gives our node other addresses.
func (m *machine) readdress(t *rapid.T) {
	m.o.node = nil
	for _, text := range []string{"172.18.0.1", "172.18.0.2", "fd00::1"} {
		if rapid.Bool().Draw(t, text) {
			m.o.node = append(m.o.node, netip.MustParseAddr(text))
		}
	}
	m.m.SetNodeAddresses(rapid.Permutation(m.o.node).Draw(t, "order"))
}

// frontendKey is what makes a frontend one, claimKey what no two services have.
func frontendKey(f lb.Frontend) lb.Frontend {
	return lb.Frontend{Addr: f.Addr, Protocol: f.Protocol, Scope: f.Scope}
}

func claimKey(f lb.Frontend) lb.Frontend {
	if f.Scope == lb.ScopeOutside {
		f.Scope = lb.ScopeAny
	}
	return frontendKey(f)
}

func addresses(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// shown are the frontends of cart, without what all of them have.
func shown(m *mesh.Mesh) string {
	s, _ := m.Service(svc("cart"))
	var out []string
	for _, table := range lb.Merge(s) {
		f := table.Frontend
		line := fmt.Sprintf("%s/%s", f.Addr, f.Protocol)
		if f.Scope != lb.ScopeAny {
			line += "@" + f.Scope.String()
		}
		n := 0
		for _, c := range table.Backends {
			if c.Selected {
				n++
			}
		}
		out = append(out, fmt.Sprintf("%s=%d", line, n))
	}
	return strings.Join(out, " ")
}

// TestNodePortsFollowTheNodesAddresses: those of the families that the service
// has, and the loopback address for the node's own sockets. SCTP is left out.
func TestNodePortsFollowTheNodesAddresses(t *testing.T) {
	m := mesh.New(config())
	if _, err := m.Connected(own, announce(own)); err != nil {
		t.Fatal(err)
	}
	ported := func(s *schema.LocalService) {
		s.NodePorts = []schema.LocalNodePort{{Port: 30080, Protocol: schema.TCP, PortName: "http"}, {Port: 30090, Protocol: schema.SCTP}}
	}
	local := func(s *schema.LocalService) {
		ported(s)
		s.ExternalTrafficPolicy = schema.TrafficPolicyLocal
		s.ExternalFrontends = []schema.LocalFrontend{{Address: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: schema.TCP}}
	}
	inner := func(s *schema.LocalService) {
		ported(s)
		s.InternalTrafficPolicy = schema.TrafficPolicyLocal
	}
	const cluster, loopback = "10.96.0.1:80/TCP=2", " 127.0.0.1:30080/TCP@host=2"
	steps := []struct {
		name   string
		adjust func(*schema.LocalService)
		node   []netip.Addr
		want   string
	}{
		{"nothing known of the node", ported, nil, cluster + loopback},
		{"two addresses", ported, addresses("172.18.0.2", "fd00::1", "::ffff:172.18.0.1"), cluster + loopback + " 172.18.0.1:30080/TCP=2 172.18.0.2:30080/TCP=2"},
		{"one goes", ported, addresses("172.18.0.2"), cluster + loopback + " 172.18.0.2:30080/TCP=2"},
		{"external policy Local", local, addresses("172.18.0.2"), cluster + loopback + " 172.18.0.2:30080/TCP=2 172.18.0.2:30080/TCP@outside=1 192.0.2.1:80/TCP=2 192.0.2.1:80/TCP@outside=1"},
		{"internal policy Local", inner, addresses("172.18.0.2"), "10.96.0.1:80/TCP=1" + loopback + " 172.18.0.2:30080/TCP=2"},
		{"none", nil, addresses("172.18.0.2"), cluster},
		{"the node is not known any more", ported, nil, cluster + loopback},
	}
	for _, s := range steps {
		m.SetNodeAddresses(s.node)
		m.Apply(own, []mesh.Change{governed(nil, s.adjust)})
		m.Synced(own)
		if got := shown(m); got != s.want {
			t.Errorf("%s:\n got %s\nwant %s", s.name, got, s.want)
		}
		m.Dirty()
	}
	m.SetNodeAddresses(addresses("172.18.0.9"))
	if dirty := m.Dirty(); len(dirty) != 1 {
		t.Errorf("a new address makes %v dirty", dirty)
	}
	m.SetNodeAddresses(addresses("172.18.0.9"))
	if dirty := m.Dirty(); len(dirty) != 0 {
		t.Errorf("the same address makes %v dirty", dirty)
	}
}

// TestNodePortsSurviveARestart: until something is heard of the node its addresses
// are those that were served.
func TestNodePortsSurviveARestart(t *testing.T) {
	ported := governed(nil, func(s *schema.LocalService) {
		s.NodePorts = []schema.LocalNodePort{{Port: 30080, Protocol: schema.TCP, PortName: "http"}}
		s.ExternalTrafficPolicy = schema.TrafficPolicyLocal
	})
	first := mesh.New(config())
	life := func(m *mesh.Mesh) {
		if _, err := m.Connected(own, announce(own)); err != nil {
			t.Fatal(err)
		}
		m.Apply(own, []mesh.Change{ported})
		m.Synced(own)
	}
	life(first)
	first.SetNodeAddresses(addresses("172.18.0.2"))
	k := kernel{}
	k.follow(first)
	second := mesh.New(config())
	second.Restore(k.restored())
	before := shown(first)
	if after := shown(second); after != before {
		t.Errorf("restored %s, was %s", after, before)
	}
	life(second)
	if after := shown(second); after != before {
		t.Errorf("heard again %s, was %s", after, before)
	}
	second.SetNodeAddresses(addresses("172.18.0.3"))
	if after := shown(second); after != strings.ReplaceAll(before, "172.18.0.2", "172.18.0.3") {
		t.Errorf("after a new address %s, was %s", after, before)
	}
}
