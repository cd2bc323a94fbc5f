package e2e

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// checkReach: requests to the own cluster IP reach the backends of both
// clusters in even shares over every protocol and family, and clients see the
// cluster IP as their peer.
func checkReach(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 2)
	var all []*workload
	for _, c := range w.clusters {
		all = append(all, pods[c]...)
	}
	for _, n := range w.nodes() {
		for _, l := range loads(ips[n.cluster]) {
			requireShares(t, n, l, all)
		}
	}
	w.requireCommandsAgree(t)
}

// rebelBase makes the global service rebel-base in both clusters with n pods
// each for the duration of the check, and returns addresses and pods.
func (w *world) rebelBase(t *testing.T, n int) (map[*cluster][]netip.Addr, map[*cluster][]*workload) {
	t.Helper()
	ips, pods := w.makeGlobal(t, "rebel-base", n)
	t.Cleanup(func() { w.undo(t, "rebel-base", pods) })
	return ips, pods
}

// makeGlobal makes a global service in both clusters with n pods each and
// waits for the maps.
func (w *world) makeGlobal(t *testing.T, name string, n int) (map[*cluster][]netip.Addr, map[*cluster][]*workload) {
	t.Helper()
	ips, pods := map[*cluster][]netip.Addr{}, map[*cluster][]*workload{}
	var reached []condition
	for _, c := range w.clusters {
		ips[c] = c.service(t, name, global())
		pods[c] = c.deploy(t, name, n)
		reached = append(reached, endpoints(c, name, n))
	}
	w.settle(t, both(reached...))
	return ips, pods
}

// undo removes a service and its pods from all clusters.
func (w *world) undo(t *testing.T, name string, pods map[*cluster][]*workload) {
	t.Helper()
	for _, c := range w.clusters {
		must(t, c.kube.DeleteService(live(t), namespace, name))
		withdraw(t, pods[c])
		stop(t, pods[c])
	}
}

// checkUntouched: a service that is not global works exactly as before, by
// means of what serves it: here a translation by netfilter in the node.
func checkUntouched(t *testing.T, w *world) {
	for _, c := range w.clusters {
		ips := c.service(t, "plain", nil)
		pods := c.deploy(t, "plain", 1)
		w.settle(t, endpoints(c, "plain", 1))
		n := c.nodes[0]
		for _, ip := range ips {
			requireNothing(t, n, pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(ip, 80)})
		}
		w.translate(t, n, ips, pods[0])
		for _, l := range loads(ips) {
			requireShares(t, n, l, pods)
		}
		withdraw(t, pods)
		stop(t, pods)
		must(t, c.kube.DeleteService(live(t), namespace, "plain"))
	}
}

// translate makes netfilter send a service's addresses to a pod, as kube-proxy
// does.
func (w *world) translate(t *testing.T, n *node, ips []netip.Addr, to *workload) {
	t.Helper()
	rules := `
add table ip plain
add chain ip plain out { type nat hook output priority -100; }
add rule ip plain out ip daddr V4 tcp dport 80 dnat to P4:8080
add rule ip plain out ip daddr V4 udp dport 53 dnat to P4:8080
add table ip6 plain
add chain ip6 plain out { type nat hook output priority -100; }
add rule ip6 plain out ip6 daddr V6 tcp dport 80 dnat to [P6]:8080
add rule ip6 plain out ip6 daddr V6 udp dport 53 dnat to [P6]:8080
`
	rules = strings.NewReplacer("V4", ips[0].String(), "V6", ips[1].String(),
		"P4", to.Addrs[0].String(), "P6", to.Addrs[1].String()).Replace(rules)
	for _, ip := range ips {
		undo, err := n.lab.RouteOut(ip)
		must(t, err)
		t.Cleanup(func() { must(t, undo()) })
	}
	w.nft(t, n, rules)
	t.Cleanup(func() { w.nft(t, n, "delete table ip plain\ndelete table ip6 plain\n") })
}

func (w *world) nft(t *testing.T, n *node, rules string) {
	t.Helper()
	path, err := exec.LookPath("nft")
	must(t, err)
	p, err := w.lab.Start(lab.Spec{Name: "nft-" + n.name, Path: path, Args: []string{"-f", "-"}, Node: n.lab, Stdin: strings.NewReader(rules)})
	must(t, err)
	code, err := p.Exit(startLimit)
	must(t, err)
	if code != 0 {
		t.Fatalf("nft: %s", logTail(p))
	}
}
