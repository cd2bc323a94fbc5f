package oracle

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// The annotations, the current spelling first; the first one present counts.
var (
	globalKeys   = []string{"service.cilium.io/global", "io.cilium/global-service"}
	sharedKeys   = []string{"service.cilium.io/shared", "io.cilium/shared-service"}
	affinityKeys = []string{"service.cilium.io/affinity", "io.cilium/service-affinity"}
)

// Expect computes what the maps of a node of cluster local must hold, given what
// the APIs of all connected clusters hold; local is one of them.
func Expect(local, node string, clusters []kube.Objects) Table {
	table := Table{}
	for _, own := range clusters {
		if own.Cluster != local {
			continue
		}
		for _, s := range own.Services {
			if isGlobal(own, s) {
				all := claims(local, s, clusters)
				addService(table, s, all)
				addOutside(table, s, all, node, own.Nodes)
			}
		}
	}
	return table
}

func annotation(s *corev1.Service, keys []string) (string, bool) {
	for _, key := range keys {
		if value, ok := s.Annotations[key]; ok {
			return strings.ToLower(value), true
		}
	}
	return "", false
}

func isGlobal(o kube.Objects, s *corev1.Service) bool {
	for _, n := range o.Namespaces {
		if n.Name == s.Namespace {
			if value, ok := n.Annotations["clustermesh.cilium.io/global"]; ok && value != "true" {
				return false
			}
		}
	}
	value, _ := annotation(s, globalKeys)
	return value == "true"
}

func isShared(o kube.Objects, s *corev1.Service) bool {
	value, set := annotation(s, sharedKeys)
	return isGlobal(o, s) && (!set || value == "true")
}

func affinityOf(s *corev1.Service) string {
	value, _ := annotation(s, affinityKeys)
	if value == "local" || value == "remote" {
		return value
	}
	return "none"
}

// claim is one endpoint port of one cluster.
type claim struct {
	Backend
	protocol string
	portName string
	local    bool
	node     string
}

// claims collects the endpoints of a service from all clusters.
func claims(local string, s *corev1.Service, clusters []kube.Objects) []claim {
	var all []claim
	for _, o := range clusters {
		for _, theirs := range o.Services {
			same := theirs.Namespace == s.Namespace && theirs.Name == s.Name
			if same && (o.Cluster == local || isShared(o, theirs)) {
				all = append(all, endpoints(o, s, o.Cluster == local)...)
			}
		}
	}
	return all
}

func endpoints(o kube.Objects, s *corev1.Service, local bool) []claim {
	var all []claim
	for _, slice := range o.Slices {
		if slice.Namespace != s.Namespace || slice.Labels[discoveryv1.LabelServiceName] != s.Name {
			continue
		}
		for _, e := range slice.Endpoints {
			all = append(all, endpointClaims(o.Cluster, slice, e, local)...)
		}
	}
	return all
}

func endpointClaims(cluster string, slice *discoveryv1.EndpointSlice, e discoveryv1.Endpoint, local bool) []claim {
	state := stateOf(e.Conditions) // slices carry it between clusters too
	var all []claim
	for _, address := range e.Addresses {
		for _, p := range slice.Ports {
			at := netip.AddrPortFrom(netip.MustParseAddr(address), uint16(*p.Port))
			all = append(all, claim{
				Backend:  Backend{Addr: at, Cluster: cluster, State: state},
				protocol: string(*p.Protocol), portName: *p.Name, local: local, node: nodeOf(e),
			})
		}
	}
	return all
}

func nodeOf(e discoveryv1.Endpoint) string {
	if e.NodeName == nil {
		return ""
	}
	return *e.NodeName
}

func stateOf(c discoveryv1.EndpointConditions) string {
	ready := c.Ready == nil || *c.Ready
	serving := ready
	if c.Serving != nil {
		serving = *c.Serving
	}
	switch {
	case ready:
		return "active"
	case serving:
		return "terminating"
	}
	return "not-ready"
}

func addService(table Table, s *corev1.Service, all []claim) {
	for _, address := range s.Spec.ClusterIPs {
		ip, err := netip.ParseAddr(address)
		if err != nil {
			continue // "None": a headless service has no frontend
		}
		for _, p := range s.Spec.Ports {
			f := Frontend{Addr: netip.AddrPortFrom(ip, uint16(p.Port)), Protocol: string(p.Protocol)}
			table[f] = decide(s, matching(all, ip, p))
		}
	}
}

func matching(all []claim, ip netip.Addr, p corev1.ServicePort) []claim {
	var match []claim
	for _, c := range all {
		names := c.portName == p.Name || c.portName == "" || p.Name == ""
		if c.protocol == string(p.Protocol) && c.Addr.Addr().Is4() == ip.Is4() && names {
			match = append(match, c)
		}
	}
	return match
}

// decide applies the affinity to the sides and Kubernetes' rule for terminating
// endpoints within the sides that are left.
func decide(s *corev1.Service, all []claim) Entry {
	e := Entry{
		Service: s.Namespace + "/" + s.Name, Affinity: affinityOf(s),
		Selected: map[Backend]bool{}, Others: map[Backend]bool{},
	}
	var used []claim
	for _, c := range all {
		if c.State != "not-ready" && sideAllowed(e.Affinity, c.local, all) {
			used = append(used, c)
		}
	}
	anyActive := slices.ContainsFunc(used, func(c claim) bool { return c.State == "active" })
	for _, c := range used {
		e.Selected[c.Backend] = c.State == "active" || !anyActive
	}
	for _, c := range all {
		if !e.Selected[c.Backend] {
			e.Others[c.Backend] = true
		}
	}
	for b, on := range e.Selected {
		if !on {
			delete(e.Selected, b)
		}
	}
	return e
}

func sideAllowed(affinity string, local bool, all []claim) bool {
	has := func(local bool, states ...string) bool {
		return slices.ContainsFunc(all, func(c claim) bool { return c.local == local && slices.Contains(states, c.State) })
	}
	switch {
	case affinity == "local" && !local:
		return !has(true, "active")
	case affinity == "remote" && local:
		return !has(false, "active", "terminating")
	}
	return true
}
