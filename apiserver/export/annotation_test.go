package export_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations of ours reach the cluster's own agents as they are written, and
// nobody else.
func TestOwnAnnotationsAreCarried(t *testing.T) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web", Annotations: map[string]string{
		"service.cilium.io/global": "true", "clustermesh.cilium.io/other": "not ours", "clustermesh.io/spillover": "",
		"clustermesh.io/tiers": "local; west; *", "clustermesh.io/weights": "what this means is for the agents to judge",
	}}}
	e := newExporter(hashed{})
	records := e.Apply([]export.Change{{Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}}, {Object: s}})
	want := `"policy":{"spillover":"","tiers":"local; west; *","weights":"what this means is for the agents to judge"}}`
	local := 0
	for _, r := range records {
		if strings.Contains(string(r.Value), "west") != (r.Kind == schema.KindLocalService) {
			t.Errorf("%s holds %s", r.Key, r.Value)
		}
		if r.Kind == schema.KindLocalService && strings.HasSuffix(string(r.Value), want) {
			local++
		}
	}
	if local != 1 || len(e.Problems()) > 0 {
		t.Errorf("%d records end with %s, problems %v\n%v", local, want, e.Problems(), records)
	}
}

// A service with more or longer annotations of ours than a record may hold is
// exported with the first of them, and what is left out is reported.
func TestOwnAnnotationsAreBounded(t *testing.T) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web", Annotations: map[string]string{
		"service.cilium.io/global": "true", "clustermesh.io/long": strings.Repeat("x", 1025), "clustermesh.io/bytes": "\xff",
	}}}
	for i := range 66 {
		s.Annotations[fmt.Sprintf("clustermesh.io/n%02d", i)] = strings.Repeat("<", 1024)
	}
	e := newExporter(hashed{})
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	for _, r := range e.Apply([]export.Change{{Object: ns}, {Object: s}}) {
		if r.Kind != schema.KindLocalService {
			continue
		}
		v, err := schema.DecodeLocalService(schema.Source{Cluster: "east", ClusterID: 7}, r.Key, r.Value, schema.DefaultLimits())
		if err != nil || len(v.Policy) != 64 || len(v.Policy["n63"]) != 1024 {
			t.Errorf("%d annotations are exported, error %v", len(v.Policy), err)
		}
	}
	var said []string
	for _, p := range e.Problems() {
		said = append(said, p.Message)
	}
	for i, want := range []string{"clustermesh.io/bytes", "clustermesh.io/long", "clustermesh.io/n64 ", "clustermesh.io/n65 "} {
		if len(said) != 4 || !strings.HasPrefix(said[i], "annotation "+want) || len(said[i]) > 300 {
			t.Fatalf("reported %q, want something of %s", said, want)
		}
	}
}
