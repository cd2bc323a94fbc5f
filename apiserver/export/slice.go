package export

import (
	"fmt"
	"net/netip"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// share notes whether a service is open to other clusters, which decides on
// all its slices. They are looked at anew only if it changed: what a slice says
// depends on nothing else of its service.
func (e *Exporter) share(service name, shared bool) {
	_, was := e.shared[service]
	if shared == was {
		return
	}
	store(e.shared, service, struct{}{}, !shared)
	for slice := range e.slicesOf[service] {
		e.touchSlice(slice)
	}
}

// exportSlice publishes a slice whole, with endpoints that are not ready and
// with all labels and annotations, if its service is shared.
func (e *Exporter) exportSlice(n name) {
	f := &findings{object: "EndpointSlice " + n.String()}
	var value []byte
	if s := e.slices[n]; s != nil && e.open(s) {
		value = e.encodeSlice(s, f)
	}
	e.set(schema.KindEndpointSlice, schema.EndpointSliceKey(e.config.Cluster, n.namespace, n.name), value)
	e.report(f.object, f.found)
}

// open leaves out slices of host names, which no reader takes.
func (e *Exporter) open(s *discoveryv1.EndpointSlice) bool {
	_, shared := e.shared[serviceOf(s)]
	return shared && s.Labels[discoveryv1.LabelManagedBy] != meshManaged && s.AddressType != discoveryv1.AddressTypeFQDN
}

func (e *Exporter) encodeSlice(s *discoveryv1.EndpointSlice, f *findings) []byte {
	record := schema.EndpointSlice{
		Cluster: e.config.Cluster, ClusterID: e.config.ClusterID, Namespace: s.Namespace, Name: s.Name,
		Labels: s.Labels, Annotations: s.Annotations, AddressType: schema.IPFamily(s.AddressType),
	}
	for i := range s.Endpoints {
		if ep, ok := sliceEndpoint(&s.Endpoints[i], record.AddressType, f); ok {
			record.Endpoints = append(record.Endpoints, ep)
		}
	}
	for i := range s.Ports {
		if p, ok := slicePort(&s.Ports[i], f); ok {
			record.Ports = append(record.Ports, p)
		}
	}
	if err := record.Validate(); err != nil {
		f.add(InvalidSlice, fmt.Sprintf("the slice is not exported: %v", err))
		return nil
	}
	return e.fitSlice(&record, f)
}

// sliceEndpoint reports false for an endpoint without an address that readers
// take, since they refuse the whole slice for one.
func sliceEndpoint(ep *discoveryv1.Endpoint, family schema.IPFamily, f *findings) (schema.Endpoint, bool) {
	out := schema.Endpoint{
		Ready:       schema.ConditionOf(ep.Conditions.Ready),
		Serving:     schema.ConditionOf(ep.Conditions.Serving),
		Terminating: schema.ConditionOf(ep.Conditions.Terminating),
		Hostname:    deref(ep.Hostname), NodeName: deref(ep.NodeName), Zone: deref(ep.Zone), ForZones: forZones(ep),
	}
	for _, text := range ep.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || a.Is4() != (family == schema.IPv4) || a.Is4In6() {
			f.add(InvalidAddress, fmt.Sprintf("endpoint address %q is not of addressType %s; correct it", text, family))
			continue
		}
		out.Addresses = append(out.Addresses, a)
	}
	return out, len(out.Addresses) > 0
}

// slicePort keeps a port without a number, which leaves it open.
func slicePort(p *discoveryv1.EndpointPort, f *findings) (schema.SlicePort, bool) {
	out := schema.SlicePort{Name: deref(p.Name), Protocol: schema.TCP, AppProtocol: deref(p.AppProtocol)}
	if p.Protocol != nil && *p.Protocol != "" {
		out.Protocol = schema.Protocol(*p.Protocol)
	}
	if p.Port == nil {
		return out, true
	}
	l4, ok := parsePort(*p.Port, deref(p.Protocol), f)
	out.Port = l4.Port
	return out, ok
}

// fitSlice encodes a slice within the readers' limits. Kubernetes' own
// controllers stay far below them, with 100 endpoints in a slice.
func (e *Exporter) fitSlice(s *schema.EndpointSlice, f *findings) []byte {
	limits, all := schema.DefaultLimits(), len(s.Endpoints)
	value := e.codec.Encode(s)
	for (len(value) > limits.MaxValueBytes || addresses(s) > limits.MaxBackends) && len(s.Endpoints) > 0 {
		s.Endpoints = s.Endpoints[:len(s.Endpoints)*3/4]
		value = e.codec.Encode(s)
	}
	reportCut(f, "endpoints of the slice to other clusters", len(s.Endpoints), all)
	return value
}

func addresses(s *schema.EndpointSlice) int {
	n := 0
	for i := range s.Endpoints {
		n += len(s.Endpoints[i].Addresses)
	}
	return n
}
