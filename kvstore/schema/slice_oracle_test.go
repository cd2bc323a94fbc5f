package schema

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/clustermesh/clustermesh/kvstore/schema/schemapb"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"pgregory.net/rapid"
)

var (
	genCondition = rapid.SampledFrom([]Condition{ConditionUnknown, ConditionFalse, ConditionTrue})
	genSlicePort = rapid.Custom(func(t *rapid.T) SlicePort {
		return SlicePort{genToken.Draw(t, "name"), genProtocol.Draw(t, "protocol"), rapid.Uint16().Draw(t, "port"), genToken.Draw(t, "app")}
	})
	genSlice = rapid.Custom(func(t *rapid.T) *EndpointSlice {
		family := rapid.SampledFrom([]IPFamily{IPv4, IPv6}).Draw(t, "family")
		addr := genAddr.Filter(func(a netip.Addr) bool { return isOf(family, a) })
		endpoint := rapid.Custom(func(t *rapid.T) Endpoint { return drawEndpoint(t, addr) })
		return &EndpointSlice{
			Cluster: "east", ClusterID: 7, Namespace: genName.Draw(t, "namespace"), Name: genName.Draw(t, "name"),
			Labels:      emptyToNil(genTexts.Draw(t, "labels")),
			Annotations: emptyToNil(genTexts.Draw(t, "annotations")),
			AddressType: family,
			Endpoints:   orNil(rapid.SliceOfN(endpoint, 0, 12).Draw(t, "endpoints")),
			Ports:       orNil(rapid.SliceOfN(genSlicePort, 0, 4).Draw(t, "ports")),
		}
	})
)

func drawEndpoint(t *rapid.T, addr *rapid.Generator[netip.Addr]) Endpoint {
	return Endpoint{
		Addresses: rapid.SliceOfN(addr, 1, 3).Draw(t, "addresses"),
		Ready:     genCondition.Draw(t, "ready"), Serving: genCondition.Draw(t, "serving"), Terminating: genCondition.Draw(t, "terminating"),
		Hostname: genToken.Draw(t, "hostname"), NodeName: genToken.Draw(t, "node"), Zone: genToken.Draw(t, "zone"),
		ForZones: orNil(rapid.SliceOfN(genToken, 0, 3).Draw(t, "hints")),
	}
}

func TestEndpointSlicesRoundTrip(t *testing.T) {
	var c SliceCodec
	rapid.Check(t, func(t *rapid.T) {
		want := genSlice.Draw(t, "slice")
		if err := want.Validate(); err != nil {
			t.Fatal(err)
		}
		got, err := c.Decode(east(false), EndpointSliceKey("east", want.Namespace, want.Name), c.Encode(want), DefaultLimits())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("decoded %+v, want %+v (%v)", got, want, err)
		}
	})
}

// The generated code reads what we write and writes what we read, with the
// same bytes.
func TestSliceMessagesAgreeWithGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSlice.Draw(t, "slice")
		ours := appendSlice(nil, s)
		var m schemapb.EndpointSlice
		if err := proto.Unmarshal(ours, &m); err != nil {
			t.Fatal(err)
		}
		if read, ok := oracleSlice(&m); !ok || !reflect.DeepEqual(read, s) {
			t.Fatalf("generated code reads %+v, want %+v", read, s)
		}
		theirs, err := proto.MarshalOptions{Deterministic: true}.Marshal(&m)
		if err != nil || string(theirs) != string(ours) {
			t.Fatalf("generated code writes %x, want %x (%v)", theirs, ours, err)
		}
	})
}

