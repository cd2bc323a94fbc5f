package export

import (
	"fmt"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
)

// exportExport publishes a ServiceExport together with the service of its
// name. Whether the service is global does not matter: the export says so.
func (e *Exporter) exportExport(n name) {
	if !e.config.ServiceExports {
		return
	}
	f := &findings{object: "ServiceExport " + n.String()}
	var value []byte
	if x, s := e.exports[n], e.services[n]; x != nil && s != nil && e.mayExport(n, s, f) {
		value = e.encodeExport(x, s, f)
	}
	e.set(schema.KindServiceExport, schema.ServiceExportKey(e.config.Cluster, n.namespace, n.name), value)
	e.report(f.object, f.found)
}

func (e *Exporter) mayExport(n name, s *corev1.Service, f *findings) bool {
	if _, other := s.Labels[proxyNameLabel]; other {
		return false
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		f.add(UnsupportedType, "its service is of type ExternalName, which has no backends to export; delete the ServiceExport")
		return false
	}
	e.checkNamespace(n.namespace, f)
	return e.global(n.namespace)
}

func (e *Exporter) encodeExport(x *ServiceExport, s *corev1.Service, f *findings) []byte {
	record := schema.ServiceExport{
		Cluster: e.config.Cluster, Namespace: s.Namespace, Name: s.Name,
		Annotations: x.Spec.ExportedAnnotations, Labels: x.Spec.ExportedLabels,
		Ports: exportPorts(s, f), Type: schema.ExportClusterSetIP,
		SessionAffinity:       schema.SessionAffinityNone,
		InternalTrafficPolicy: string(deref(s.Spec.InternalTrafficPolicy)),
		TrafficDistribution:   deref(s.Spec.TrafficDistribution),
	}
	if x.CreationTimestamp.IsZero() {
		f.add(InvalidExport, "metadata.creationTimestamp is missing, by which clusters decide whose export counts; write it")
		return nil
	}
	record.Created = x.CreationTimestamp.Unix()
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		record.Type = schema.ExportHeadless
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		record.SessionAffinity = schema.SessionAffinityClientIP
	}
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && deref(c.ClientIP.TimeoutSeconds) > 0 {
		record.SessionAffinitySeconds = uint32(*c.ClientIP.TimeoutSeconds)
	}
	for _, family := range s.Spec.IPFamilies {
		record.IPFamilies = append(record.IPFamilies, schema.IPFamily(family))
	}
	if err := record.Validate(); err != nil {
		f.add(InvalidExport, fmt.Sprintf("the export is not published: %v", err))
		return nil
	}
	return record.Encode()
}

func exportPorts(s *corev1.Service, f *findings) []schema.ExportPort {
	var ports []schema.ExportPort
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if l4, ok := parsePort(p.Port, p.Protocol, f); ok {
			ports = append(ports, schema.ExportPort{Name: p.Name, Protocol: l4.Protocol, AppProtocol: deref(p.AppProtocol), Port: l4.Port})
		}
	}
	return ports
}
