package source

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// trim returns a new object with only what export reads of the given one, so
// that the decoded reply, managed fields, container environments and status
// histories can be freed. What others define is decoded. Objects of other types
// are returned as they are.
func trim(object any) any {
	switch o := object.(type) {
	case *unstructured.Unstructured:
		return decodeCustom(o)
	case *corev1.Service:
		return trimService(o)
	case *discoveryv1.EndpointSlice:
		return trimSlice(o)
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: trimMeta(&o.ObjectMeta)}
	case *corev1.Node:
		return trimNode(o)
	case *corev1.Pod:
		return trimPod(o)
	}
	return object
}

// trimMeta keeps the resource version because reflectors ask for it.
func trimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, Labels: m.Labels, Annotations: meshAnnotations(m.Annotations),
		CreationTimestamp: m.CreationTimestamp, ResourceVersion: m.ResourceVersion,
	}
}

// meshAnnotations keeps what decides about exports, and all of the mesh's own:
// how a service is balanced. The agents judge those.
func meshAnnotations(all map[string]string) map[string]string {
	var kept map[string]string
	for name, value := range all {
		if !isMeshAnnotation(name) {
			continue
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[name] = value
	}
	return kept
}

func isMeshAnnotation(name string) bool {
	switch name {
	case "service.cilium.io/global", "io.cilium/global-service", "service.cilium.io/shared", "io.cilium/shared-service",
		"service.cilium.io/affinity", "io.cilium/service-affinity", "clustermesh.cilium.io/global", "network.cilium.io/wg-pub-key":
		return true
	}
	return strings.HasPrefix(name, "clustermesh.io/")
}

func trimService(o *corev1.Service) *corev1.Service {
	meta := trimMeta(&o.ObjectMeta)
	meta.UID = o.UID // Events are about it
	return &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: o.Spec.Type, ClusterIP: o.Spec.ClusterIP, ClusterIPs: o.Spec.ClusterIPs, Ports: o.Spec.Ports,
		Selector: o.Spec.Selector, SessionAffinity: o.Spec.SessionAffinity, SessionAffinityConfig: o.Spec.SessionAffinityConfig,
		InternalTrafficPolicy: o.Spec.InternalTrafficPolicy, TrafficDistribution: o.Spec.TrafficDistribution,
		IPFamilies: o.Spec.IPFamilies, ExternalIPs: o.Spec.ExternalIPs, ExternalTrafficPolicy: o.Spec.ExternalTrafficPolicy,
		LoadBalancerSourceRanges: o.Spec.LoadBalancerSourceRanges,
	}, Status: corev1.ServiceStatus{LoadBalancer: o.Status.LoadBalancer}}
}

// trimSlice keeps all labels and annotations, which are exported.
func trimSlice(o *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	trimmed := &discoveryv1.EndpointSlice{ObjectMeta: trimMeta(&o.ObjectMeta), AddressType: o.AddressType, Ports: o.Ports}
	trimmed.Annotations = o.Annotations
	for i := range o.Endpoints {
		ep := &o.Endpoints[i]
		trimmed.Endpoints = append(trimmed.Endpoints, discoveryv1.Endpoint{
			Addresses: ep.Addresses, Conditions: ep.Conditions, Hostname: ep.Hostname,
			NodeName: ep.NodeName, Zone: ep.Zone, Hints: ep.Hints,
		})
	}
	return trimmed
}

func trimNode(o *corev1.Node) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: trimMeta(&o.ObjectMeta),
		Spec:       corev1.NodeSpec{PodCIDR: o.Spec.PodCIDR, PodCIDRs: o.Spec.PodCIDRs},
		Status:     corev1.NodeStatus{Addresses: o.Status.Addresses},
	}
}

func trimPod(o *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: trimMeta(&o.ObjectMeta),
		Spec: corev1.PodSpec{
			HostNetwork: o.Spec.HostNetwork, ServiceAccountName: o.Spec.ServiceAccountName,
			InitContainers: trimContainers(o.Spec.InitContainers), Containers: trimContainers(o.Spec.Containers),
		},
		Status: corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs, HostIP: o.Status.HostIP},
	}
}

func trimContainers(all []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for i := range all {
		if len(all[i].Ports) > 0 {
			kept = append(kept, corev1.Container{Ports: all[i].Ports, RestartPolicy: all[i].RestartPolicy})
		}
	}
	return kept
}
