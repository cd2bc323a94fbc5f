package export_test

import (
	"fmt"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/export"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// cluster makes services with ten backends each, and a pod for each service.
func cluster(services int) []export.Change {
	changes := []export.Change{{Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}}}
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
		s.Annotations = map[string]string{"service.cilium.io/global": "true"}
		s.Spec.ClusterIP = fmt.Sprintf("172.20.%d.%d", i/250, i%250)
		s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, Labels: map[string]string{"app": name}}}
		p.Status.PodIP = fmt.Sprintf("10.1.%d.%d", i/250, i%250)
		changes = append(changes, export.Change{Object: s}, export.Change{Object: slice(i, true)}, export.Change{Object: p})
	}
	return changes
}

func slice(i int, ready bool) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprintf("s%d", i)}, AddressType: discoveryv1.AddressTypeIPv4}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: s.Name}
	port := int32(8080)
	s.Ports = []discoveryv1.EndpointPort{{Port: &port}}
	for j := range 10 {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.2.%d.%d", i%250, j)}})
	}
	s.Endpoints[0].Conditions.Ready = &ready
	return s
}

// BenchmarkFill exports 1,000 services with 10 backends and 1,000 pods, without
// and with the slices.
func BenchmarkFill(b *testing.B) {
	changes := cluster(1000)
	for what, records := range map[string]int{"plain": 4000, "everything": 5000} {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if n := len(export.New(variants()[what], hashed{}).Apply(changes)); n != records {
					b.Fatalf("%d records", n)
				}
			}
		})
	}
}

// BenchmarkEndpoint exports a change of one endpoint in a cluster of 10,000
// services, without and with the slices.
func BenchmarkEndpoint(b *testing.B) {
	for what, records := range map[string]int{"plain": 2, "everything": 3} {
		b.Run(what, func(b *testing.B) {
			e := export.New(variants()[what], hashed{})
			e.Apply(cluster(10000))
			b.ReportAllocs()
			ready := true
			for b.Loop() {
				ready = !ready
				if n := len(e.Apply([]export.Change{{Object: slice(7, ready)}})); n != records {
					b.Fatalf("%d records", n)
				}
			}
		})
	}
}

// BenchmarkCiliumFill exports what Cilium says of 5,000 pods.
func BenchmarkCiliumFill(b *testing.B) {
	changes := []export.Change{{Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}}}
	for i := range 5000 {
		e := &export.CiliumEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprintf("p%d", i)}}
		e.Status.Identity = &export.CiliumEndpointIdentity{ID: 458760}
		e.Status.Networking = &export.CiliumEndpointNetworking{Addressing: []export.CiliumAddressPair{{IPv4: fmt.Sprintf("10.3.%d.%d", i/250, i%250)}}}
		changes = append(changes, export.Change{Object: e})
	}
	b.ReportAllocs()
	for b.Loop() {
		if n := len(export.New(variants()["cilium"], hashed{}).Apply(changes)); n != 5000 {
			b.Fatalf("%d records", n)
		}
	}
}
