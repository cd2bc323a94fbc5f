package e2e

import (
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/kernel"
	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// shop is the namespace of the service that is used while all is installed.
const shop = "shop"

// uninstall is an installation, and how node and cluster were before it.
type uninstall struct {
	*installation
	node    *node // the node and its pods
	outside *node // a machine that knows the node as the way to services
	was     nodeState
	had     map[string]bool

	running map[string]*lab.Process // containers by name
	owned   []kernel.Object
}

// beforeInstall records node and cluster before anything is applied.
func (in *installation) beforeInstall(t *testing.T) *uninstall {
	t.Helper()
	u := &uninstall{installation: in, running: map[string]*lab.Process{}, node: &node{name: in.node.Name, lab: in.node}}
	made, err := in.lab.AddNode("outside", prefixes("192.168.50.99/24"), nil)
	must(t, err)
	u.outside = &node{name: "outside", lab: made}
	for _, n := range []*node{u.node, u.outside} {
		n.pods, err = pod.Start(in.lab, n.lab)
		must(t, err)
		t.Cleanup(n.pods.Close)
	}
	must(t, in.node.Forward())
	must(t, in.kube.AddNode(t.Context(), in.node.Name, []netip.Addr{in.node.Addr(true)}, in.node.Pods))
	u.was, u.had = in.nodeState(t), in.everything(t, nil)
	return u
}

// check installs all there is, has it carry connections, and removes it as
// docs/install.md says: nothing is left on the node and in the cluster.
func (u *uninstall) check(t *testing.T) {
	objects := u.apply(t, "devices", false)
	ip, backend := u.serve(t)
	u.start(t, objects)
	u.carry(t, ip)
	u.own(t)
	removal := u.cleanUp(t, objects)
	u.requireNodeClean(t, ip, backend)
	u.uninstall(t, removal)
	must(t, u.kube.DeletePod(live(t), backend))
	for namespace, name := range map[string]string{shop: shop, namespace: "rebel-shop"} {
		must(t, u.kube.DeleteService(live(t), namespace, name))
	}
	u.requireClusterClean(t)
}

// serve makes a global service with one backend on the node.
func (u *uninstall) serve(t *testing.T) (netip.Addr, kube.Pod) {
	t.Helper()
	must(t, u.kube.AddNamespace(t.Context(), shop))
	made, err := u.kube.AddService(t.Context(), kube.Service{Namespace: shop, Name: shop, Annotations: global(), Ports: webPorts(80, 53)})
	must(t, err)
	backend := kube.Pod{Namespace: shop, Name: "backend", App: shop, Node: u.node.name, Addrs: []netip.Addr{nth(u.node.lab.Pods[0], 5)}}
	must(t, u.node.pods.Add(pod.Server{Name: backend.Name, Addrs: backend.Addrs, Ports: []uint16{targetPort}}))
	must(t, u.kube.AddPod(t.Context(), backend))
	ip := clusterIPs(made)[0]
	must(t, u.outside.lab.RouteVia(ip, u.node.lab.Addr(true)))
	return ip, backend
}

// start runs the node's containers of a rendering. Their names are new, so that
// their logs are, too.
func (u *uninstall) start(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() != "DaemonSet" {
			continue
		}
		of := podOf(t, o)
		for _, c := range of.Spec.Containers {
			name := c.Name
			c.Name += "-of-all"
			u.running[name] = u.run(t, of, c, "clustermesh-agent")
		}
	}
	for name, message := range map[string]string{"devices": "balancing packets of device", "sockets": "ending connections to withdrawn backends"} {
		awaitLog(t, u.running[name], message)
	}
}

// carry demands that connections of every kind reach the backend from the node,
// and through its device from outside.
func (u *uninstall) carry(t *testing.T, ip netip.Addr) {
	t.Helper()
	all := loads([]netip.Addr{ip})
	for deadline := time.Now().Add(startLimit); ; time.Sleep(50 * time.Millisecond) {
		got, err := u.node.pods.Burst(all[0], 1)
		must(t, err)
		if got.Failed() == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the service is not reached: %v\n%s", got.Failures, logTail(u.running["agent"]))
		}
	}
	for _, n := range []*node{u.node, u.outside} {
		for _, l := range all {
			got, err := n.pods.Burst(l, 20)
			must(t, err)
			requireClean(t, n, l, got)
		}
	}
}

// own notes every object of the kernel that the containers have open or pinned,
// and demands that the record of a node shows what they did to it.
func (u *uninstall) own(t *testing.T) {
	t.Helper()
	pinned, err := kernel.Pinned(filepath.Join(u.bpffs, "clustermesh", "clustermesh"))
	must(t, err)
	u.owned = pinned
	for _, p := range u.running {
		held, err := kernel.Held(p.PID())
		must(t, err)
		u.owned = append(u.owned, held...)
	}
	count := map[string]int{}
	for _, o := range u.owned {
		count[o.Kind]++
	}
	if count["map"] < 10 || count["program"] < 5 || count["link"] < 10 {
		t.Errorf("the kernel's objects of an installation are only %v", count)
	}
	now := u.nodeState(t)
	for _, seen := range []string{"programs at the cgroup", "programs at devices", "files"} {
		if now[seen] == u.was[seen] {
			t.Errorf("an installation does not show in the node's %s", seen)
		}
	}
}

