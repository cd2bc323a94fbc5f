package export_test

import (
	"fmt"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/export"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A slice that is larger than readers take is exported with fewer endpoints, and
// reported.
func TestOversizedSlice(t *testing.T) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "big"}}
	s.Annotations = map[string]string{"service.cilium.io/global": "true"}
	big := bigSlice(0)
	big.AddressType, big.Endpoints = discoveryv1.AddressTypeIPv4, nil
	for i := range 6000 {
		big.Endpoints = append(big.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.1.%d.%d", i/250, i%250)}})
	}
	config := variants()["everything"]
	e := export.New(config, hashed{})
	changes := []export.Change{{Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}}, {Object: s}, {Object: big}}
	records := e.Apply(changes)
	last := records[len(records)-1]
	slice, err := read(config, last)
	if err != nil || slice == nil || len(slice.Endpoints) != 4500 {
		t.Fatalf("%d records, the last is %s: %v", len(records), last.Key, err)
	}
	found := false
	for _, p := range e.Problems() {
		found = found || p.Object == "EndpointSlice a/big-000" && p.Reason == export.TooLarge
	}
	if !found {
		t.Errorf("problems %v", e.Problems())
	}
}

// What does not change in a slice is not written again: neither a change of its
// service's ports nor one of another slice touches it.
func TestSlicesAreWrittenAlone(t *testing.T) {
	e := export.New(variants()["everything"], hashed{})
	e.Apply(cluster(3))
	second := slice(1, true)
	second.Name, second.Endpoints = "s1-more", second.Endpoints[:1]
	if got := e.Apply([]export.Change{{Object: second}}); len(got) != 1 {
		t.Errorf("a second slice that adds no backend changed %v", got)
	}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "s1", Annotations: map[string]string{"service.cilium.io/global": "true"}}}
	s.Spec.Ports = []corev1.ServicePort{{Port: 81}}
	for _, r := range e.Apply([]export.Change{{Object: s}}) {
		if r.Kind.String() == "endpointslices" {
			t.Errorf("a change of the service's port wrote %s", r.Key)
		}
	}
}
