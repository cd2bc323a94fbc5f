package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

const (
	// rendered is where deploy/check keeps what the Helm chart renders.
	rendered = "../deploy/testdata/golden"
	// installed is the namespace that it is rendered for.
	installed = "clustermesh"
)

// installation is one cluster in which what the chart renders is applied, and a
// node that runs its pods as a kubelet would.
type installation struct {
	lab    *lab.Lab
	dir    string
	kube   *kube.Cluster
	client dynamic.Interface
	node   *lab.Node
	bpffs  string

	apiserver *lab.Process
}

// TestInstall: a real API server takes all that the chart renders, and apiserver
// and agent do their work with the rendered command lines, users, capabilities,
// mounts and rights, as they stand.
func TestInstall(t *testing.T) {
	requireLab(t)
	in := newInstallation(t)
	t.Run("api_server_takes_all", in.checkAccepted)
	t.Run("apiserver_may_be_restricted", in.checkRestricted)
	u := in.beforeInstall(t)
	in.issue(t)
	objects := in.apply(t, "default", false)
	t.Run("apiserver", func(t *testing.T) { in.checkApiserver(t, objects) })
	t.Run("events", in.checkEvents)
	t.Run("agent", func(t *testing.T) { in.checkAgent(t, objects) })
	t.Run("uninstall", u.check)
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	must(t, lab.Settle())
	in := &installation{dir: scratch(t)}
	var err error
	in.lab, err = lab.New(in.dir)
	must(t, err)
	t.Cleanup(func() { must(t, in.lab.Close()) })
	must(t, os.Chmod(in.dir, 0o711))
	in.kube, err = kube.Start(t.Context(), in.lab, kube.Config{
		Name: "east", Binary: binary("kube"), ServiceCIDRs: []string{"10.96.0.0/16", "fd00:96::/108"}, FirstPort: 20100,
	})
	must(t, err)
	must(t, in.kube.AddNamespace(t.Context(), installed))
	config, err := clientcmd.BuildConfigFromFlags("", in.kube.Kubeconfig)
	must(t, err)
	config.QPS = -1                           // without it most of the test's time is waiting
	config.WarningHandler = rest.NoWarnings{} // of old kinds, which are listed like all others
	in.client, err = dynamic.NewForConfig(config)
	must(t, err)
	in.node, err = in.lab.AddNode("n1", prefixes("192.168.50.11/24"), prefixes("10.1.16.0/20"))
	must(t, err)
	must(t, in.lab.Join(netip.PrefixFrom(netip.MustParseAddr(servedAt), 24)))
	in.bpffs, err = in.lab.MountBPF("n1/bpf")
	must(t, err)
	return in
}

// manifests are the objects of a rendering of Kubernetes' own kinds.
func manifests(t *testing.T, name string) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for document := range strings.SplitSeq(readFile(filepath.Join(rendered, name+".yaml")), "\n---\n") {
		u := &unstructured.Unstructured{}
		must(t, yaml.Unmarshal([]byte(document), &u.Object))
		if u.GetKind() == "" || u.GetKind() == "Certificate" || u.GetKind() == "ServiceMonitor" || u.GetKind() == "PrometheusRule" {
			continue
		}
		out = append(out, u)
	}
	if len(out) < 8 {
		t.Fatalf("only %d objects are rendered for %s", len(out), name)
	}
	return out
}

// apply has the API server take a rendering, or only say that it would.
func (in *installation) apply(t *testing.T, name string, dry bool) []*unstructured.Unstructured {
	t.Helper()
	all := manifests(t, name)
	for _, u := range all {
		if err := in.applyOne(live(t), u, dry); err != nil {
			t.Errorf("%s: %s %s: %v", name, u.GetKind(), u.GetName(), err)
		}
	}
	return all
}

func (in *installation) applyOne(ctx context.Context, u *unstructured.Unstructured, dry bool) error {
	o := metav1.ApplyOptions{FieldManager: "helm", Force: true}
	if dry {
		o.DryRun = []string{metav1.DryRunAll}
	}
	resource, _ := meta.UnsafeGuessKindToResource(u.GroupVersionKind())
	_, err := in.client.Resource(resource).Namespace(u.GetNamespace()).Apply(ctx, u.GetName(), u, o)
	return err
}

// checkAccepted: defaults, validation and admission have nothing against any
// rendering, nor against a pod of any workload.
func (in *installation) checkAccepted(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(rendered, "*.yaml"))
	must(t, err)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		for _, u := range in.apply(t, name, true) {
			if _, found, _ := unstructured.NestedMap(u.Object, "spec", "template"); found {
				in.requirePod(t, name, installed, u)
			}
		}
	}
	broken := manifests(t, "default")[0]
	must(t, unstructured.SetNestedField(broken.Object, "x", "spec", "nonsense"))
	if in.applyOne(t.Context(), broken, true) == nil {
		t.Error("the API server takes anything")
	}
}

// requirePod has the API server say that it would take the first pod.
func (in *installation) requirePod(t *testing.T, name, namespace string, owner *unstructured.Unstructured) {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "first", Namespace: namespace}, Spec: podOf(t, owner).Spec}
	p.Spec.ServiceAccountName = "default" // that of the rendering is not there yet
	for i := range p.Spec.Containers {    // a StatefulSet's controller adds the volume
		if owner.GetKind() == "StatefulSet" {
			p.Spec.Containers[i].VolumeMounts = p.Spec.Containers[i].VolumeMounts[1:]
		}
	}
	_, err := in.kube.Client.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Errorf("%s: a pod of %s in %s: %v", name, owner.GetName(), namespace, err)
	}
}