// cleanUp is `helm upgrade --set agent.cleanup=true`: agents end, those that are
// killed too, and the container in their place cleans the node. What ends
// connections may end after that.
func (u *uninstall) cleanUp(t *testing.T, former []*unstructured.Unstructured) []*unstructured.Unstructured {
	t.Helper()
	removal := u.apply(t, "removal", false)
	kept := map[string]bool{}
	for _, o := range removal {
		kept[o.GetKind()+" "+o.GetName()] = true
	}
	for _, o := range former {
		if !kept[o.GetKind()+" "+o.GetName()] {
			must(t, u.remove(t, o))
		}
	}
	requireStop(t, u.running["devices"])
	u.running["agent"].Kill()
	of := podOf(t, podOwner(t, removal, "DaemonSet"))
	first, after := of.Spec.InitContainers[0], of.Spec.Containers[0]
	first.Name, after.Name = first.Name+"-of-all", after.Name+"-of-all"
	p := u.run(t, of, first, "clustermesh-agent")
	if code, err := p.Exit(startLimit); err != nil || code != 0 {
		t.Errorf("cleanup ended with %d: %v\n%s", code, err, logTail(p))
	}
	_, _, err := u.running["sockets"].Terminate(stopLimit)
	must(t, err)
	cleaned := u.run(t, of, after, "clustermesh-agent")
	awaitLog(t, cleaned, "waiting for the agent's maps")
	requireStop(t, cleaned)
	return removal
}

func (u *uninstall) requireNodeClean(t *testing.T, ip netip.Addr, backend kube.Pod) {
	t.Helper()
	for _, l := range loads([]netip.Addr{ip}) {
		requireNothing(t, u.node, l)
	}
	must(t, u.node.pods.Remove(backend.Name))
	requireFreed(t, u.owned)
	now := u.nodeState(t)
	for part, was := range u.was {
		if now[part] != was {
			t.Errorf("the node's %s were\n%s\nand after all is removed they are\n%s", part, was, now[part])
		}
	}
}

// remove deletes an object as `helm uninstall` does.
func (u *uninstall) remove(t *testing.T, o *unstructured.Unstructured) error {
	resource, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	background := metav1.DeletePropagationBackground
	return u.client.Resource(resource).Namespace(o.GetNamespace()).Delete(live(t), o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
}

// uninstall removes the release's objects, and by the guide's command the Secrets
// that are not the release's.
func (u *uninstall) uninstall(t *testing.T, removal []*unstructured.Unstructured) {
	t.Helper()
	for _, o := range removal {
		must(t, u.remove(t, o))
	}
	requireStop(t, u.apiserver)
	secrets := u.kube.Client.CoreV1().Secrets(installed)
	for _, name := range []string{"clustermesh-peers", "clustermesh-west"} { // what `clustermesh join` writes
		_, err := secrets.Create(live(t), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(t, err)
	}
	command := regexp.MustCompile(`(?m)^kubectl -n clustermesh delete secret --ignore-not-found (.+)$`).FindStringSubmatch(readFile("../docs/install.md"))
	if command == nil {
		t.Fatal("docs/install.md does not say how to delete the Secrets")
	}
	for name := range strings.FieldsSeq(strings.ReplaceAll(command[1], "OTHER", "west")) {
		if err := secrets.Delete(live(t), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	}
}

// requireClusterClean demands that the API server serves what it served before,
// and without the namespace nothing that names the product.
func (u *uninstall) requireClusterClean(t *testing.T) {
	t.Helper()
	u.await(t, "is new", func() map[string]bool {
		now := u.everything(t, nil)
		maps.DeleteFunc(now, func(key string, _ bool) bool { return u.had[key] })
		return now
	})
	must(t, u.kube.Client.CoreV1().Namespaces().Delete(live(t), installed, metav1.DeleteOptions{}))
	u.await(t, "names the product", func() map[string]bool {
		return u.everything(t, func(o unstructured.Unstructured) bool {
			text, err := o.MarshalJSON()
			must(t, err)
			return strings.Contains(string(text), "clustermesh")
		})
	})
}

// await waits until the cluster's collectors have left nothing.
func (u *uninstall) await(t *testing.T, what string, left func() map[string]bool) {
	t.Helper()
	for deadline := time.Now().Add(giveUp); ; time.Sleep(100 * time.Millisecond) {
		now := left()
		if len(now) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after all is removed this %s: %v", what, now)
			return
		}
	}
}
