package interop

import (
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// format is where an agent reads another cluster's backends from. Services say
// of an endpoint only that it serves, slices say its state too.
type format int

const (
	fromServices format = iota
	fromSlices
)

// expectedTable is what the maps of own's nodes must hold, given the objects of
// both clusters.
func expectedTable(own, other *cluster, f format) oracle.Table {
	table := oracle.Table{}
	for file, s := range own.services {
		if !own.global(s) {
			continue
		}
		all := own.claims(s, fromSlices)
		if theirs := other.services[file]; theirs != nil && other.exported(theirs) {
			all = append(all, other.claims(theirs, f)...)
		}
		for _, text := range s.Spec.ClusterIPs {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				continue // "None": a headless service has no frontend
			}
			for _, p := range s.Spec.Ports {
				frontend := oracle.Frontend{Addr: netip.AddrPortFrom(ip, uint16(p.Port)), Protocol: string(p.Protocol)}
				table[frontend] = decide(own, s, serving(all, ip, p))
			}
		}
	}
	return table
}

func (c *cluster) global(s *corev1.Service) bool {
	return said(s.Annotations, false, "service.cilium.io/global", "io.cilium/global-service") && c.globalNamespace(s.Namespace)
}

// claim is one port of one endpoint.
type claim struct {
	oracle.Backend
	protocol, name string
}

func (c *cluster) claims(s *corev1.Service, f format) []claim {
	var all []claim
	for _, slice := range c.slicesOf(s) {
		for _, e := range slice.Endpoints {
			state := stateOf(e.Conditions)
			if f == fromServices && state == "not-ready" {
				continue
			}
			if f == fromServices {
				state = "active"
			}
			for _, p := range slice.Ports {
				at := netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), uint16(*p.Port))
				all = append(all, claim{oracle.Backend{Addr: at, Cluster: c.name, State: state}, string(*p.Protocol), *p.Name})
			}
		}
	}
	return all
}

func stateOf(c discoveryv1.EndpointConditions) string {
	switch {
	case c.Ready == nil || *c.Ready:
		return "active"
	case c.Serving != nil && *c.Serving:
		return "terminating"
	}
	return "not-ready"
}

// serving are the claims that a frontend of that address and port may use. A
// port without a name matches every name.
func serving(all []claim, ip netip.Addr, p corev1.ServicePort) []claim {
	return slices.DeleteFunc(slices.Clone(all), func(c claim) bool {
		named := c.name == p.Name || c.name == "" || p.Name == ""
		return c.protocol != string(p.Protocol) || c.Addr.Addr().Is4() != ip.Is4() || !named
	})
}

// decide applies the affinity to the two sides, and then the rule that
// terminating endpoints are used only if no other is left.
func decide(own *cluster, s *corev1.Service, all []claim) oracle.Entry {
	e := oracle.Entry{
		Service: s.Namespace + "/" + s.Name, Affinity: affinity(s),
		Selected: map[oracle.Backend]bool{}, Others: map[oracle.Backend]bool{},
	}
	counts := map[bool]map[string]int{true: {}, false: {}} // by side, local or not
	for _, c := range all {
		counts[c.Cluster == own.name][c.State]++
	}
	useLocal, useRemote := true, true
	switch e.Affinity {
	case "local":
		useRemote = counts[true]["active"] == 0
	case "remote":
		useLocal = counts[false]["active"]+counts[false]["terminating"] == 0
	}
	active := useLocal && counts[true]["active"] > 0 || useRemote && counts[false]["active"] > 0
	for _, c := range all {
		used := c.Cluster == own.name && useLocal || c.Cluster != own.name && useRemote
		if used && (c.State == "active" || c.State == "terminating" && !active) {
			e.Selected[c.Backend] = true
		} else {
			e.Others[c.Backend] = true
		}
	}
	return e
}

func affinity(s *corev1.Service) string {
	for _, spelling := range []string{"service.cilium.io/affinity", "io.cilium/service-affinity"} {
		if value, ok := s.Annotations[spelling]; ok {
			return value
		}
	}
	return "none"
}
