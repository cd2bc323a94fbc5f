package check

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const kustomizeDir = "../kustomize"

// helmOnly are the lines that mean something to Helm alone.
var helmOnly = regexp.MustCompile(`(?m)^ *annotations:\n *clustermesh\.io/settings: .*\n|^ *(app\.kubernetes\.io/managed-by: Helm|helm\.sh/chart: .*)\n`)

// TestBase: the base for kustomize is the chart's rendering.
func TestBase(t *testing.T) {
	texts := mustRender(t, valuesOf(t, kustomizeDir+"/values.yaml"))
	delete(texts, "settings.yaml") // which overlays make
	files, err := filepath.Glob(kustomizeDir + "/base/*.yaml")
	must(t, err)
	byHand := []string{"kustomization.yaml", "namespace.yaml"}
	for _, f := range files {
		name := filepath.Base(f)
		if texts[name] == "" && !slices.Contains(byHand, name) {
			t.Errorf("%s is not rendered from the chart", f)
		}
	}
	for name, text := range texts {
		text = helmOnly.ReplaceAllString(text, "")
		if strings.Contains(text, "left-out") || strings.Contains(strings.ToLower(text), "helm") {
			t.Errorf("%s holds what is of this rendering alone", name)
		}
		compare(t, filepath.Join(kustomizeDir, "base", name), text)
	}
}

// built is what `kubectl apply -k` applies.
func built(t *testing.T, dir string) []runtime.Object {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(kustomizeDir, dir))
	must(t, err)
	text, err := resources.AsYaml()
	must(t, err)
	return decode(t, string(text))
}

// TestExample: the example builds, and everything that pods name is there or
// said to be somebody else's.
func TestExample(t *testing.T) {
	all := built(t, "example")
	there := map[string]bool{"clustermesh-server-cert": true, "clustermesh-local-cert": true}
	for _, o := range all {
		if c, ok := o.(*corev1.ConfigMap); ok {
			there[c.Name] = true
		}
	}
	found := pods(t, all)
	if len(found) != 3 {
		t.Fatalf("%d workloads, want 3", len(found))
	}
	for owner, pod := range found {
		for name, optional := range named(pod) {
			if !optional && !there[name] {
				t.Errorf("%s needs %s, which is not there", owner, name)
			}
		}
		if owner == "clustermesh-sockets" {
			continue // which cluster it is in makes no difference
		}
		if got := environment(t, all, pod.Containers[0])[:2]; !slices.Equal(got, []string{"CLUSTERMESH_CLUSTER_NAME=east", "CLUSTERMESH_CLUSTER_ID=1"}) {
			t.Errorf("%s is told %v", owner, got)
		}
	}
	if !named(found["clustermesh-agent"])["clustermesh-west"] {
		t.Error("agents do not look for the Secret of west")
	}
	// What the chart says of the own cluster is what the example says.
	chart := only[*corev1.ConfigMap](t, objects(t, "default"), "clustermesh-own-cluster")
	if got := readFile(t, kustomizeDir+"/example/own-cluster.yaml"); got != chart.Data["east"] {
		t.Errorf("own-cluster.yaml is\n%s, and in the chart\n%s", got, chart.Data["east"])
	}
}

// named are the Secrets and ConfigMaps that a pod names, and whether they may be
// missing.
func named(pod corev1.PodSpec) map[string]bool {
	out := map[string]bool{}
	add := func(name string, optional *bool) { out[name] = optional != nil && *optional }
	for _, v := range pod.Volumes {
		if v.Secret != nil {
			add(v.Secret.SecretName, v.Secret.Optional)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				add(s.Secret.Name, s.Secret.Optional)
			}
			if s.ConfigMap != nil {
				add(s.ConfigMap.Name, s.ConfigMap.Optional)
			}
		}
	}
	for _, c := range pod.Containers {
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
				add(e.ValueFrom.ConfigMapKeyRef.Name, e.ValueFrom.ConfigMapKeyRef.Optional)
			}
		}
	}
	return out
}