// oracleSlice takes a slice out of the generated type in the plainest way, and
// reports whether its texts are acceptable.
func oracleSlice(m *schemapb.EndpointSlice) (*EndpointSlice, bool) {
	s := &EndpointSlice{
		Cluster: m.GetCluster(), ClusterID: m.GetClusterId(), Namespace: m.GetNamespace(), Name: m.GetName(),
		Labels: emptyToNil(m.Labels), Annotations: emptyToNil(m.Annotations), AddressType: IPFamily(m.GetAddressType()),
	}
	ok := m.Cluster != nil && m.ClusterId != nil && m.Namespace != nil && m.Name != nil && isFamily(s.AddressType)
	for _, texts := range []map[string]string{m.Labels, m.Annotations} {
		for k, v := range texts {
			ok = ok && utf8.ValidString(k) && utf8.ValidString(v)
		}
	}
	for _, e := range m.Endpoints {
		endpoint, good := oracleEndpoint(s.AddressType, e)
		s.Endpoints, ok = append(s.Endpoints, endpoint), ok && good
	}
	for _, p := range m.Ports {
		port, good := oraclePort(p)
		s.Ports, ok = append(s.Ports, port), ok && good
	}
	return s, ok
}

func oracleEndpoint(family IPFamily, m *schemapb.Endpoint) (Endpoint, bool) {
	e := Endpoint{
		Hostname: m.GetHostname(), NodeName: m.GetNodeName(), Zone: m.GetZone(),
	}
	if c := m.Conditions; c != nil {
		e.Ready, e.Serving, e.Terminating = ConditionOf(c.Ready), ConditionOf(c.Serving), ConditionOf(c.Terminating)
	}
	ok := len(m.Addresses) > 0 && allTokens(e.Hostname, e.NodeName, e.Zone)
	for _, text := range m.Addresses {
		a, err := netip.ParseAddr(text)
		good := err == nil && a.Zone() == "" && (family == IPv4 && a.Is4() || family == IPv6 && a.Is6() && !a.Is4In6())
		e.Addresses, ok = append(e.Addresses, a), ok && good
	}
	for _, z := range m.GetHints().GetForZones() {
		e.ForZones, ok = append(e.ForZones, z.GetName()), ok && allTokens(z.GetName())
	}
	return e, ok
}

func oraclePort(m *schemapb.EndpointPort) (SlicePort, bool) {
	p := SlicePort{Name: m.GetName(), Protocol: TCP, Port: uint16(m.GetPort()), AppProtocol: m.GetAppProtocol()}
	if m.Protocol != nil {
		p.Protocol = Protocol(*m.Protocol)
	}
	return p, len(p.Name) <= 63 && allTokens(p.Name, p.AppProtocol) && isProtocol(p.Protocol) && m.GetPort() == int32(p.Port)
}

func allTokens(texts ...string) bool {
	for _, text := range texts {
		if !oracleToken.MatchString(text) {
			return false
		}
	}
	return true
}

// Endpoints and ports have the bytes that Kubernetes' own code gives them: in
// Cilium they are its types.
func TestEndpointsAndPortsAreEncodedAsByKubernetes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSlice.Draw(t, "slice")
		for i := range s.Endpoints {
			checkKubernetes(t, appendEndpoint(nil, &s.Endpoints[i]), kubernetesEndpoint(&s.Endpoints[i]))
		}
		for i := range s.Ports {
			checkKubernetes(t, appendSlicePort(nil, &s.Ports[i]), kubernetesPort(&s.Ports[i]))
		}
	})
}

func checkKubernetes(t *rapid.T, ours []byte, object interface{ Marshal() ([]byte, error) }) {
	theirs, err := object.Marshal()
	if err != nil || string(theirs) != string(ours) {
		t.Fatalf("Kubernetes writes %x, we %x (%v)", theirs, ours, err)
	}
}

func kubernetesEndpoint(e *Endpoint) *discoveryv1.Endpoint {
	k := &discoveryv1.Endpoint{
		Conditions: discoveryv1.EndpointConditions{Ready: pointer(e.Ready), Serving: pointer(e.Serving), Terminating: pointer(e.Terminating)},
		Hostname:   nonEmpty(e.Hostname), NodeName: nonEmpty(e.NodeName), Zone: nonEmpty(e.Zone),
	}
	for _, a := range e.Addresses {
		k.Addresses = append(k.Addresses, a.String())
	}
	for _, zone := range e.ForZones {
		if k.Hints == nil {
			k.Hints = &discoveryv1.EndpointHints{}
		}
		k.Hints.ForZones = append(k.Hints.ForZones, discoveryv1.ForZone{Name: zone})
	}
	return k
}

