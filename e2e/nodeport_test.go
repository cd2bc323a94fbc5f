package e2e

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// ported is a global service with node ports in both clusters, and who can reach
// it by those of one node.
type ported struct {
	w    *world
	n    *node
	tcp  uint16
	udp  uint16
	all  []*workload
	here []*workload // on the node
	// A pod of the node in a network namespace of its own, and a machine that is
	// none of the nodes.
	pod, outside *node
}

const portedName = "ported"

// checkNodePorts: the node ports of a global service lead to the backends of all
// clusters: for processes on the node's network, for pods, and for packets that
// come to the node's device. Under externalTrafficPolicy Local the latter stay on
// the node and the others do not. Addresses of the node come and go.
func checkNodePorts(t *testing.T, w *world) {
	p := newPorted(t, w)
	w.balancePackets(t, p.n, "node-ports")
	t.Run("everywhere", func(t *testing.T) {
		p.reach(t, p.n, p.all, p.addresses()...)
		p.reach(t, p.pod, p.all, p.addresses()...)
		p.reach(t, p.outside, p.all, p.addresses()...)
		w.requireCommandsAgree(t)
	})
	t.Run("loopback", p.loopback)
	t.Run("external_policy_local", p.stay)
	t.Run("addresses", p.readdress)
}

func newPorted(t *testing.T, w *world) *ported {
	t.Helper()
	p := &ported{w: w, n: w.clusters[1].nodes[0]}
	var reached []condition
	var pods [2][]*workload
	for i, c := range w.clusters {
		made, err := c.kube.AddService(live(t), kube.Service{
			Namespace: namespace, Name: portedName, Annotations: global(), Ports: webPorts(80, 53), NodePorts: true,
		})
		must(t, err)
		if c == p.n.cluster {
			p.tcp, p.udp = uint16(made.Spec.Ports[0].NodePort), uint16(made.Spec.Ports[1].NodePort)
		}
		pods[i] = c.deploy(t, portedName, 2)
		p.all = append(p.all, pods[i]...)
		reached = append(reached, endpoints(c, portedName, 2))
	}
	t.Cleanup(func() {
		w.undo(t, portedName, map[*cluster][]*workload{w.clusters[0]: pods[0], w.clusters[1]: pods[1]})
	})
	for _, one := range p.all {
		if one.node == p.n {
			p.here = append(p.here, one)
		}
	}
	p.pod, p.outside = w.machine(t, "pod", 98, p.n), w.machine(t, "outside2", 97, nil)
	w.settle(t, both(reached...))
	return p
}

func (p *ported) addresses() []netip.Addr {
	return []netip.Addr{p.n.lab.Addr(true), p.n.lab.Addr(false)}
}

// loads are requests of every kind to the node ports at some addresses.
func (p *ported) loads(at []netip.Addr) []pod.Load {
	var all []pod.Load
	for _, a := range at {
		all = append(all,
			pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(a, p.tcp)},
			pod.Load{Network: pod.UDP, Target: netip.AddrPortFrom(a, p.udp)},
			pod.Load{Network: pod.UDPConnected, Target: netip.AddrPortFrom(a, p.udp)})
	}
	return all
}

func (p *ported) reach(t *testing.T, from *node, want []*workload, at ...netip.Addr) {
	t.Helper()
	for _, l := range p.loads(at) {
		requireShares(t, from, l, want)
	}
}

// loopback addresses are the node's for processes on its network, and a pod's own
// for a pod.
func (p *ported) loopback(t *testing.T) {
	for _, a := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		p.reach(t, p.n, p.all, a)
		requireNothing(t, p.pod, pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(a, p.tcp)})
	}
}

// external sets the policy for clients outside and waits for the maps.
func (p *ported) external(t *testing.T, policy corev1.ServiceExternalTrafficPolicy) {
	t.Helper()
	_, err := p.n.cluster.kube.Client.CoreV1().Services(namespace).Patch(live(t), portedName, types.MergePatchType,
		[]byte(`{"spec":{"externalTrafficPolicy":"`+string(policy)+`"}}`), metav1.PatchOptions{})
	must(t, err)
	p.w.settle(t, func(all []kube.Objects) bool {
		for _, s := range objectsOf(all, p.n.cluster).Services {
			if s.Name == portedName {
				return s.Spec.ExternalTrafficPolicy == policy
			}
		}
		return false
	})
}

// reachAnew makes connections of TCP. Per packet, a datagram from an address and
// port that were seen before goes on to the backend that they had.
func (p *ported) reachAnew(t *testing.T, from *node, want []*workload, at ...netip.Addr) {
	t.Helper()
	for _, a := range at {
		requireShares(t, from, p.loads([]netip.Addr{a})[0], want)
	}
}

func (p *ported) stay(t *testing.T) {
	p.external(t, corev1.ServiceExternalTrafficPolicyLocal)
	p.reachAnew(t, p.outside, p.here, p.addresses()...)
	p.reach(t, p.n, p.all, p.addresses()...)
	p.reach(t, p.pod, p.all, p.addresses()...)
	p.w.requireCommandsAgree(t)
	ready(t, p.here, false)
	p.w.settle(t, endpoints(p.n.cluster, portedName, 1))
	requireNothing(t, p.outside, p.loads(p.addresses())[0])
	ready(t, p.here, true)
	p.w.settle(t, endpoints(p.n.cluster, portedName, 2))
	p.external(t, corev1.ServiceExternalTrafficPolicyCluster)
	p.reachAnew(t, p.outside, p.all, p.addresses()...)
}

// readdress gives the node one more address for a while.
func (p *ported) readdress(t *testing.T) {
	more := netip.MustParseAddr("192.168.50.96")
	undo, err := p.n.lab.AddAddr(netip.PrefixFrom(more, 24))
	must(t, err)
	set := func(addrs ...netip.Addr) {
		must(t, p.n.cluster.kube.SetNodeAddresses(live(t), p.n.name, addrs))
		p.w.settle(t, func(all []kube.Objects) bool {
			for _, n := range objectsOf(all, p.n.cluster).Nodes {
				if n.Name == p.n.name {
					return len(n.Status.Addresses) == len(addrs)
				}
			}
			return false
		})
	}
	set(append(p.addresses(), more)...)
	p.reach(t, p.n, p.all, more)
	p.reach(t, p.outside, p.all, more)
	set(p.addresses()...)
	must(t, undo())
	requireNothing(t, p.n, pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(more, p.tcp)})
	p.reach(t, p.n, p.all, p.addresses()[0])
}
