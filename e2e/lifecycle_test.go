package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/clustermesh/clustermesh/e2e/internal/kernel"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

// repairLimit is how long something that somebody spoilt may stay so.
const repairLimit = 30 * time.Second

// checkRepair: an agent, which holds no capability, pins again what was removed
// and attaches again what was detached, counts that, and goes on with its work.
func checkRepair(t *testing.T, w *world) {
	ips, _ := w.rebelBase(t, 2)
	n := w.clusters[0].nodes[0]
	t.Run("pins", func(t *testing.T) {
		tr := w.begin(t, ips) // pins are no part of the way of a connection
		before, err := kernel.Pinned(n.agent.pins)
		must(t, err)
		repairs := n.agent.repairs(t)
		must(t, os.RemoveAll(n.agent.pins))
		n.agent.awaitRepairs(t, repairs, len(before))
		after, err := kernel.Pinned(n.agent.pins)
		must(t, err)
		if fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("pinned are %v, were %v", after, before)
		}
		tr.end(t)
	})
	t.Run("attachments", func(t *testing.T) {
		pins, err := filepath.Glob(filepath.Join(n.agent.pins, "link_*"))
		must(t, err)
		repairs := n.agent.repairs(t)
		for _, pin := range pins {
			l, err := link.LoadPinnedLink(pin, nil)
			must(t, err)
			must(t, errors.Join(l.Detach(), l.Close()))
		}
		n.agent.awaitRepairs(t, repairs, 2*len(pins))
		requireWorks(t, n, ips)
	})
	t.Run("restart", func(t *testing.T) {
		tr := w.begin(t, ips)
		requireStop(t, n.agent.Process)
		n.agent.restart(t)
		w.settle(t, now)
		tr.end(t)
	})
}

// repairs is the sum of an agent's counters of repairs.
func (a *agent) repairs(t *testing.T) (sum int) {
	t.Helper()
	text, err := fetch(a.http, "/metrics")
	must(t, err)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "clustermesh_agent_repairs_total{") {
			n, err := strconv.Atoi(strings.Fields(line)[1])
			must(t, err)
			sum += n
		}
	}
	return sum
}

// awaitRepairs waits until an agent has counted so many repairs more than before,
// and has none left to do.
func (a *agent) awaitRepairs(t *testing.T, before, want int) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) { // between two looks at the counters
		done := a.repairs(t) - before
		if done >= want && readMetric(t, a.http, "clustermesh_agent_faults") == 0 {
			t.Logf("%d repairs after %v", done, time.Since(begin))
			return
		}
		if time.Since(begin) > repairLimit {
			t.Fatalf("%d repairs after %v, want %d:\n%s", done, repairLimit, want, logTail(a.Process))
		}
	}
}

// checkBesideKubeProxy: on nodes with kube-proxy's nftables rules for the same
// services, global ones reach the backends of both clusters, because sockets are
// decided before packets; the others go where the rules send them.
func checkBesideKubeProxy(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 2)
	var everywhere []*workload
	for _, c := range w.clusters {
		everywhere = append(everywhere, pods[c]...)
	}
	for _, c := range w.clusters {
		plain := c.service(t, "plain", nil)
		own := c.deploy(t, "plain", 2)
		w.settle(t, endpoints(c, "plain", 2))
		for _, n := range c.nodes {
			w.kubeProxy(t, n, proxied{ips[c], pods[c]}, proxied{plain, own})
			for _, l := range loads(ips[c]) {
				requireShares(t, n, l, everywhere)
			}
			for _, l := range loads(plain) {
				requireShares(t, n, l, own)
			}
			n.requireProxySeen(t)
		}
		withdraw(t, own)
		stop(t, own)
		must(t, c.kube.DeleteService(live(t), namespace, "plain"))
	}
}

// proxied is a service with the ports of webPorts as kube-proxy knows it: its
// addresses and the pods of its own cluster.
type proxied struct {
	ips  []netip.Addr
	pods []*workload
}

