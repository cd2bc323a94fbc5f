package source_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/apiserver/source"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

func meta(name, v string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"v": v}}
}

func TestKubernetesFollowsObjects(t *testing.T) {
	ctx := t.Context()
	client := fake.NewClientset(
		&corev1.Service{ObjectMeta: meta("web", "1")},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}},
		&corev1.Pod{ObjectMeta: meta("p1", "1")},
		&discoveryv1.EndpointSlice{ObjectMeta: meta("web-1", "")},
	)
	services, pods := watched(t, &client.Fake, client.Tracker(), "services"), watched(t, &client.Fake, client.Tracker(), "pods")
	l := listen(t, source.NewKubernetes(clients(client), source.Wants{}, nil).Run)
	l.until("was synced", func() bool { return l.last.Synced })
	if len(l.objects) != 5 {
		t.Fatalf("the first batch holds %v", l.objects)
	}
	services()
	pods()
	if _, err := client.CoreV1().Services("shop").Update(ctx, &corev1.Service{ObjectMeta: meta("web", "2")}, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.untilHas(map[string]string{"Service shop/web": "2"})
	if err := client.CoreV1().Pods("shop").Delete(ctx, "p1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.until("lost the pod", func() bool { _, ok := l.objects["Pod shop/p1"]; return !ok })
}

// While one list fails nothing is delivered, and the problem says which; after
// that the first batch is complete.
func TestKubernetesIsNotSyncedBeforeAllLists(t *testing.T) {
	client := fake.NewClientset(&corev1.Service{ObjectMeta: meta("web", "1")}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	refuse := make(chan struct{})
	client.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		select {
		case <-refuse:
			return false, nil, nil
		default:
			return true, nil, errors.New("nodes are forbidden")
		}
	})
	l := listen(t, source.NewKubernetes(clients(client), source.Wants{}, nil).Run)
	l.untilProblem("nodes", "forbidden", "may list and watch")
	if l.last.Synced || len(l.objects) != 0 {
		t.Fatalf("delivered %v, synced %v", l.objects, l.last.Synced)
	}
	close(refuse)
	l.until("was synced", func() bool { return l.last.Synced && len(l.last.Problems) == 0 })
	if want := []string{"Node n1", "Service shop/web"}; !slices.Equal(slices.Sorted(maps.Keys(l.objects)), want) {
		t.Fatalf("have %v", l.objects)
	}
}

func TestKubernetesReportsDeadServer(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("get", "version", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("nobody answers")
	})
	l := listen(t, source.NewKubernetes(clients(client), source.Wants{}, nil).Run)
	l.untilProblem("api server", "no sign of life", "nobody answers")
}

// What vanished while the watch was down is gone after the next list, although
// nobody said so.
func TestKubernetesNoticesMissedDeletions(t *testing.T) {
	client := fake.NewClientset(&corev1.Service{ObjectMeta: meta("old", "1")})
	broken := watch.NewFake()
	first := true
	client.PrependWatchReactor("services", func(clienttesting.Action) (bool, watch.Interface, error) {
		if first {
			first = false
			return true, broken, nil
		}
		return false, nil, nil
	})
	l := listen(t, source.NewKubernetes(clients(client), source.Wants{}, nil).Run)
	l.until("was synced", func() bool { return l.last.Synced })
	if err := client.CoreV1().Services("shop").Delete(t.Context(), "old", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone := metav1.Status{Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired, Message: "too old"}
	broken.Error(&gone)
	l.until("lost the service", func() bool { return len(l.objects) == 0 })
}

// What is trimmed away makes no difference to export: every scenario of
// export's own tests leads to the same records.
func TestTrimmedObjectsExportAlike(t *testing.T) {
	files, err := filepath.Glob("../export/testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		whole, trimmed := exporter(data), exporter(data)
		for _, f := range txtar.Parse(data).Files {
			if !strings.HasPrefix(f.Name, "apply") {
				continue
			}
			a := whole.Apply(parseScenario(t, f.Data, false))
			b := trimmed.Apply(source.Trim(parseScenario(t, f.Data, true)))
			if fmt.Sprint(a) != fmt.Sprint(b) {
				t.Errorf("%s, %s:\n%v\ntrimmed\n%v", file, f.Name, a, b)
			}
		}
	}
}

// clients pairs a fake client with one for other kinds that holds objects.
func clients(typed *fake.Clientset, objects ...runtime.Object) source.Clients {
	kinds := map[schema.GroupVersionResource]string{
		{Group: "cilium.io", Version: "v2", Resource: "ciliumnodes"}:                      "CiliumNodeList",
		{Group: "cilium.io", Version: "v2", Resource: "ciliumidentities"}:                 "CiliumIdentityList",
		{Group: "cilium.io", Version: "v2", Resource: "ciliumendpoints"}:                  "CiliumEndpointList",
		{Group: "cilium.io", Version: "v2alpha1", Resource: "ciliumendpointslices"}:       "CiliumEndpointSliceList",
		{Group: "multicluster.x-k8s.io", Version: "v1beta1", Resource: "serviceexports"}:  "ServiceExportList",
		{Group: "multicluster.x-k8s.io", Version: "v1alpha1", Resource: "serviceexports"}: "ServiceExportList",
	}
	return source.Clients{Typed: typed, Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, objects...)}
}

