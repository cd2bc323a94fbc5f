package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// checkGround shows what the checks stand on before any part of the product
// runs: pods of all clusters answer directly from every node, the cluster IP
// leads nowhere. What works later is then the product's work.
func checkGround(t *testing.T, w *world) {
	for _, c := range w.clusters {
		ips := c.service(t, "ground", nil)
		pods := c.deploy(t, "ground", 1)
		for _, n := range w.nodes() {
			for i, address := range pods[0].Addrs {
				direct := netip.AddrPortFrom(address, targetPort)
				for _, network := range []string{pod.TCP, pod.UDP, pod.UDPConnected} {
					requireAnswers(t, n, pod.Load{Network: network, Target: direct}, pods[0].Name)
				}
				requireNothing(t, n, pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(ips[i], 80)})
			}
		}
		withdraw(t, pods)
		stop(t, pods)
		must(t, c.kube.DeleteService(live(t), namespace, "ground"))
	}
}

func requireAnswers(t *testing.T, n *node, l pod.Load, name string) {
	t.Helper()
	got, err := n.pods.Burst(l, 3)
	must(t, err)
	if got.By[name] != 3 || got.Failed() > 0 || len(got.WrongPeer) > 0 {
		t.Errorf("from %s over %s to %s: %+v, want 3 answers of %s", n.name, l.Network, l.Target, got, name)
	}
}

func requireNothing(t *testing.T, n *node, l pod.Load) {
	t.Helper()
	l.Within = 2 * time.Second
	got, err := n.pods.Burst(l, 1)
	must(t, err)
	if got.Failed() != 1 {
		t.Errorf("from %s over %s to %s: %+v, want no answer", n.name, l.Network, l.Target, got)
	}
}
