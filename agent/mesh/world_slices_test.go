package mesh_test

import (
	"net/netip"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

const (
	serviceLabel = "kubernetes.io/service-name"
	managerLabel = "endpointslice.kubernetes.io/managed-by"
	meshManager  = "endpointslice-mesh-controller.cilium.io"
)

// genSlice makes a slice of either service, whatever its name. Its endpoints
// may name an address twice.
func genSlice(t *rapid.T, codec *schema.SliceCodec, cluster string, n lb.ServiceName) entry {
	service := genService(t)
	s := schema.EndpointSlice{Cluster: cluster, ClusterID: ids[cluster], Namespace: n.Namespace, Name: n.Name, AddressType: schema.IPv4,
		Labels: map[string]string{serviceLabel: service.Name, managerLabel: "endpointslice-controller.k8s.io"}}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"", "a", "b"}), 0, 3, rapid.ID).Draw(t, "names") {
		s.Ports = append(s.Ports, schema.SlicePort{Name: name, Protocol: schema.TCP, Port: rapid.SampledFrom([]uint16{8080, 8081, 0}).Draw(t, "port")})
	}
	e := entry{service: service}
	for range rapid.IntRange(0, 3).Draw(t, "endpoints") {
		e.addEndpoint(t, &s)
	}
	e.backends = join(e.backends)
	return spoilSlice(t, codec, &s, e)
}

func spoilSlice(t *rapid.T, codec *schema.SliceCodec, s *schema.EndpointSlice, e entry) entry {
	switch rapid.IntRange(0, 14).Draw(t, "spoil") {
	case 0:
		return entry{value: codec.Encode(s)[1:], refused: true}
	case 1:
		s.Cluster = "north-by-northwest"
	case 2:
		s.ClusterID = ownID
	case 3:
		s.Labels[managerLabel] = meshManager
	case 4:
		delete(s.Labels, serviceLabel)
	default:
		e.value = codec.Encode(s)
		return e
	}
	return entry{value: codec.Encode(s), refused: true}
}

func (e *entry) addEndpoint(t *rapid.T, s *schema.EndpointSlice) {
	condition := rapid.SampledFrom([]schema.Condition{schema.ConditionUnknown, schema.ConditionFalse, schema.ConditionTrue})
	ep := schema.Endpoint{Ready: condition.Draw(t, "ready"), Serving: condition.Draw(t, "serving"), Terminating: condition.Draw(t, "terminating"),
		Zone: rapid.SampledFrom([]string{"", "zone-a", "zone-b"}).Draw(t, "zone"), Hostname: "web-0", NodeName: "node-1"}
	state := lb.NotReady
	switch {
	case ep.Ready != schema.ConditionFalse:
		state = lb.Active
	case ep.Serving == schema.ConditionTrue && ep.Terminating == schema.ConditionTrue:
		state = lb.Terminating
	}
	for _, i := range rapid.SliceOfNDistinct(rapid.Uint8Range(3, 6), 1, 2, rapid.ID).Draw(t, "addresses") {
		a := netip.AddrFrom4([4]byte{10, 0, 0, i})
		ep.Addresses = append(ep.Addresses, a)
		for _, p := range s.Ports {
			if p.Port == 0 {
				continue
			}
			var names []string
			if p.Name != "" {
				names = []string{p.Name}
			}
			e.backends = append(e.backends, backend(s.Cluster, netip.AddrPortFrom(a, p.Port), names, state, ep.Zone))
		}
	}
	if rapid.IntRange(0, 5).Draw(t, "denied") == 0 { // only that address counts for nothing
		ep.Addresses = append(ep.Addresses, netip.MustParseAddr("169.254.169.254"))
	}
	s.Endpoints = append(s.Endpoints, ep)
}
