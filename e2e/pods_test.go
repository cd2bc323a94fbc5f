package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
	corev1 "k8s.io/api/core/v1"
)

// targetPort is where every pod serves TCP and UDP.
const targetPort = 8080

// workload is a pod: its Kubernetes object and its servers on a node.
type workload struct {
	kube.Pod
	cluster *cluster
	node    *node
}

// newPod chooses name, node and addresses of the cluster's next pod of a
// service. Addresses are not used twice.
func (c *cluster) newPod(service string) *workload {
	c.pods++
	n := c.nodes[c.pods%len(c.nodes)]
	w := &workload{cluster: c, node: n}
	w.Pod = kube.Pod{Namespace: namespace, Name: fmt.Sprintf("%s-%s-%d", c.name, service, c.pods), App: service, Node: n.name}
	for _, p := range n.lab.Pods {
		w.Addrs = append(w.Addrs, nth(p, c.pods))
	}
	return w
}

// nth is an address of a prefix.
func nth(p netip.Prefix, number int) netip.Addr {
	bytes := p.Addr().AsSlice()
	bytes[len(bytes)-1] = byte(number)
	bytes[len(bytes)-2] |= byte(number >> 8)
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

// listen starts the pod's servers.
func (w *workload) listen(ports ...uint16) error {
	if len(ports) == 0 {
		ports = []uint16{targetPort}
	}
	return w.node.pods.Add(pod.Server{Name: w.Name, Addrs: w.Addrs, Ports: ports})
}

// deploy runs n more ready pods of a service in the cluster.
func (c *cluster) deploy(t *testing.T, service string, n int) []*workload {
	t.Helper()
	var all []*workload
	for range n {
		all = append(all, c.newPod(service))
	}
	each(t, all, func(w *workload) error {
		if err := w.listen(); err != nil {
			return err
		}
		return c.kube.AddPod(live(t), w.Pod)
	})
	return all
}

// ready flips the readiness of pods.
func ready(t *testing.T, pods []*workload, on bool) {
	t.Helper()
	each(t, pods, func(w *workload) error { return w.cluster.kube.SetReady(live(t), w.Pod, on) })
}

// withdraw deletes the pods' objects; their servers answer on until stop.
func withdraw(t *testing.T, pods []*workload) {
	t.Helper()
	each(t, pods, func(w *workload) error { return w.cluster.kube.DeletePod(live(t), w.Pod) })
}

// stop ends the pods' servers.
func stop(t *testing.T, pods []*workload) {
	t.Helper()
	each(t, pods, func(w *workload) error { return w.node.pods.Remove(w.Name) })
}

// each runs do for all pods, a few at a time, and ends the test on an error.
func each(t *testing.T, pods []*workload, do func(*workload) error) {
	t.Helper()
	results := make(chan error, len(pods))
	slots := make(chan struct{}, 8)
	var all sync.WaitGroup
	for _, w := range pods {
		all.Go(func() {
			slots <- struct{}{}
			results <- do(w)
			<-slots
		})
	}
	all.Wait()
	for range pods {
		must(t, <-results)
	}
}

// webPorts are the ports of the services of the checks.
func webPorts(tcp, udp int32) []kube.Port {
	return []kube.Port{
		{Name: "http", Protocol: corev1.ProtocolTCP, Port: tcp, Target: targetPort},
		{Name: "echo", Protocol: corev1.ProtocolUDP, Port: udp, Target: targetPort},
	}
}

// service makes a service in the cluster and returns its cluster IPs.
func (c *cluster) service(t *testing.T, name string, annotations map[string]string) []netip.Addr {
	t.Helper()
	made, err := c.kube.AddService(live(t), kube.Service{
		Namespace: namespace, Name: name, Annotations: annotations, Ports: webPorts(80, 53),
	})
	must(t, err)
	return clusterIPs(made)
}

func clusterIPs(s *corev1.Service) []netip.Addr {
	var all []netip.Addr
	for _, ip := range s.Spec.ClusterIPs {
		all = append(all, netip.MustParseAddr(ip))
	}
	return all
}

// annotations of a global service, with more pairs if given.
func global(pairs ...string) map[string]string {
	m := map[string]string{"service.cilium.io/global": "true"}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}