// checkRestricted: the apiserver's pod fits the strictest of Kubernetes' Pod
// Security Standards.
func (in *installation) checkRestricted(t *testing.T) {
	const strict = "strict"
	must(t, in.kube.AddNamespace(t.Context(), strict))
	label := []byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`)
	_, err := in.kube.Client.CoreV1().Namespaces().Patch(t.Context(), strict, "application/merge-patch+json", label, metav1.PatchOptions{})
	must(t, err)
	in.requirePod(t, "default", strict, podOwner(t, manifests(t, "default"), "Deployment"))
}

func podOwner(t *testing.T, all []*unstructured.Unstructured, kind string) *unstructured.Unstructured {
	t.Helper()
	for _, u := range all {
		if u.GetKind() == kind {
			return u
		}
	}
	t.Fatalf("no %s is rendered", kind)
	return nil
}

// issue makes the certificates and the Secrets with them, as docs/install.md says.
func (in *installation) issue(t *testing.T) {
	t.Helper()
	pki := filepath.Join(in.dir, "pki")
	succeed(t, "certs", "init", "--dir", pki)
	succeed(t, "certs", "issue", "--dir", pki, "--kind", "server", "--cluster", "east", "--host", "clustermesh-apiserver.clustermesh.svc")
	succeed(t, "certs", "issue", "--dir", pki, "--kind", "local", "--cluster", "east")
	for _, kind := range []string{"server", "local"} {
		data := map[string][]byte{}
		for key, file := range map[string]string{"ca.crt": "ca.crt", "tls.crt": kind + "-east.crt", "tls.key": kind + "-east.key"} {
			data[key] = []byte(readFile(filepath.Join(pki, file)))
		}
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "clustermesh-" + kind + "-cert"}, Data: data}
		_, err := in.kube.Client.CoreV1().Secrets(installed).Create(t.Context(), s, metav1.CreateOptions{})
		must(t, err)
	}
}

// checkApiserver: with the token of its own account it reads all that it wants
// to read, and publishes.
func (in *installation) checkApiserver(t *testing.T, objects []*unstructured.Unstructured) {
	pod := podOf(t, podOwner(t, objects, "Deployment"))
	c := pod.Spec.Containers[0]
	c.Args = append(c.Args, "--nobody-imports-after=2s") // of ten minutes, for checkEvents
	p := in.run(t, pod, c, "clustermesh-apiserver")
	in.apiserver = p
	const http = "127.0.0.1:9962"
	await(t, p, http, "/readyz")
	text, err := fetch(http, "/readyz")
	must(t, err)
	if strings.Contains(text, "problem:") || !strings.Contains(text, "identity source: own") {
		t.Errorf("the apiserver is ready, but says\n%s", text)
	}
	if status := readFile(fmt.Sprintf("/proc/%d/status", p.PID())); !strings.Contains(status, "Uid:\t65532") || !strings.Contains(status, "CapBnd:\t"+noCapabilities) {
		t.Errorf("the apiserver runs as\n%s", status)
	}
}

// checkAgent: it starts with what its pod has, hears its own cluster by the name
// of the Service, and drops its rights; the rendering for a removal then leaves
// nothing, and waits.
func (in *installation) checkAgent(t *testing.T, objects []*unstructured.Unstructured) {
	pod := podOf(t, podOwner(t, objects, "DaemonSet"))
	p := in.run(t, pod, pod.Spec.Containers[0], "clustermesh-agent")
	const http = "127.0.0.1:9964"
	await(t, p, http, "/readyz")
	(&agent{Process: p, http: http}).requireBare(t, leastBounding)
	pins := filepath.Join(in.bpffs, "clustermesh", "clustermesh")
	if made, err := os.ReadDir(pins); err != nil || len(made) < 10 {
		t.Errorf("%d pins in %s: %v", len(made), pins, err)
	}
	in.checkSockets(t, objects)
	requireStop(t, p)
	removal := podOf(t, podOwner(t, manifests(t, "cleanup"), "DaemonSet"))
	code, err := in.run(t, removal, removal.Spec.InitContainers[0], "clustermesh-agent").Exit(startLimit)
	if err != nil || code != 0 {
		t.Errorf("cleanup ended with %d: %v", code, err)
	}
	if _, err := os.Stat(pins); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", pins, err)
	}
	cleaned := in.run(t, removal, removal.Spec.Containers[0], "clustermesh-agent")
	awaitLog(t, cleaned, "waiting for the agent's maps")
	requireStop(t, cleaned)
}

// checkSockets: what ends connections finds the agent's maps with what its pod has.
func (in *installation) checkSockets(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	var pod corev1.PodTemplateSpec
	for _, u := range objects {
		if u.GetKind() == "DaemonSet" && u.GetName() == "clustermesh-sockets" {
			pod = podOf(t, u)
		}
	}
	p := in.run(t, pod, pod.Spec.Containers[0], "clustermesh-agent")
	awaitLog(t, p, "ending connections to withdrawn backends")
	requireStop(t, p)
}
