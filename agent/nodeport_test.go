package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// ported makes a record of a service of the node port 30080, whose clients
// outside have to stay on the node that they come to, and whose first backend is
// on this one.
func ported(s *schema.LocalService) {
	s.NodePorts = []schema.LocalNodePort{{Port: 30080, Protocol: schema.TCP}}
	s.ExternalTrafficPolicy = schema.TrafficPolicyLocal
	s.Backends[0].Node = "n"
}

// portedAt is what the maps hold of it at some addresses of this node.
func portedAt(addresses ...string) string {
	const both = "ns/s1 [10.1.0.1:80 10.2.0.1:80]"
	lines := []string{frontend("10.1.0.1:80", "10.2.0.1:80"), "127.0.0.1:30080 " + both}
	for _, a := range addresses {
		lines = append(lines, a+":30080 "+both, a+":30080 ns/s1 [10.1.0.1:80]")
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestNodePortsFollowTheOwnNode: its record in the own cluster says at which
// addresses they are; over a restart they stay where they were.
func TestNodePortsFollowTheOwnNode(t *testing.T) {
	s := newSimulation(t)
	home := s.clusters["home"]
	home.adjust = ported
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(portedAt())
	s.node("n", "10.9.0.0/24", "172.18.0.3")
	s.node("other", "10.9.1.0/24", "172.18.0.9")
	home.write(schema.CanaryKey(schema.KindNode, "home", false), []byte("now"))
	s.await(portedAt("172.18.0.3"))
	s.node("n", "10.9.0.0/24", "172.18.0.3", "172.18.0.4", "fe80::1")
	s.await(portedAt("172.18.0.3", "172.18.0.4"))
	s.showsNodePorts()
	s.kernel.keepFull.Store(true)
	s.stop()
	s.start()
	s.awaitState("home", "synced", "")
	s.await(portedAt("172.18.0.3", "172.18.0.4"))
	s.node("n", "10.9.0.0/24", "172.18.0.3", "172.18.0.4", "172.18.0.5")
	s.await(portedAt("172.18.0.3", "172.18.0.4", "172.18.0.5")) // so the nodes were heard again
	s.kernel.keepFull.Store(false)
	if len(s.kernel.emptied) > 0 {
		t.Error(s.kernel.emptied)
	}
	s.node("n", "10.9.0.0/24", "172.18.0.4")
	s.await(portedAt("172.18.0.4"))
	s.node("n", "")
	s.await(portedAt())
	home.adjust = nil // as an apiserver that knows no node ports says it
	home.publish("s1")
	s.await(s.want(all...))
}

// showsNodePorts checks what the commands are told.
func (s *simulation) showsNodePorts() {
	s.t.Helper()
	count := func(list []*api.Frontend) map[string]int {
		out := map[string]int{}
		for _, f := range list {
			out[f.GetKind()+" for "+f.GetClients()]++
		}
		return out
	}
	want := fmt.Sprint(map[string]int{"cluster-ip for any": 1, "node-port for any": 2, "node-port for outside": 2, "node-port for host": 1})
	if got := fmt.Sprint(count(s.services().GetServices()[0].GetFrontends())); got != want {
		s.t.Errorf("services shows %s, want %s", got, want)
	}
	err := s.agent.core.do(s.t.Context(), func(c *core) {
		r, err := c.mapEntries()
		if err != nil {
			s.t.Error(err)
		}
		var list []*api.Frontend
		for _, e := range r.GetEntries() {
			list = append(list, e.GetFrontend())
		}
		if got := fmt.Sprint(count(list)); got != want {
			s.t.Errorf("maps shows %s, want %s", got, want)
		}
	})
	if err != nil {
		s.t.Error(err)
	}
}

// TestExplainMissesABackendForClientsOutside where the policy wants one here.
func TestExplainMissesABackendForClientsOutside(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(1, func(s *schema.LocalService) {
			ported(s)
			s.Backends[0].Node = "elsewhere"
			s.ExternalFrontends = []schema.LocalFrontend{{Address: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: schema.TCP}}
		})
		var r *api.ExplainResponse
		l.do(func(c *core) { r, _ = c.explain(&api.ExplainRequest{Namespace: "ns", Name: "web"}) })
		if got := strings.Join(r.GetServices()[0].GetFindings(), "\n"); !strings.Contains(got, "externalTrafficPolicy is Local and no usable backend is on node n") {
			t.Errorf("findings:\n%s", got)
		}
		l.own(1, func(s *schema.LocalService) { s.Restricted = true })
		l.do(func(c *core) { r, _ = c.explain(&api.ExplainRequest{Namespace: "ns", Name: "web"}) })
		if got := strings.Join(r.GetServices()[0].GetFindings(), "\n"); !strings.Contains(got, "left to kube-proxy") {
			t.Errorf("findings:\n%s", got)
		}
	})
}

