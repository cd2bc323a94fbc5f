package e2e

import (
	"context"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	globalKey   = "service.cilium.io/global"
	sharedKey   = "service.cilium.io/shared"
	affinityKey = "service.cilium.io/affinity"
)

// flips is the state of a check that changes things one after the other: after
// each change the maps must equal the oracle and no tight loop may have seen a
// failure.
type flips struct {
	t       *testing.T
	w       *world
	service string
	pods    map[*cluster][]*workload
	traffic *traffic
	took    convergence
}

// after does a change, waits for its effect and checks. No request that had
// chosen a backend before the change is under way when it returns.
func (f *flips) after(step string, change func() error, reached condition) {
	f.t.Helper()
	must(f.t, change())
	f.took.add(f.t, step, f.w.settle(f.t, reached))
	f.traffic.check(f.t, step)
}

// annotate sets an annotation of the service in a cluster; "" removes it.
func (f *flips) annotate(c *cluster, key, value string) {
	f.t.Helper()
	f.after(c.name+" "+key+"="+value, func() error {
		return c.kube.Annotate(live(f.t), namespace, f.service, map[string]string{key: value})
	}, annotated(c, f.service, key, value))
}

// ready flips the readiness of pods of one cluster, of which n are ready then.
func (f *flips) ready(pods []*workload, on bool, n int) {
	f.t.Helper()
	c := pods[0].cluster
	f.after(c.name+" readiness", func() error { ready(f.t, pods, on); return nil }, endpoints(c, f.service, n))
}

// checkFlips changes everything that decides about backends while tight loops
// run from every node, and there is always a healthy backend.
func checkFlips(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 2)
	f := &flips{t: t, w: w, service: "rebel-base", pods: pods, traffic: w.begin(t, ips)}
	f.sharing()
	f.affinities()
	for range 5 {
		for _, c := range w.clusters {
			f.ready(pods[c][:1], false, 1)
			f.ready(pods[c][:1], true, 2)
		}
	}
	f.terminating()
	f.scale()
	f.traffic.end(t)
	f.traffic = &traffic{}
	f.recreate()
	f.took.report(t)
}

func (f *flips) sharing() {
	f.t.Helper()
	for _, c := range f.w.clusters {
		f.annotate(c, sharedKey, "false")
		f.annotate(c, sharedKey, "")
	}
}

// namespaces keeps a whole namespace at home and opens it again.
func (f *flips) namespaces() {
	f.t.Helper()
	for _, c := range f.w.clusters {
		for _, value := range []string{"false", "true"} {
			f.after(c.name+" namespace global="+value, func() error { return annotateNamespace(live(f.t), c, value) }, namespaceIs(c, value))
		}
	}
}

func namespaceIs(c *cluster, value string) condition {
	return func(all []kube.Objects) bool {
		for _, n := range objectsOf(all, c).Namespaces {
			if n.Name == namespace {
				return n.Annotations["clustermesh.cilium.io/global"] == value
			}
		}
		return false
	}
}

