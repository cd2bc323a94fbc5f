package schema

import (
	"errors"
	"net/netip"
)

// serviceNameLabel ties an endpoint slice to its service.
const serviceNameLabel = "kubernetes.io/service-name"

// ServiceName returns the name of the service, in the slice's namespace, whose
// endpoints these are, as the slice's label says. It is "" if the label is
// absent or names nothing that Kubernetes would let a service be called.
func (s *EndpointSlice) ServiceName() string {
	if name := s.Labels[serviceNameLabel]; validName(name) {
		return name
	}
	return ""
}

// Or returns a condition's value, or missing if it is unknown.
func (c Condition) Or(missing bool) bool {
	if c == ConditionUnknown {
		return missing
	}
	return c == ConditionTrue
}

// ConditionOf returns the condition that a *bool of Kubernetes states.
func ConditionOf(value *bool) Condition {
	switch {
	case value == nil:
		return ConditionUnknown
	case *value:
		return ConditionTrue
	}
	return ConditionFalse
}

// Validate checks a slice before it is published, against what readers refuse:
// names, an id, one family for all addresses, known protocols, and texts within
// the alphabets that [SliceCodec.Decode] accepts. How many there are of each is
// not looked at. The error joins an *[Error] per field.
func (s *EndpointSlice) Validate() error {
	c := checker{key: EndpointSliceKey(s.Cluster, s.Namespace, s.Name)}
	c.source(s.Cluster, s.Namespace, s.Name)
	c.that(s.ClusterID != 0, "clusterID", "0", "0 is reserved; announce the cluster's own id")
	c.texts("labels", s.Labels)
	c.texts("annotations", s.Annotations)
	c.that(isFamily(s.AddressType), "addressType", string(s.AddressType), familyReason)
	for i := range s.Endpoints {
		c.endpoint(s.AddressType, &s.Endpoints[i])
	}
	for _, p := range s.Ports {
		c.token("ports/name", p.Name)
		c.that(len(p.Name) <= maxPortName, "ports/name", p.Name, portNameReason)
		c.that(isProtocol(p.Protocol), "ports/protocol", string(p.Protocol), protocolReason)
		c.token("ports/appProtocol", p.AppProtocol)
	}
	return errors.Join(c.problems...)
}

func (c *checker) endpoint(family IPFamily, e *Endpoint) {
	c.that(len(e.Addresses) > 0, "endpoints/addresses", "", "must hold an address")
	for _, a := range e.Addresses {
		c.that(isOf(family, a), "endpoints/addresses", a.String(), addressReason(family))
	}
	for _, condition := range [...]Condition{e.Ready, e.Serving, e.Terminating} {
		c.that(condition <= ConditionTrue, "endpoints/conditions", decimal(uint32(condition)), "must be one of the declared conditions")
	}
	c.token("endpoints/hostname", e.Hostname)
	c.token("endpoints/nodeName", e.NodeName)
	c.token("endpoints/zone", e.Zone)
	for _, zone := range e.ForZones {
		c.token("endpoints/hints/forZones/name", zone)
	}
}

// The reasons for refusing a value that both a reader and a checker may give.
const (
	familyReason   = "must be IPv4 or IPv6"
	protocolReason = "must be TCP, UDP or SCTP"
	textReason     = "must be valid UTF-8"
)

func isFamily(f IPFamily) bool { return f == IPv4 || f == IPv6 }

func isProtocol(p Protocol) bool { return p == TCP || p == UDP || p == SCTP }

// isOf reports whether an address is plainly of a family: an IPv4 address in
// IPv6 form is of neither, as readers differ in what they take it for.
func isOf(family IPFamily, a netip.Addr) bool {
	if family == IPv4 {
		return a.Is4()
	}
	return a.Is6() && !a.Is4In6() && a.Zone() == ""
}

func addressReason(family IPFamily) string {
	return "must be an " + string(family) + " address without a zone, as the slice's addressType says"
}
