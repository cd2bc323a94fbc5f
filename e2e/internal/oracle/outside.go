package oracle

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// addOutside adds what leads to a service besides its cluster IPs: external
// addresses, and its node ports at the internal addresses of a node. Nothing does
// if the service limits who may come in.
func addOutside(table Table, s *corev1.Service, all []claim, node string, nodes []*corev1.Node) {
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		return
	}
	o := outside{table: table, s: s, all: all, node: node}
	for _, p := range s.Spec.Ports {
		for _, address := range externalAddresses(s) {
			o.add(address, p.Port, p, "")
		}
		if p.NodePort == 0 || p.Protocol == corev1.ProtocolSCTP {
			continue
		}
		for _, address := range nodeAddresses(node, nodes) {
			o.add(address, p.NodePort, p, "")
		}
		o.add("127.0.0.1", p.NodePort, p, "host")
		o.add("::1", p.NodePort, p, "host")
	}
}

func externalAddresses(s *corev1.Service) []string {
	all := s.Spec.ExternalIPs
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP) {
			all = append(all[:len(all):len(all)], in.IP)
		}
	}
	return all
}

func nodeAddresses(name string, nodes []*corev1.Node) []string {
	var all []string
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			if n.Name == name && a.Type == corev1.NodeInternalIP {
				all = append(all, a.Address)
			}
		}
	}
	return all
}

// outside is one service as a node shows it to clients outside.
type outside struct {
	table Table
	s     *corev1.Service
	all   []claim
	node  string
}

// add adds an address, if the service is of its family, and what is in its place
// for clients outside.
func (o *outside) add(address string, port int32, p corev1.ServicePort, clients string) {
	ip := netip.MustParseAddr(address)
	served := false
	for _, own := range o.s.Spec.ClusterIPs {
		served = served || strings.Contains(own, ":") == ip.Is6()
	}
	if !served {
		return
	}
	f := Frontend{Addr: netip.AddrPortFrom(ip, uint16(port)), Protocol: string(p.Protocol), Clients: clients}
	match := matching(o.all, ip, p)
	o.table[f] = decide(o.s, match)
	if clients == "" && o.s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		f.Clients = "outside"
		o.table[f] = decideHere(o.s, match, o.node)
	}
}

// decideHere decides among the backends on a node alone; the others are known.
func decideHere(s *corev1.Service, all []claim, node string) Entry {
	var here, elsewhere []claim
	for _, c := range all {
		if c.local && c.node == node {
			here = append(here, c)
		} else {
			elsewhere = append(elsewhere, c)
		}
	}
	e := decide(s, here)
	for _, c := range elsewhere {
		e.Others[c.Backend] = true
	}
	return e
}
