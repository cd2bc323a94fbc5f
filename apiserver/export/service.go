package export

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
)

const (
	headlessLabel     = corev1.IsHeadlessService
	proxyNameLabel    = "service.kubernetes.io/service-proxy-name"
	defaultStickiness = corev1.DefaultClientIPServiceAffinitySeconds
)

// exportService computes the records of a service, and decides whether others
// may see its slices.
func (e *Exporter) exportService(n name) {
	f := &findings{object: "Service " + n.String()}
	var public, local []byte
	shared := false
	if s := e.services[n]; s != nil {
		public, local, shared = e.encodeService(n, s, f)
	}
	e.set(schema.KindService, schema.ServiceKey(e.config.Cluster, n.namespace, n.name), public)
	e.set(schema.KindLocalService, schema.LocalServiceKey(e.config.Cluster, n.namespace, n.name), local)
	e.report(f.object, f.found)
	e.share(n, shared)
	e.noted[n] = struct{}{}
	e.exportExport(n)
}

func (e *Exporter) encodeService(n name, s *corev1.Service, f *findings) (public, local []byte, shared bool) {
	p := policyOf(s, f)
	if !p.global || !e.exportable(n, s, f) {
		return nil, nil, false
	}
	m := newMerge(f)
	for _, slice := range e.sortedSlices(n) {
		m.add(slice)
	}
	if p.shared && e.config.EndpointSlices != schema.ModeEndpointSlicesOnly {
		public = e.encodePublic(s, m, f)
	}
	return public, e.encodeLocal(s, p, m, f), p.shared
}

func (e *Exporter) exportable(n name, s *corev1.Service, f *findings) bool {
	if _, other := s.Labels[proxyNameLabel]; other {
		return false
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		f.add(UnsupportedType, "type ExternalName has no backends to share; remove the annotation "+globalAnnotation)
		return false
	}
	e.checkNamespace(n.namespace, f)
	return e.global(n.namespace)
}

func (e *Exporter) checkNamespace(namespace string, f *findings) {
	if e.namespaces[namespace] == nil {
		f.add(NamespaceMissing, fmt.Sprintf("namespace %q is not known, so nothing says that it is global; create it", namespace))
	}
}

func (e *Exporter) encodePublic(s *corev1.Service, m *merge, f *findings) []byte {
	record := schema.Service{
		Cluster: e.config.Cluster, Namespace: s.Namespace, Name: s.Name, ClusterID: e.config.ClusterID,
		Frontends: map[netip.Addr]schema.PortMap{},
		Backends:  m.backends, Hostnames: m.hostnames, Zones: m.zones,
		Labels: s.Labels, Selector: s.Spec.Selector,
		IncludeExternal: true, Shared: true, // what every exporter of Cilium writes
	}
	ports := servicePorts(s, f)
	for _, a := range clusterIPs(s, f) {
		record.Frontends[a] = ports
	}
	return fitPublic(&record, f)
}

func (e *Exporter) encodeLocal(s *corev1.Service, p policy, m *merge, f *findings) []byte {
	record := schema.LocalService{
		Cluster: e.config.Cluster, ClusterID: e.config.ClusterID, Namespace: s.Namespace, Name: s.Name,
		Shared: p.shared, Affinity: p.affinity, Headless: headless(s),
		Frontends: frontendsAt(clusterIPs(s, f), s, false, f), Backends: m.localBackends(), Policy: own(s.Annotations, f),
	}
	localPolicy(&record, s)
	outside(&record, s, f)
	return fitLocal(&record, f)
}

func localPolicy(record *schema.LocalService, s *corev1.Service) {
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		record.SessionAffinity, record.SessionAffinitySeconds = "ClientIP", stickiness(s)
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		record.InternalTrafficPolicy = "Local"
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		record.TrafficDistribution = *d
	}
}

func stickiness(s *corev1.Service) uint32 {
	c := s.Spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil || *c.ClientIP.TimeoutSeconds < 0 {
		return uint32(defaultStickiness)
	}
	return uint32(*c.ClientIP.TimeoutSeconds)
}

func headless(s *corev1.Service) bool {
	_, labelled := s.Labels[headlessLabel]
	return labelled || s.Spec.ClusterIP == corev1.ClusterIPNone || slices.Contains(s.Spec.ClusterIPs, corev1.ClusterIPNone)
}

// clusterIPs returns the service's own addresses; none if it is headless or
// has none yet. Cilium writes an empty address in the latter case, which its
// readers refuse together with the whole record.
func clusterIPs(s *corev1.Service, f *findings) []netip.Addr {
	if headless(s) {
		return nil
	}
	texts := s.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{s.Spec.ClusterIP}
	}
	var addresses []netip.Addr
	for _, text := range texts {
		if a, ok := parseAddress(text, "clusterIP", f); ok {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// parseAddress parses an address into the form that is used in keys. An empty
// text is no address and no problem.
func parseAddress(text, field string, f *findings) (netip.Addr, bool) {
	if text == "" {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		f.add(InvalidAddress, fmt.Sprintf("%s %q is not an IP address without a zone; correct it", field, text))
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

func servicePorts(s *corev1.Service, f *findings) schema.PortMap {
	ports := schema.PortMap{}
	for _, p := range s.Spec.Ports {
		if l4, ok := parsePort(p.Port, p.Protocol, f); ok {
			ports[p.Name] = l4
		}
	}
	return ports
}

func parsePort(number int32, protocol corev1.Protocol, f *findings) (schema.L4, bool) {
	l4 := schema.L4{Protocol: schema.Protocol(protocol), Port: uint16(number)}
	if protocol == "" {
		l4.Protocol = schema.TCP
	}
	known := l4.Protocol == schema.TCP || l4.Protocol == schema.UDP || l4.Protocol == schema.SCTP
	if !known || number < 1 || number > 65535 {
		f.add(InvalidPort, fmt.Sprintf("port %d with protocol %q is left out; use 1 to 65535 and TCP, UDP or SCTP", number, protocol))
		return schema.L4{}, false
	}
	return l4, true
}

// frontendsAt are all ports of a service at some addresses, each once.
func frontendsAt(addresses []netip.Addr, s *corev1.Service, external bool, f *findings) []schema.LocalFrontend {
	frontends := []schema.LocalFrontend{}
	ports := servicePorts(s, f)
	for _, a := range addresses {
		for _, portName := range slices.Sorted(maps.Keys(ports)) {
			l4 := ports[portName]
			frontends = append(frontends, schema.LocalFrontend{Address: a, Port: l4.Port, Protocol: l4.Protocol, PortName: portName, External: external})
		}
	}
	sortFrontends(frontends)
	return slices.Compact(frontends) // an address may be external and of the load balancer
}

func sortFrontends(frontends []schema.LocalFrontend) {
	slices.SortStableFunc(frontends, func(a, b schema.LocalFrontend) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
}