// watched returns what waits until a kind of objects is watched: a fake forgets
// what changes between a list and the watch that goes on from there.
func watched(t *testing.T, client *clienttesting.Fake, objects clienttesting.ObjectTracker, kind string) (wait func()) {
	begun := make(chan struct{}, 100)
	client.PrependWatchReactor(kind, func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := objects.Watch(a.GetResource(), a.GetNamespace(), a.(clienttesting.WatchActionImpl).ListOptions)
		begun <- struct{}{}
		return true, w, err
	})
	return func() {
		t.Helper()
		select {
		case <-begun:
		case <-time.After(patience):
			t.Fatalf("nobody watches %s", kind)
		}
	}
}

type sequential struct{}

func (sequential) Acquire(labels string) (uint32, bool) { return uint32(500000 + len(labels)), true }
func (sequential) Release(string)                       {}

func exporter(scenario []byte) *export.Exporter {
	return export.New(export.Config{
		Cluster: "east", ClusterID: 7, MaxClusters: 255, DefaultGlobalNamespace: true,
		EndpointSlices: "services-and-endpointslices", ServiceExports: true,
		CiliumIdentities: strings.Contains(string(scenario), "config: cilium"),
	}, sequential{})
}

// parseScenario decodes objects; those of kinds that others define as the
// dynamic client would if raw, else into the types that export reads.
func parseScenario(t *testing.T, data []byte, raw bool) []export.Change {
	var changes []export.Change
	for document := range strings.SplitSeq(string(data), "---\n") {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		object := map[string]any{
			"Service": &corev1.Service{}, "EndpointSlice": &discoveryv1.EndpointSlice{},
			"Namespace": &corev1.Namespace{}, "Node": &corev1.Node{}, "Pod": &corev1.Pod{},
			"ServiceExport": &export.ServiceExport{}, "CiliumNode": &export.CiliumNode{},
			"CiliumIdentity": &export.CiliumIdentity{}, "CiliumEndpoint": &export.CiliumEndpoint{},
			"CiliumEndpointSlice": &export.CiliumEndpointSlice{},
		}[kind.Kind]
		if raw && (strings.HasPrefix(kind.Kind, "Cilium") || kind.Kind == "ServiceExport") {
			object = &unstructured.Unstructured{Object: map[string]any{}}
		}
		if err := yaml.Unmarshal([]byte(document), into(object)); err != nil {
			t.Fatal(err)
		}
		changes = append(changes, export.Change{Object: object})
	}
	return changes
}

// into returns what to decode an object into: YAML's numbers are JSON's here,
// and an unstructured object checks more than scenarios write.
func into(object any) any {
	if u, ok := object.(*unstructured.Unstructured); ok {
		return &u.Object
	}
	return object
}

// TestCatchUpAsksTheAPIServer: once it returns, the sink has taken what there
// was; a source that does not run, and an API server that refuses, are errors.
func TestCatchUpAsksTheAPIServer(t *testing.T) {
	client := fake.NewClientset(&corev1.Service{ObjectMeta: meta("web", "1")})
	refuse := make(chan struct{})
	client.PrependReactor("list", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		select {
		case <-refuse:
			return true, nil, errors.New("services are forbidden")
		default:
			return false, nil, nil
		}
	})
	k := source.NewKubernetes(clients(client), source.Wants{}, nil)
	if err := k.CatchUp(t.Context()); err == nil {
		t.Error("a source that does not run catches up")
	}
	l := listen(t, k.Run)
	l.until("was synced", func() bool { return l.last.Synced })
	caught := make(chan error, 1)
	go func() { caught <- k.CatchUp(t.Context()) }()
	for waiting := true; waiting; {
		select {
		case b := <-l.batches:
			l.take(b)
		case err := <-caught:
			if waiting = false; err != nil {
				t.Fatal(err)
			}
		case <-time.After(patience):
			t.Fatal("never caught up")
		}
	}
	close(refuse)
	if err := k.CatchUp(t.Context()); err == nil || !strings.Contains(err.Error(), "list services") {
		t.Errorf("an API server that refuses: %v", err)
	}
}
