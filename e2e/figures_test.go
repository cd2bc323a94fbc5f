package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
)

// changes is how many changes the propagation is measured with.
const changes = 200

// idle lies between two changes.
const idle = 20 * time.Millisecond

// checkPropagation measures from a change in one cluster's API server to the
// entry in the map of a node of the other cluster.
func checkPropagation(t *testing.T, w *world) {
	from, to := w.clusters[0], w.clusters[1]
	n := to.nodes[0]
	ip := w.sliceService(t, from, to)
	slice := w.addSlice(t, from)
	w.settle(t, now)
	frontend := oracle.Frontend{Addr: netip.AddrPortFrom(ip, 80), Protocol: "TCP"}
	var sent, committed []time.Duration
	for i := range changes {
		want := nth(from.nodes[0].lab.Pods[0], 1000+i)
		seen := n.whenVisible(frontend, netip.AddrPortFrom(want, targetPort))
		slice.Endpoints[0].Addresses[0] = want.String()
		begin := time.Now()
		var err error
		slice, err = from.kube.Client.DiscoveryV1().EndpointSlices(namespace).Update(live(t), slice, metav1.UpdateOptions{})
		must(t, err)
		answered := time.Now()
		select {
		case at := <-seen:
			sent, committed = append(sent, at.Sub(begin)), append(committed, max(0, at.Sub(answered)))
		case <-time.After(giveUp):
			t.Fatalf("change %d is not in the map of %s after %v", i, n.name, giveUp)
		}
		time.Sleep(idle)
	}
	t.Logf("change in %s to map entry in %s, %d changes: from the request's sending median %v, p99 %v; from its answer median %v, p99 %v",
		from.name, n.name, changes, quantile(sent, 50), quantile(sent, 99), quantile(committed, 50), quantile(committed, 99))
	for _, p := range []*lab.Process{n.agent.Process, from.export.Process} {
		t.Logf("resident memory of %s: %s", p.Name, residentMemory(t, p))
	}
}

// sliceService makes a global service without selector in both clusters and
// returns its address in the second.
func (w *world) sliceService(t *testing.T, from, to *cluster) netip.Addr {
	t.Helper()
	var ip netip.Addr
	for _, c := range []*cluster{from, to} {
		made, err := c.kube.AddService(live(t), kube.Service{
			Namespace: namespace, Name: "measured", Annotations: global(), Ports: webPorts(80, 53), NoSelector: true,
		})
		must(t, err)
		ip = clusterIPs(made)[0]
		t.Cleanup(func() { must(t, c.kube.DeleteService(live(t), namespace, "measured")) })
	}
	return ip
}

// addSlice makes the slice by hand, so that no controller's time is measured.
func (w *world) addSlice(t *testing.T, c *cluster) *discoveryv1.EndpointSlice {
	t.Helper()
	name, protocol, port, ready := "http", corev1.ProtocolTCP, int32(targetPort), true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: "measured-1", Labels: map[string]string{discoveryv1.LabelServiceName: "measured"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{nth(c.nodes[0].lab.Pods[0], 999).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}},
	}
	made, err := c.kube.Client.DiscoveryV1().EndpointSlices(namespace).Create(live(t), slice, metav1.CreateOptions{})
	must(t, err)
	return made
}

// whenVisible reads the node's map without pause until the frontend has the
// backend, and then sends the time.
func (n *node) whenVisible(f oracle.Frontend, want netip.AddrPort) <-chan time.Time {
	seen := make(chan time.Time, 1)
	deadline := time.Now().Add(giveUp)
	go func() {
		buffer := make([]netip.AddrPort, 0, 8)
		for time.Now().Before(deadline) {
			if id, err := n.maps.Lookup(f); err == nil && slices.Contains(n.maps.Backends(id, buffer), want) {
				seen <- time.Now()
				return
			}
			time.Sleep(50 * time.Microsecond) // leaves the processor to what is measured
		}
	}()
	return seen
}

func quantile(all []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)-1)*percent/100].Round(10 * time.Microsecond)
}

func residentMemory(t *testing.T, p *lab.Process) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
