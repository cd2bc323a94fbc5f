package export

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
)

// outside adds the ways by which clients outside the cluster come in: external
// addresses and node ports. There are none for a service that limits who may
// come in (loadBalancerSourceRanges): what enforces that would be passed by.
func outside(record *schema.LocalService, s *corev1.Service, f *findings) {
	if record.Headless {
		return
	}
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		record.Restricted = true
		return
	}
	local := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	external := frontendsAt(externalIPs(s, f), s, !local, &findings{})
	record.NodePorts = nodePorts(s, f)
	if local && len(external)+len(record.NodePorts) > 0 {
		record.ExternalTrafficPolicy, record.ExternalFrontends = schema.TrafficPolicyLocal, external
		return
	}
	record.Frontends = append(record.Frontends, external...)
	sortFrontends(record.Frontends)
}

// externalIPs returns the addresses outside the cluster's range that lead to the
// service: its external IPs and those of its load balancer.
func externalIPs(s *corev1.Service, f *findings) []netip.Addr {
	var addresses []netip.Addr
	for _, text := range s.Spec.ExternalIPs {
		if a, ok := parseAddress(text, "externalIP", f); ok {
			addresses = append(addresses, a)
		}
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy {
			continue // what lies behind it expects to see the proxy
		}
		if a, ok := parseAddress(in.IP, "load balancer address", f); ok {
			addresses = append(addresses, a)
		}
	}
	own := clusterIPs(s, &findings{})
	return slices.DeleteFunc(addresses, func(a netip.Addr) bool { return slices.Contains(own, a) })
}

// nodePorts returns the ports that a service has on every node, each once.
func nodePorts(s *corev1.Service, f *findings) []schema.LocalNodePort {
	var ports []schema.LocalNodePort
	for _, p := range s.Spec.Ports {
		if p.NodePort == 0 {
			continue
		}
		if l4, ok := parsePort(p.NodePort, p.Protocol, f); ok {
			ports = append(ports, schema.LocalNodePort{Port: l4.Port, Protocol: l4.Protocol, PortName: p.Name})
		}
	}
	order := func(a, b schema.LocalNodePort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	}
	slices.SortStableFunc(ports, order)
	return slices.CompactFunc(ports, func(a, b schema.LocalNodePort) bool { return order(a, b) == 0 })
}