func kubernetesPort(p *SlicePort) *discoveryv1.EndpointPort {
	protocol := corev1.Protocol(p.Protocol)
	k := &discoveryv1.EndpointPort{Name: &p.Name, Protocol: &protocol, AppProtocol: nonEmpty(p.AppProtocol)}
	if port := int32(p.Port); port != 0 {
		k.Port = &port
	}
	return k
}

func pointer(c Condition) *bool {
	if c == ConditionUnknown {
		return nil
	}
	value := c == ConditionTrue
	return &value
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func TestValidateSliceNamesTheWrongField(t *testing.T) {
	tests := []struct {
		field string
		alter func(*EndpointSlice)
	}{
		{"cluster name", func(s *EndpointSlice) { s.Cluster = "East" }},
		{"clusterID", func(s *EndpointSlice) { s.ClusterID = 0 }},
		{"namespace", func(s *EndpointSlice) { s.Namespace = "" }},
		{"name", func(s *EndpointSlice) { s.Name = "a/b" }},
		{"labels/a", func(s *EndpointSlice) { s.Labels["a"] = "\xff" }},
		{"annotations", func(s *EndpointSlice) { s.Annotations["\xff"] = "" }},
		{"addressType", func(s *EndpointSlice) { s.AddressType = "FQDN"; s.Endpoints = nil }},
		{"endpoints/addresses", func(s *EndpointSlice) { s.Endpoints[0].Addresses = nil }},
		{"endpoints/addresses", func(s *EndpointSlice) { s.Endpoints[0].Addresses = addrs("fd00::1") }},
		{"endpoints/addresses", func(s *EndpointSlice) { s.Endpoints[0].Addresses = []netip.Addr{{}} }},
		{"endpoints/addresses", func(s *EndpointSlice) {
			s.AddressType, s.Endpoints = IPv6, s.Endpoints[:1]
			s.Endpoints[0].Addresses = addrs("fe80::1%eth0")
		}},
		{"endpoints/conditions", func(s *EndpointSlice) { s.Endpoints[0].Serving = 3 }},
		{"endpoints/hostname", func(s *EndpointSlice) { s.Endpoints[0].Hostname = "a b" }},
		{"endpoints/nodeName", func(s *EndpointSlice) { s.Endpoints[0].NodeName = "a b" }},
		{"endpoints/zone", func(s *EndpointSlice) { s.Endpoints[0].Zone = "a b" }},
		{"endpoints/hints/forZones/name", func(s *EndpointSlice) { s.Endpoints[0].ForZones = []string{"a b"} }},
		{"ports/name", func(s *EndpointSlice) { s.Ports[0].Name = "a b" }},
		{"ports/name", func(s *EndpointSlice) { s.Ports[0].Name = strings.Repeat("p", 64) }},
		{"ports/protocol", func(s *EndpointSlice) { s.Ports[0].Protocol = "" }},
		{"ports/appProtocol", func(s *EndpointSlice) { s.Ports[0].AppProtocol = "a b" }},
	}
	for _, tt := range tests {
		s := webSlice()
		tt.alter(s)
		wantField(t, s.Validate(), tt.field)
	}
	s := webSlice()
	s.ClusterID, s.Namespace = 0, ""
	if err := s.Validate(); strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two problems are reported as %v", err)
	}
}

// beyondSliceOracle reports whether a message was refused for what generated
// code does not look at.
func beyondSliceOracle(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, reason := range []string{"may occur once", "wire type", "at most", "twice", "in range"} {
		if strings.Contains(e.Reason, reason) && e.Reason != tokenReason && e.Reason != portNameReason {
			return true
		}
	}
	return false
}