func TestNodePortAddresses(t *testing.T) {
	node := &schema.Node{IPAddresses: []schema.NodeAddress{
		{Type: "InternalIP", IP: "172.18.0.3"}, {Type: "InternalIP", IP: "fd00::3"}, {Type: "ExternalIP", IP: "192.0.2.3"},
		{Type: "CiliumInternalIP", IP: "10.0.0.3"}, {Type: "InternalIP", IP: "127.0.0.1"}, {Type: "InternalIP", IP: "fe80::3"}, {Type: "InternalIP", IP: ""},
	}}
	for ranges, want := range map[string]string{
		"":                       "[172.18.0.3 fd00::3]",
		"0.0.0.0/0":              "[172.18.0.3 192.0.2.3 10.0.0.3]",
		"192.0.2.0/24,fd00::/16": "[fd00::3 192.0.2.3]",
		"198.51.100.1":           "[]",
	} {
		c := Config{}
		if ranges != "" {
			c.NodePortAddresses = strings.Split(ranges, ",")
		}
		if got := fmt.Sprint(c.nodePortAddresses(node)); got != want {
			t.Errorf("%q: %s, want %s", ranges, got, want)
		}
	}
}

// TestTheNodesNamespace: what --host-netns takes, and what Validate says of the
// rest.
func TestTheNodesNamespace(t *testing.T) {
	own, err := ownNetns()
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]uint64{"": 0, "initial": 0, "agent": own, "4096": 4096} {
		if got, err := (Config{HostNetns: value}).hostNetns(); err != nil || got != want {
			t.Errorf("%q: %d, error %v, want %d", value, got, err, want)
		}
	}
	for _, value := range []string{"0", "-1", "/proc/1/ns/net", "Agent"} {
		err := Config{HostNetns: value, NodePortAddresses: []string{"eth0"}, ProbeInterval: time.Second}.Validate()
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("--host-netns %q", value)) || !strings.Contains(err.Error(), `--node-port-addresses "eth0"`) {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// TestANodeWithoutAddressesIsKnown: that its record was heard counts, not what is
// in it; one that does not exist says that nothing is known.
func TestANodeWithoutAddressesIsKnown(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(1, func(s *schema.LocalService) { s.TrafficDistribution = "PreferClose" })
		key := schema.NodeKey("home", "n")
		bare := schema.Node{Cluster: "home", Name: "n", ClusterID: 1, Labels: map[string]string{zoneLabel: "a"}}
		zone := func(u kvstore.Update) (zone string) {
			l.do(func(c *core) {
				c.updateNodes(u)
				s, _ := c.mesh.Service(lb.ServiceName{Namespace: "ns", Name: "web"})
				zone = s.Zone
			})
			return zone
		}
		put := kvstore.Change{KV: kvstore.KV{Key: key, Value: bare.Encode()}}
		if got := zone(kvstore.Update{Changes: []kvstore.Change{put}, Synced: true}); got != "a" {
			t.Errorf("zone %q, want a", got)
		}
		if got := zone(kvstore.Update{Synced: true}); got != "a" {
			t.Errorf("zone %q after another list, want a", got)
		}
		put.Deleted = true
		if got := zone(kvstore.Update{Changes: []kvstore.Change{put}}); got != "" {
			t.Errorf("zone %q of a node that is gone", got)
		}
	})
}
