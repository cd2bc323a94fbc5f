package interop

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func pick[T any](c *cluster, from ...T) T { return from[c.rnd.IntN(len(from))] }

func (c *cluster) v4(third, fourth int) string {
	return fmt.Sprintf("10.%d.%d.%d", c.net, third, fourth)
}

func (c *cluster) v6(third, fourth int) string {
	return fmt.Sprintf("fd00:%x::%x:%x", c.net, third, fourth)
}

func namespaceName(i int) string { return fmt.Sprintf("ns-%d", i%namespaces) }

func serviceName(i int) string { return fmt.Sprintf("svc-%d", i) }

func (c *cluster) namespace(i int, global bool) *corev1.Namespace {
	o := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: namespaceName(i), Labels: map[string]string{"team": pick(c, "red", "blue")}},
	}
	switch {
	case !global:
		o.Annotations = map[string]string{"clustermesh.cilium.io/global": "false"}
	case c.rnd.IntN(2) == 0:
		o.Annotations = map[string]string{"clustermesh.cilium.io/global": "true"}
	}
	return o
}

// service makes a service of one of the shapes that the mesh tells apart.
func (c *cluster) service(i int) *corev1.Service {
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespaceName(i), Name: serviceName(i),
			Labels:      map[string]string{"app": serviceName(i), "tier": pick(c, "front", "back")},
			Annotations: c.serviceAnnotations(),
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIPs: c.clusterIPs(i), Ports: c.servicePorts(),
			Selector: map[string]string{"app": serviceName(i)},
		},
	}
}

func (c *cluster) serviceAnnotations() map[string]string {
	a := map[string]string{pick(c, "service.cilium.io/global", "io.cilium/global-service"): pick(c, "true", "true", "true", "true", "true", "true", "false")}
	if c.rnd.IntN(4) == 0 {
		a[pick(c, "service.cilium.io/shared", "io.cilium/shared-service")] = pick(c, "true", "false")
	}
	if c.rnd.IntN(2) == 0 {
		a[pick(c, "service.cilium.io/affinity", "io.cilium/service-affinity")] = pick(c, "local", "remote", "none")
	}
	return a
}

func (c *cluster) clusterIPs(i int) []string {
	switch c.rnd.IntN(12) {
	case 0:
		return []string{corev1.ClusterIPNone}
	case 1, 2:
		return []string{c.v4(96, i+1)}
	case 3:
		return []string{c.v6(96, i+1)}
	}
	return []string{c.v4(96, i+1), c.v6(96, i+1)}
}

// servicePorts has unnamed ports, several protocols, and two names whose
// backends are one port.
func (c *cluster) servicePorts() []corev1.ServicePort {
	switch c.rnd.IntN(4) {
	case 0:
		return []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}}
	case 1:
		return []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: pick(c, int32(80), 8000)}, {Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}}
	case 2:
		return []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "admin", Protocol: corev1.ProtocolTCP, Port: 81}}
	}
	return []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}
}

// slice makes the slice of a service with one of three numbers; the last is of
// IPv6. No address is in two slices.
func (c *cluster) slice(i, number int) *discoveryv1.EndpointSlice {
	o := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespaceName(i), Name: fmt.Sprintf("%s-%d", serviceName(i), number),
			Labels: map[string]string{discoveryv1.LabelServiceName: serviceName(i)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       c.slicePorts(),
	}
	address := c.v4
	if number == 2 {
		o.AddressType, address = discoveryv1.AddressTypeIPv6, c.v6
	}
	first, count := c.rnd.IntN(4), c.rnd.IntN(6)
	for j := first; j < first+count; j++ {
		o.Endpoints = append(o.Endpoints, c.endpoint(i, j, address(10+3*i+number, 1+j)))
	}
	return o
}

func (c *cluster) slicePorts() []discoveryv1.EndpointPort {
	port := func(name string, protocol corev1.Protocol, number int32) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number}
	}
	switch c.rnd.IntN(4) {
	case 0:
		return []discoveryv1.EndpointPort{port("", corev1.ProtocolTCP, 8080)}
	case 1:
		return []discoveryv1.EndpointPort{port("http", corev1.ProtocolTCP, 8080), port("admin", corev1.ProtocolTCP, pick(c, int32(8080), 8081))}
	}
	return []discoveryv1.EndpointPort{port("http", corev1.ProtocolTCP, pick(c, int32(8080), 9090)), port("dns", corev1.ProtocolUDP, 5353)}
}

func (c *cluster) endpoint(i, j int, address string) discoveryv1.Endpoint {
	node := fmt.Sprintf("%s-n%d", c.name, j%nodes)
	e := discoveryv1.Endpoint{Addresses: []string{address}, Conditions: c.conditions(), NodeName: &node}
	if c.rnd.IntN(3) == 0 {
		name := fmt.Sprintf("host-%d-%d", i, j)
		e.Hostname = &name
	}
	if c.rnd.IntN(2) == 0 {
		zone := pick(c, "zone-a", "zone-b")
		e.Zone = &zone
		if c.rnd.IntN(2) == 0 {
			e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: pick(c, "zone-a", "zone-b")}}}
		}
	}
	return e
}

// conditions are those of an endpoint that is ready, not ready, terminating but
// serving, or does not say.
func (c *cluster) conditions() discoveryv1.EndpointConditions {
	yes, no := true, false
	switch c.rnd.IntN(8) {
	case 0:
		return discoveryv1.EndpointConditions{}
	case 1:
		return discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &no}
	case 2:
		return discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	}
	return discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}
}

func (c *cluster) node(i int) *corev1.Node {
	return &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{
			Name:   fmt.Sprintf("%s-n%d", c.name, i),
			Labels: map[string]string{"kubernetes.io/hostname": fmt.Sprintf("%s-n%d", c.name, i), "rack": pick(c, "1", "2", "3")},
		},
		Spec: corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.%d.%d.0/24", c.net, 100+i), fmt.Sprintf("fd00:%x:%x::/64", c.net, i)}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.%d.%d", c.net, pick(c, 10, 20)+i)},
			{Type: corev1.NodeHostName, Address: fmt.Sprintf("%s-n%d", c.name, i)},
		}},
	}
}

func (c *cluster) pod(i int) *corev1.Pod {
	o := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespaceName(i), Name: fmt.Sprintf("pod-%d", i),
			Labels: map[string]string{"app": serviceName(i % 3), "version": pick(c, "1", "2"), "pod-template-hash": fmt.Sprint(i)},
		},
		Spec: corev1.PodSpec{
			ServiceAccountName: pick(c, "default", "robot"),
			Containers:         []corev1.Container{{Name: "main", Ports: c.podPorts()}},
		},
		Status: corev1.PodStatus{
			Phase: pick(c, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded),
			PodIP: c.v4(100, 1+i), HostIP: fmt.Sprintf("192.168.%d.%d", c.net, 10+i%nodes),
		},
	}
	o.Status.PodIPs = []corev1.PodIP{{IP: o.Status.PodIP}}
	if i%2 == 0 {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: c.v6(100, 1+i)})
	}
	return o
}

func (c *cluster) podPorts() []corev1.ContainerPort {
	if c.rnd.IntN(2) == 0 {
		return nil
	}
	return []corev1.ContainerPort{{Name: "http", Protocol: corev1.ProtocolTCP, ContainerPort: pick(c, int32(8080), 9090)}}
}
