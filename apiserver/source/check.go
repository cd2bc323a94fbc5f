package source

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// checkObject checks what an API server would have refused, as far as export
// relies on it, and joins all that is wrong.
func checkObject(object metav1.Object) error {
	c := &checker{}
	c.names(object)
	switch o := object.(type) {
	case *corev1.Service:
		c.service(o)
	case *discoveryv1.EndpointSlice:
		c.slice(o)
	case *corev1.Pod:
		c.pod(o)
	}
	return errors.Join(c.errs...)
}

// checker collects errors by field.
type checker struct{ errs []error }

func (c *checker) add(field, value, remedy string) {
	c.errs = append(c.errs, fmt.Errorf("%s is %q: %s", field, value, remedy))
}

func (c *checker) names(object metav1.Object) {
	if namespace := object.GetNamespace(); namespace != "" && !namespaced(object) {
		c.add("metadata.namespace", namespace, "objects of this kind have none; remove it")
	}
	check := validation.IsDNS1123Subdomain
	switch kindOf(object) {
	case "Service", "Namespace":
		check = validation.IsDNS1123Label
	}
	for _, message := range check(object.GetName()) {
		c.add("metadata.name", object.GetName(), message)
	}
	if namespace := object.GetNamespace(); namespace != "" {
		for _, message := range validation.IsDNS1123Label(namespace) {
			c.add("metadata.namespace", namespace, message)
		}
	}
}

func (c *checker) service(s *corev1.Service) {
	for i, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			c.address(fmt.Sprintf("spec.clusterIPs[%d]", i), ip)
		}
	}
	if ip := s.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
		c.address("spec.clusterIP", ip)
	}
	names := map[string]bool{}
	for i, p := range s.Spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		c.port(field, p.Port, p.Protocol)
		if names[p.Name] {
			c.add(field+".name", p.Name, "another port has this name; give each its own")
		}
		names[p.Name] = true
	}
}

func (c *checker) slice(s *discoveryv1.EndpointSlice) {
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN:
	default:
		c.add("addressType", string(s.AddressType), "write IPv4 or IPv6")
	}
	for i, ep := range s.Endpoints {
		c.endpoint(fmt.Sprintf("endpoints[%d].addresses", i), ep.Addresses, s.AddressType)
	}
	for i, p := range s.Ports {
		if p.Port != nil {
			c.port(fmt.Sprintf("ports[%d]", i), *p.Port, protocolOf(p.Protocol))
		}
	}
}

func protocolOf(p *corev1.Protocol) corev1.Protocol {
	if p == nil {
		return ""
	}
	return *p
}

func (c *checker) endpoint(field string, addresses []string, family discoveryv1.AddressType) {
	if len(addresses) == 0 {
		c.add(field, "", "at least one address is needed")
	}
	for i, text := range addresses {
		at := fmt.Sprintf("%s[%d]", field, i)
		if family == discoveryv1.AddressTypeFQDN || !c.address(at, text) {
			continue
		}
		if v4 := netip.MustParseAddr(text).Is4(); v4 != (family == discoveryv1.AddressTypeIPv4) {
			c.add(at, text, fmt.Sprintf("it is not of addressType %s; correct one of them", family))
		}
	}
}

func (c *checker) pod(p *corev1.Pod) {
	if p.Status.PodIP != "" {
		c.address("status.podIP", p.Status.PodIP)
	}
	for i, ip := range p.Status.PodIPs {
		c.address(fmt.Sprintf("status.podIPs[%d].ip", i), ip.IP)
	}
	if p.Status.HostIP != "" {
		c.address("status.hostIP", p.Status.HostIP)
	}
}

func (c *checker) address(field, text string) bool {
	a, err := netip.ParseAddr(text)
	ok := err == nil && a.Zone() == "" && !strings.HasPrefix(text, "::ffff:")
	if !ok {
		c.add(field, text, "write an IP address such as 10.1.2.3 or fd00::1")
	}
	return ok
}

func (c *checker) port(field string, number int32, protocol corev1.Protocol) {
	if number < 1 || number > 65535 {
		c.add(field+".port", fmt.Sprint(number), "write a number from 1 to 65535")
	}
	switch protocol {
	case "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
	default:
		c.add(field+".protocol", string(protocol), "write TCP, UDP or SCTP")
	}
}
