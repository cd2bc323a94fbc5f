package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// checkPackets: a client that is on no node and knows a node as the way to its
// cluster's service addresses reaches the backends of both clusters through it,
// as long as the node's devices carry the per-packet programs. Beside them the node
// has kube-proxy's rules, which know the own cluster's backends of this service, and
// another service that is theirs alone.
func checkPackets(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 2)
	n := w.clusters[1].nodes[0] // its pins are not all the agent's from now on
	outside := w.machine(t, "outside", 99, nil)
	plain := n.cluster.service(t, "plain", nil)
	own := n.cluster.deploy(t, "plain", 2)
	w.settle(t, endpoints(n.cluster, "plain", 2))
	for _, ip := range append(slices.Clone(ips[n.cluster]), plain...) {
		must(t, outside.lab.RouteVia(ip, n.lab.Addr(ip.Is4())))
	}
	w.kubeProxy(t, n, proxied{ips[n.cluster], pods[n.cluster]}, proxied{plain, own})
	p := w.balancePackets(t, n, "devices")
	var everywhere []*workload
	for _, c := range w.clusters {
		everywhere = append(everywhere, pods[c]...)
	}
	for _, l := range loads(ips[n.cluster]) {
		requireShares(t, outside, l, everywhere)
	}
	for _, l := range loads(plain) {
		requireShares(t, outside, l, own)
	}
	requireStop(t, p)
	for _, l := range loads(ips[n.cluster]) { // what is attached stays so
		requireShares(t, outside, l, everywhere)
	}
	withdraw(t, own)
	stop(t, own)
	must(t, n.cluster.kube.DeleteService(live(t), namespace, "plain"))
}

// balancePackets attaches the per-packet programs to a node's device.
func (w *world) balancePackets(t *testing.T, n *node, name string) *lab.Process {
	t.Helper()
	must(t, n.lab.Forward())
	p, err := w.lab.Start(lab.Spec{
		Name: name + "-" + n.name, Path: binary("clustermesh-agent"), Node: n.lab,
		Args: []string{"devices", "--bpffs", n.agent.bpffs, "--device", "eth0=snat"},
	})
	must(t, err)
	t.Cleanup(p.Kill)
	awaitLog(t, p, "balancing packets of device")
	return p
}

// machine is one more machine beside the nodes, with a network namespace of its
// own. Its processes are in the cgroup of node of, as a pod's there, or in none of
// the nodes'.
func (w *world) machine(t *testing.T, name string, number int, of *node) *node {
	t.Helper()
	made, err := w.lab.AddNode(name, prefixes(fmt.Sprintf("192.168.50.%d/24", number), fmt.Sprintf("fd00:50::%d/64", number)), nil)
	must(t, err)
	at := *made
	if of != nil {
		at.Cgroup = of.lab.Cgroup
	}
	host, err := pod.Start(w.lab, &at)
	must(t, err)
	t.Cleanup(host.Close)
	return &node{name: name, lab: made, pods: host}
}

// awaitLog waits until a process has logged a message.
func awaitLog(t *testing.T, p *lab.Process, message string) {
	t.Helper()
	for begin := time.Now(); !strings.Contains(readLog(p), message); time.Sleep(20 * time.Millisecond) {
		if !p.Alive() || time.Since(begin) > faultLimit {
			t.Fatalf("%s does not log %q:\n%s", p.Name, message, logTail(p))
		}
	}
}

// checkMonitor: the kernel's choices are shown as they are made, by name.
func checkMonitor(t *testing.T, w *world) {
	ips, _ := w.rebelBase(t, 1)
	n := w.clusters[0].nodes[0]
	tr := w.begin(t, ips)
	ctx, cancel := context.WithTimeout(t.Context(), giveUp)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary("clustermesh"), "monitor", namespace+"/rebel-base", "-o", "json", "--api-socket", n.agent.socket)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	seen := map[string]int{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var c struct {
			Service, Cluster string
			Refused          bool
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil || c.Service != namespace+"/rebel-base" || c.Refused {
			t.Errorf("line %q: error %v", lines.Text(), err)
		}
		if seen[c.Cluster]++; seen["east"] >= 10 && seen["west"] >= 10 {
			cancel() // and what is written until the end is read, too
		}
	}
	tr.end(t)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("clustermesh monitor, interrupted: %v", err)
	}
	if seen["east"] < 10 || seen["west"] < 10 || len(seen) != 2 {
		t.Errorf("choices by cluster: %v", seen)
	}
	t.Logf("choices by cluster: %v", seen)
}
