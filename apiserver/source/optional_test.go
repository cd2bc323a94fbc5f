package source_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/source"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

const (
	ciliumNode     = "{apiVersion: cilium.io/v2, kind: CiliumNode, metadata: {name: n1, labels: {v: '1'}}}"
	ciliumIdentity = "{apiVersion: cilium.io/v2, kind: CiliumIdentity, metadata: {name: '70000'}, security-labels: {'k8s:app': web}}"
	ciliumEndpoint = "{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: web-1, namespace: shop}, status: {identity: {id: 70000}}}"
	ciliumSlice    = "{apiVersion: cilium.io/v2alpha1, kind: CiliumEndpointSlice, metadata: {name: ces-1}, namespace: shop}"
)

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	data, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = u.UnmarshalJSON(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// serving makes a fake API server that serves resources: a group version and
// their names.
func serving(resources map[string][]string) *fake.Clientset {
	client := fake.NewClientset(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, &corev1.Pod{ObjectMeta: meta("web-1", "1")},
	)
	for groupVersion, names := range resources {
		list := &metav1.APIResourceList{GroupVersion: groupVersion}
		for _, name := range names {
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: name})
		}
		client.Resources = append(client.Resources, list)
	}
	return client
}

func names(l *listener) []string {
	var all []string
	for name := range l.objects {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func TestKubernetesChoosesKinds(t *testing.T) {
	v2, alpha := "cilium.io/v2", "cilium.io/v2alpha1"
	all := map[string][]string{v2: {"ciliumnodes", "ciliumidentities", "ciliumendpoints"}, alpha: {"ciliumendpointslices"}}
	slicesAlone := map[string][]string{v2: {"ciliumnodes", "ciliumidentities"}, alpha: {"ciliumendpointslices"}}
	exports := map[string][]string{"multicluster.x-k8s.io/v1beta1": {"serviceexports", "serviceimports"}, "multicluster.x-k8s.io/v1alpha1": {"serviceexports"}}
	oldExports := map[string][]string{"multicluster.x-k8s.io/v1alpha1": {"serviceexports"}}
	own := []string{"Node n1", "Pod shop/web-1"}
	single := []string{"*export.CiliumEndpoint shop/web-1", "*export.CiliumIdentity 70000", "*export.CiliumNode n1"}
	inSlices := []string{"*export.CiliumEndpointSlice ces-1", "*export.CiliumIdentity 70000", "*export.CiliumNode n1"}
	for what, c := range map[string]struct {
		serves  map[string][]string
		wants   source.Wants
		exports string
		objects []string
	}{
		"nothing":           {nil, source.Wants{}, "", own},
		"cilium":            {all, source.Wants{}, "", single},
		"half of cilium":    {map[string][]string{v2: {"ciliumnodes"}}, source.Wants{}, "", own},
		"slices if told":    {all, source.Wants{CiliumSlices: true}, "", inSlices},
		"slices alone":      {slicesAlone, source.Wants{}, "", inSlices},
		"own if told":       {all, source.Wants{Cilium: source.No}, "", own},
		"cilium if told":    {nil, source.Wants{Cilium: source.Yes}, "", single},
		"exports":           {exports, source.Wants{}, "v1beta1", own},
		"old exports":       {oldExports, source.Wants{}, "v1alpha1", own},
		"exports if told":   {nil, source.Wants{ServiceExports: source.Yes}, "v1beta1", own},
		"no exports":        {exports, source.Wants{ServiceExports: source.No}, "", own},
		"nothing to decide": {all, source.Wants{Cilium: source.No, ServiceExports: source.No}, "", own},
	} {
		t.Run(what, func(t *testing.T) {
			custom := clients(serving(c.serves), object(t, ciliumNode), object(t, ciliumIdentity), object(t, ciliumEndpoint), object(t, ciliumSlice))
			l := listen(t, source.NewKubernetes(custom, c.wants, nil).Run)
			l.until("was synced", func() bool { return l.last.Synced })
			if got := names(l); !slices.Equal(got, c.objects) {
				t.Errorf("objects %v, want %v", got, c.objects)
			}
			if got := l.last.Reads; got == nil || got.ServiceExports != c.exports || got.Cilium != (c.objects[0] != own[0]) {
				t.Errorf("reads %+v", got)
			}
		})
	}
}

// While the API server does not say which kinds there are, nothing is decided
// and nothing delivered.
func TestKubernetesWaitsForKinds(t *testing.T) {
	client := serving(nil)
	client.PrependReactor("get", "resource", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("not now")
	})
	l := listen(t, source.NewKubernetes(clients(client), source.Wants{}, nil).Run)
	l.untilProblem("kinds of objects", "not now", "may read /apis")
	if l.last.Synced || l.last.Reads != nil || len(l.objects) != 0 {
		t.Errorf("batch %+v, objects %v", l.last, l.objects)
	}
}

// An object whose members are of wrong types is a problem; what it said before
// stays until it is good again, or gone.
func TestUnreadableObjectKeepsItsState(t *testing.T) {
	nodes := schema.GroupVersionResource{Group: "cilium.io", Version: "v2", Resource: "ciliumnodes"}
	both := clients(serving(nil), object(t, ciliumNode), object(t, "{apiVersion: cilium.io/v2, kind: CiliumNode, metadata: {name: n2}, spec: nonsense}"))
	fake := both.Dynamic.(*dynamicfake.FakeDynamicClient)
	follows := watched(t, &fake.Fake, fake.Tracker(), nodes.Resource)
	l := listen(t, source.NewKubernetes(both, source.Wants{Cilium: source.Yes}, nil).Run)
	l.untilProblem("CiliumNode n2", "does not decode")
	follows()
	l.untilHas(map[string]string{"*export.CiliumNode n1": "1"})
	if _, there := l.objects["*export.CiliumNode n2"]; there {
		t.Error("an object that does not decode was delivered")
	}
	bad := object(t, "{apiVersion: cilium.io/v2, kind: CiliumNode, metadata: {name: n1}, spec: {addresses: 7}}")
	client := both.Dynamic.Resource(nodes)
	if _, err := client.Update(t.Context(), bad, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.untilProblem("CiliumNode n1", "does not decode")
	if l.objects["*export.CiliumNode n1"] != "1" {
		t.Errorf("objects %v", l.objects)
	}
	if err := client.Delete(t.Context(), "n2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	good := object(t, "{apiVersion: cilium.io/v2, kind: CiliumNode, metadata: {name: n1, labels: {v: '2'}}}")
	if _, err := client.Update(t.Context(), good, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.untilHas(map[string]string{"*export.CiliumNode n1": "2"})
	l.until("had no problem", func() bool { return len(l.last.Problems) == 0 })
}

func TestManifestsChooseKinds(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "all.yaml", ciliumNode+"\n---\n"+ciliumIdentity+"\n---\n"+ciliumSlice+"\n---\n"+
		"{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: pods}}\n---\n"+
		"{apiVersion: multicluster.x-k8s.io/v1alpha1, kind: ServiceExport, metadata: {name: web, namespace: shop}}\n")
	l := listenDir(t, dir)
	l.until("was synced", func() bool { return l.last.Synced })
	want := []string{"*export.CiliumEndpointSlice ces-1", "*export.CiliumIdentity 70000", "*export.CiliumNode n1", "*export.ServiceExport shop/web", "Namespace shop"}
	if got := names(l); !slices.Equal(got, want) {
		t.Errorf("objects %v, want %v", got, want)
	}
	if *l.last.Reads != (source.Reads{Cilium: true, CiliumSlices: true, ServiceExports: "v1beta1"}) {
		t.Errorf("reads %+v", *l.last.Reads)
	}
}

// What appears after the start is not read, and said, unless it was asked for.
func TestManifestsDecideOnce(t *testing.T) {
	dir := t.TempDir()
	l := listenDir(t, dir)
	told := listen(t, source.NewManifests(dir, "", source.Wants{Cilium: source.Yes, ServiceExports: source.Yes}).Run)
	l.until("was synced", func() bool { return l.last.Synced })
	told.until("was synced", func() bool { return told.last.Synced })
	put(t, dir, "late.yaml", ciliumNode)
	l.untilProblem("did not have at the start", "restart")
	told.untilHas(map[string]string{"*export.CiliumNode n1": "1"})
	if len(l.objects) != 0 {
		t.Errorf("objects %v", l.objects)
	}
	if len(told.last.Problems) != 0 {
		t.Errorf("problems %v", told.last.Problems)
	}
}

func TestManifestsRefuseOtherVersions(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", "{apiVersion: cilium.io/v3, kind: CiliumNode, metadata: {name: n1}}")
	put(t, dir, "b.yaml", "{apiVersion: net.gke.io/v1, kind: ServiceExport, metadata: {name: web, namespace: shop}}")
	l := listenDir(t, dir)
	l.untilProblem("a.yaml", `apiVersion is "cilium.io/v3"`, "only cilium.io/v2 is read")
	if len(l.last.Problems) != 1 || len(l.objects) != 0 {
		t.Errorf("problems %v, objects %v", l.last.Problems, l.objects)
	}
}