// annotateNamespace says whether the namespace's services may be global.
func annotateNamespace(ctx context.Context, c *cluster, value string) error {
	patch := []byte(`{"metadata":{"annotations":{"clustermesh.cilium.io/global":"` + value + `"}}}`)
	_, err := c.kube.Client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// affinities goes through each affinity in each cluster, with the preferred
// side healthy and not.
func (f *flips) affinities() {
	f.t.Helper()
	for _, c := range f.w.clusters {
		far := f.w.other(c)
		f.annotate(c, affinityKey, "local")
		f.ready(f.pods[c], false, 0)
		f.ready(f.pods[c], true, 2)
		f.annotate(c, affinityKey, "remote")
		f.ready(f.pods[far], false, 0)
		f.ready(f.pods[far], true, 2)
		f.annotate(c, affinityKey, "none")
		f.annotate(c, affinityKey, "")
	}
}

// terminating takes a pod through its grace period.
func (f *flips) terminating() {
	f.t.Helper()
	for _, c := range f.w.clusters {
		last := c.newPod(f.service)
		last.Grace = 60
		f.after("graceful pod", func() error {
			must(f.t, last.listen())
			return c.kube.AddPod(live(f.t), last.Pod)
		}, endpoints(c, f.service, 3))
		f.after("terminating", func() error { return c.kube.DeletePod(live(f.t), last.Pod) }, endpoints(c, f.service, 2))
		f.after("others not ready", func() error { ready(f.t, f.pods[c], false); return nil }, endpoints(c, f.service, 0))
		f.after("others ready", func() error { ready(f.t, f.pods[c], true); return nil }, endpoints(c, f.service, 2))
		f.after("terminated", func() error { return c.kube.FinishPod(live(f.t), last.Pod) }, present(c, f.service, 2))
		stop(f.t, []*workload{last})
	}
}

// scale takes a cluster from 1 to 50, 0 and 3 pods.
func (f *flips) scale() {
	f.t.Helper()
	c := f.w.clusters[0]
	f.after("scale to 1", func() error { withdraw(f.t, f.pods[c][1:]); return nil }, present(c, f.service, 1))
	stop(f.t, f.pods[c][1:])
	pods := f.pods[c][:1]
	f.after("scale to 50", func() error { pods = append(pods, c.deploy(f.t, f.service, 49)...); return nil }, endpoints(c, f.service, 50))
	f.after("scale to 0", func() error { withdraw(f.t, pods); return nil }, present(c, f.service, 0))
	stop(f.t, pods)
	f.after("scale to 3", func() error { f.pods[c] = c.deploy(f.t, f.service, 3); return nil }, endpoints(c, f.service, 3))
}

// recreate deletes the service and makes it again with other ports and other
// cluster IPs.
func (f *flips) recreate() {
	f.t.Helper()
	for _, c := range f.w.clusters {
		var ips []netip.Addr
		f.after("delete service", func() error { return c.kube.DeleteService(live(f.t), namespace, f.service) }, gone(c, f.service))
		f.after("create service", func() error {
			made, err := c.kube.AddService(live(f.t), kube.Service{
				Namespace: namespace, Name: f.service, Annotations: global(), Ports: webPorts(8000, 5353),
			})
			if err == nil {
				ips = clusterIPs(made)
			}
			return err
		}, endpoints(c, f.service, len(f.pods[c])))
		var all []*workload
		for _, pods := range f.pods {
			all = append(all, pods...)
		}
		for _, ip := range ips {
			requireShares(f.t, c.nodes[0], pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(ip, 8000)}, all)
			requireNothing(f.t, c.nodes[0], pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(ip, 80)})
		}
	}
}

// present waits for n endpoints of a service per family, ready or not. A pod
// that is deleted is in its slices as terminating for a moment, so this is what
// tells that it is gone.
func present(c *cluster, service string, n int) condition {
	return func(all []kube.Objects) bool {
		count := 0
		for _, slice := range objectsOf(all, c).Slices {
			if slice.Labels["kubernetes.io/service-name"] == service {
				count += len(slice.Endpoints)
			}
		}
		return count == 2*n
	}
}

// gone waits until a service and its slices are no more.
func gone(c *cluster, service string) condition {
	return func(all []kube.Objects) bool {
		for _, s := range objectsOf(all, c).Services {
			if s.Name == service && s.Namespace == namespace {
				return false
			}
		}
		return present(c, service, 0)(all)
	}
}

// checkHandOver takes the annotation away and gives it back. Without it the
// cluster's own load balancer serves the service, here netfilter; clients must
// not notice either change.
func checkHandOver(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 1)
	for _, n := range w.nodes() {
		w.translate(t, n, ips[n.cluster], pods[n.cluster][0])
	}
	f := &flips{t: t, w: w, service: "rebel-base", pods: pods, traffic: w.begin(t, ips)}
	for _, c := range w.clusters {
		f.annotate(c, globalKey, "")
		requireShares(t, c.nodes[0], loads(ips[c])[0], pods[c])
		f.annotate(c, globalKey, "true")
		f.annotate(c, globalKey, "false")
		f.annotate(c, globalKey, "True")
	}
	f.annotate(w.clusters[0], globalKey, "true")
	f.namespaces()
	f.traffic.end(t)
	f.took.report(t)
}

// checkNoBackend: a global service without any healthy backend refuses at once
// instead of letting clients wait, and serves again as soon as one is back.
func checkNoBackend(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 1)
	f := &flips{t: t, w: w, service: "rebel-base", pods: pods, traffic: &traffic{}}
	var all []*workload
	for _, c := range w.clusters {
		f.ready(pods[c], false, 0)
		all = append(all, pods[c]...)
	}
	for _, n := range w.nodes() {
		for _, ip := range ips[n.cluster] {
			got, err := n.pods.Burst(pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(ip, 80)}, 3)
			must(t, err)
			if got.Failures["connection refused"] != 3 {
				t.Errorf("from %s to %s without backends: %+v, want 3 refused connections", n.name, ip, got)
			}
		}
	}
	for _, c := range w.clusters {
		f.ready(pods[c], true, 1)
	}
	for _, n := range w.nodes() {
		requireShares(t, n, loads(ips[n.cluster])[0], all)
	}
}