// kubeProxy loads rules of the shape of kube-proxy's nftables mode for the
// duration of the test: a verdict map from address, protocol and port to a chain
// per service, which draws a chain per endpoint, and masquerading by a mark.
func (w *world) kubeProxy(t *testing.T, n *node, services ...proxied) {
	t.Helper()
	var rules strings.Builder
	for family, name := range []string{"ip", "ip6"} {
		rules.WriteString(proxyTable(family, name, services))
	}
	for _, s := range services {
		for _, ip := range s.ips {
			undo, err := n.lab.RouteOut(ip)
			must(t, err)
			t.Cleanup(func() { must(t, undo()) })
		}
	}
	w.nft(t, n, rules.String())
	t.Cleanup(func() { w.nft(t, n, "delete table ip kube-proxy\ndelete table ip6 kube-proxy\n") })
}

// podRanges are where pods of either cluster are; who is elsewhere needs the node's
// address on the way to a backend that may be on another node.
var podRanges = []string{"10.0.0.0/8", "fd00:1::/32, fd00:2::/32"}

func proxyTable(family int, name string, services []proxied) string {
	addr := []string{"ipv4_addr", "ipv6_addr"}[family]
	var chains, elements strings.Builder
	for i, s := range services {
		for _, p := range []struct {
			proto string
			port  int
		}{{"tcp", 80}, {"udp", 53}} {
			chain := fmt.Sprintf("service-%d-%s", i, p.proto)
			var draw []string
			for k, pod := range s.pods {
				endpoint := fmt.Sprintf("endpoint-%d-%s-%d", i, p.proto, k)
				to := netip.AddrPortFrom(pod.Addrs[family], targetPort)
				fmt.Fprintf(&chains, "chain %s { %s saddr %s jump mark-for-masquerade\nmeta l4proto %s dnat to %s\n}\n", endpoint, name, to.Addr(), p.proto, to)
				draw = append(draw, fmt.Sprintf("%d : goto %s", k, endpoint))
			}
			fmt.Fprintf(&chains, "chain %s { %s saddr != { %s } jump mark-for-masquerade\nnumgen random mod %d vmap { %s }\n}\n",
				chain, name, podRanges[family], len(draw), strings.Join(draw, ", "))
			fmt.Fprintf(&elements, "%s . %s . %d : goto %s,\n", s.ips[family], p.proto, p.port, chain)
		}
	}
	return fmt.Sprintf(`table %[1]s kube-proxy {
chain mark-for-masquerade { meta mark set meta mark or 0x4000
}
%[2]s
map service-ips { type %[3]s . inet_proto . inet_service : verdict
elements = { %[4]s }
}
chain services { %[1]s daddr . meta l4proto . th dport vmap @service-ips
}
chain nat-output { type nat hook output priority -100
jump services
}
chain nat-prerouting { type nat hook prerouting priority -100
jump services
}
chain nat-postrouting { type nat hook postrouting priority 100
meta mark and 0x4000 == 0 return
meta mark set meta mark xor 0x4000
masquerade fully-random
}
}
`, name, chains.String(), addr, elements.String())
}

// requireProxySeen runs the check command on the node, which must pass and tell
// of kube-proxy.
func (n *node) requireProxySeen(t *testing.T) {
	t.Helper()
	var out bytes.Buffer
	p, err := n.agent.lab.Start(lab.Spec{
		Name: "check-" + n.name, Path: binary("clustermesh-agent"), Node: n.lab, Stdout: &out,
		Args: []string{"check", "-o", "json", "--bpffs", n.agent.bpffs, "--cgroup", n.lab.Cgroup},
	})
	must(t, err)
	code, err := p.Exit(startLimit)
	must(t, err)
	var said struct {
		OK       bool
		Findings []struct{ Check, State, Detail string }
	}
	if err := json.Unmarshal(out.Bytes(), &said); err != nil || code != 0 || !said.OK {
		t.Fatalf("check on %s ends with exit code %d, %v:\n%s", n.name, code, err, &out)
	}
	for _, f := range said.Findings {
		if f.Check == "kube-proxy" && f.State == "ok" && strings.HasPrefix(f.Detail, "nftables (table kube-proxy)") {
			return
		}
	}
	t.Errorf("check on %s does not see kube-proxy:\n%s", n.name, &out)
}
