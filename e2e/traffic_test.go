package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// requests of one measurement of shares.
const requests = 200

// requireShares makes requests from a node and demands that every pod of want
// answers about its even share, nobody else answers, and the client sees the
// target as its peer. The bound on a share is five standard deviations wide.
func requireShares(t *testing.T, n *node, l pod.Load, want []*workload) {
	t.Helper()
	got, err := n.pods.Burst(l, requests)
	must(t, err)
	requireClean(t, n, l, got)
	expected := requests / len(want)
	for _, p := range want {
		if k := got.By[p.Name]; k < expected/2 || k > expected*2 {
			t.Errorf("from %s over %s to %s: %s answered %d of %d, want about %d", n.name, l.Network, l.Target, p.Name, k, requests, expected)
		}
	}
	if len(got.By) != len(want) {
		t.Errorf("from %s over %s to %s: answers by %v, want by %d pods", n.name, l.Network, l.Target, got.By, len(want))
	}
}

// requireClean demands that no request failed and no client saw another peer.
func requireClean(t *testing.T, n *node, l pod.Load, got pod.Counts) {
	t.Helper()
	if got.Failed() > 0 || len(got.WrongPeer) > 0 {
		t.Errorf("from %s over %s to %s: %d of %d failed: %v; wrong peers: %v", n.name, l.Network, l.Target, got.Failed(), got.Requests, got.Failures, got.WrongPeer)
	}
}

// requireWorks makes a few requests of every kind from a node to its own
// cluster's addresses.
func requireWorks(t *testing.T, n *node, ips map[*cluster][]netip.Addr) {
	t.Helper()
	for _, l := range loads(ips[n.cluster]) {
		got, err := n.pods.Burst(l, 20)
		must(t, err)
		requireClean(t, n, l, got)
	}
}

// loads are all kinds of requests to a service with the ports of webPorts.
func loads(ips []netip.Addr) []pod.Load {
	var all []pod.Load
	for _, ip := range ips {
		all = append(all,
			pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(ip, 80)},
			pod.Load{Network: pod.UDP, Target: netip.AddrPortFrom(ip, 53)},
			pod.Load{Network: pod.UDPConnected, Target: netip.AddrPortFrom(ip, 53)})
	}
	return all
}

// traffic is tight loops that run beside a check.
type traffic struct {
	flows []*pod.Flow
	nodes []*node
}

// begin starts a tight loop of every kind from the first node of each cluster
// and a TCP loop from the others, all to their own cluster's address.
func (w *world) begin(t *testing.T, ips map[*cluster][]netip.Addr) *traffic {
	t.Helper()
	tr := &traffic{}
	for _, n := range w.nodes() {
		kinds := loads(ips[n.cluster])
		if n != n.cluster.nodes[0] {
			kinds = kinds[:1]
		}
		for _, l := range kinds {
			f, err := n.pods.Begin(l)
			must(t, err)
			tr.flows, tr.nodes = append(tr.flows, f), append(tr.nodes, n)
		}
	}
	t.Cleanup(func() { tr.end(t) })
	return tr
}

// check demands that no loop saw a failure since the last check. It waits until
// every request that was under way when it began has ended: a loop makes one at
// a time, so two that ended later are enough.
func (tr *traffic) check(t *testing.T, step string) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for i, f := range tr.flows {
		one := &traffic{flows: []*pod.Flow{f}, nodes: tr.nodes[i : i+1]}
		for made := 0; made < 2; {
			made += one.take(t, step, (*pod.Flow).Take)
			if time.Now().After(deadline) {
				t.Fatalf("%s: tight loop from %s over %s stands still", step, tr.nodes[i].name, f.Load.Network)
			}
		}
	}
}

// enough is how many requests the tight loops must have made after a fault
// before it counts as survived.
const enough = 2000

// survive demands that the tight loops go on without a failure for enough
// requests.
func (tr *traffic) survive(t *testing.T, step string) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for made := 0; made < enough; {
		if time.Now().After(deadline) {
			t.Fatalf("%s: only %d requests within %v", step, made, giveUp)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at the counters
		made += tr.take(t, step, (*pod.Flow).Take)
	}
}

// end stops the loops and checks for the last time.
func (tr *traffic) end(t *testing.T) {
	t.Helper()
	tr.take(t, "end", (*pod.Flow).End)
	tr.flows, tr.nodes = nil, nil
}

// take collects what the loops counted and returns how many requests that
// were. Failures are the test's.
func (tr *traffic) take(t *testing.T, step string, from func(*pod.Flow) (pod.Counts, error)) (made int) {
	t.Helper()
	for i, f := range tr.flows {
		got, err := from(f)
		must(t, err)
		made += got.Requests
		if got.Failed() > 0 || len(got.WrongPeer) > 0 {
			t.Errorf("%s: tight loop from %s over %s to %s: %d of %d failed: %v; wrong peers: %v",
				step, tr.nodes[i].name, f.Load.Network, f.Load.Target, got.Failed(), got.Requests, got.Failures, got.WrongPeer)
		}
	}
	return made
}
