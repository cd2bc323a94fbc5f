package schema

import (
	"math"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
)

// sliceReader decodes one message of an endpoint slice.
type sliceReader struct {
	protoReader
	limits    Limits
	addresses []netip.Addr // of the whole slice; endpoints hold parts of it
	states    sameBytes[conditions]
	hints     sameBytes[[]string]
	hinted    int // the zones of all lists that were made
}

// hintsPerEndpoint bounds the zone hints of a slice, lists that are shared
// counted once: as many per endpoint as Kubernetes allows, for as many endpoints
// as the limits do. An empty hint has two bytes, which compress, and takes
// sixteen in memory.
const hintsPerEndpoint = 8

type conditions struct{ ready, serving, terminating Condition }

// decodeSlice decodes the message of an endpoint slice and keeps nothing of it.
func decodeSlice(src Source, namespace, name, key string, message []byte, l Limits) (*EndpointSlice, error) {
	d := sliceReader{protoReader: protoReader{key: key}, limits: l}
	s := &EndpointSlice{}
	d.reserve(message, s)
	d.slice(src, namespace, name, message, s)
	d.checkFamily(s.AddressType)
	if d.err != nil {
		return nil, d.err
	}
	return s, nil
}

// reserve counts the repeated fields, so that each list is made once and never
// for more than is allowed.
func (d *sliceReader) reserve(message []byte, s *EndpointSlice) {
	endpoints, ports := 0, 0
	for f := (protoField{}); d.pull(&message, &f, wholeValue); {
		switch f.number {
		case sliceEndpoints:
			endpoints++
		case slicePorts:
			ports++
		}
	}
	d.room("endpoints", endpoints, d.limits.MaxBackends)
	d.room("ports", ports, d.limits.MaxPorts)
	if d.err != nil {
		return
	}
	if endpoints > 0 {
		s.Endpoints = make([]Endpoint, 0, endpoints)
		d.addresses = make([]netip.Addr, 0, endpoints)
	}
	if ports > 0 {
		s.Ports = make([]SlicePort, 0, ports)
	}
}

func (d *sliceReader) room(field string, n, limit int) {
	if n > limit && d.err == nil {
		d.err = tooMany(d.key, field, n, limit)
	}
}

func (d *sliceReader) slice(src Source, namespace, name string, message []byte, s *EndpointSlice) {
	const keyReason, sourceReason = "as in the key", "the name of this connection's cluster"
	var have seen
	for f := (protoField{}); d.pull(&message, &f, wholeValue); {
		switch f.number {
		case sliceCluster:
			s.Cluster = d.exact(d.single(&have, &f, "cluster"), src.Cluster, sourceReason)
		case sliceClusterID:
			s.ClusterID = d.clusterID(&have, &f, src)
		case sliceNamespace:
			s.Namespace = d.exact(d.single(&have, &f, "namespace"), namespace, keyReason)
		case sliceName:
			s.Name = d.exact(d.single(&have, &f, "name"), name, keyReason)
		case sliceLabels:
			d.entry(&s.Labels, &f, "labels", d.limits.MaxNames)
		case sliceAnnotations:
			d.entry(&s.Annotations, &f, "annotations", d.limits.MaxNames)
		case sliceAddressType:
			s.AddressType = d.family(d.single(&have, &f, "addressType"))
		case sliceEndpoints:
			s.Endpoints = s.Endpoints[:len(s.Endpoints)+1]
			d.endpoint(&f, &s.Endpoints[len(s.Endpoints)-1])
		case slicePorts:
			s.Ports = append(s.Ports, d.port(&f))
		}
	}
	d.require(have, sliceCluster, "cluster")
	d.require(have, sliceClusterID, "clusterID")
	d.require(have, sliceNamespace, "namespace")
	d.require(have, sliceName, "name")
	d.require(have, sliceAddressType, "addressType")
}

func (d *sliceReader) clusterID(have *seen, f *protoField, src Source) uint32 {
	id := uint32(d.uint(have, f, "clusterID", math.MaxUint32))
	if id != src.ClusterID {
		d.fail(decimal(id), "must be "+decimal(src.ClusterID)+", the id that cluster "+src.Cluster+" announces")
	}
	return id
}

func (d *sliceReader) family(text []byte) IPFamily {
	for _, f := range [...]IPFamily{IPv4, IPv6} {
		if string(text) == string(f) {
			return f
		}
	}
	d.fail(excerpt(text), familyReason)
	return ""
}

// endpoint reads an endpoint into its place in the reserved list, as copies of
// it are dear.
func (d *sliceReader) endpoint(f *protoField, e *Endpoint) {
	var have seen
	const name = "endpoints"
	d.is(f, name, protowire.BytesType)
	first := len(d.addresses)
	for part := (protoField{}); d.pull(&f.bytes, &part, name); {
		switch part.number {
		case endpointAddresses:
			d.address(&part)
		case endpointConditions:
			c := d.conditions(d.single(&have, &part, "endpoints/conditions"))
			e.Ready, e.Serving, e.Terminating = c.ready, c.serving, c.terminating
		case endpointHostname:
			e.Hostname = d.intern(d.single(&have, &part, "endpoints/hostname"))
		case endpointNodeName:
			e.NodeName = d.intern(d.single(&have, &part, "endpoints/nodeName"))
		case endpointZone:
			e.Zone = d.intern(d.single(&have, &part, "endpoints/zone"))
		case endpointHints:
			e.ForZones = d.zoneHints(d.single(&have, &part, "endpoints/hints"))
		}
	}
	end := len(d.addresses)
	if end == first {
		d.missing("endpoints/addresses")
	}
	e.Addresses = d.addresses[first:end:end]
}

// address adds an address to the endpoint being read.
func (d *sliceReader) address(f *protoField) {
	d.is(f, "endpoints/addresses", protowire.BytesType)
	a, ok := parseAddr(f.bytes)
	if ok = ok && a.Is4() == isDotted(f.bytes); !ok {
		d.fail(excerpt(f.bytes), "must be an IP address without a zone, not an IPv4 address in IPv6 form")
	}
	d.room(d.field, len(d.addresses)+1, d.limits.MaxBackends)
	if d.err == nil {
		d.addresses = append(d.addresses, a)
	}
}

// isDotted tells an IPv4 address from an IPv4-mapped one, which parseAddr takes
// out of its form.
func isDotted(text []byte) bool {
	for _, c := range text {
		if c == ':' {
			return false
		}
	}
	return true
}

// checkFamily checks the addresses once the family is known, as it may come
// after them.
func (d *sliceReader) checkFamily(family IPFamily) {
	if d.err != nil {
		return
	}
	d.field = "endpoints/addresses"
	for _, a := range d.addresses {
		if !isOf(family, a) {
			d.fail(a.String(), addressReason(family))
		}
	}
}

func (d *sliceReader) conditions(message []byte) conditions {
	c, known := d.states.get(message)
	if known {
		return c
	}
	var have seen
	whole := message
	const name = "endpoints/conditions"
	for f := (protoField{}); d.pull(&message, &f, name); {
		switch f.number {
		case conditionReady:
			c.ready = d.condition(&have, &f, "endpoints/conditions/ready")
		case conditionServing:
			c.serving = d.condition(&have, &f, "endpoints/conditions/serving")
		case conditionTerminating:
			c.terminating = d.condition(&have, &f, "endpoints/conditions/terminating")
		}
	}
	d.states.put(whole, c)
	return c
}

func (d *sliceReader) zoneHints(message []byte) []string {
	if zones, ok := d.hints.get(message); ok {
		return zones
	}
	zones := d.reserveHints(message)
	whole := message
	const name = "endpoints/hints"
	for f := (protoField{}); d.pull(&message, &f, name); {
		if f.number == hintsForZones {
			zones = append(zones, d.forZone(&f))
		}
	}
	d.hints.put(whole, zones)
	return zones
}

// reserveHints makes a list for the hints of a message, nil if there are none or
// more than allowed.
func (d *sliceReader) reserveHints(message []byte) []string {
	n := 0
	for f := (protoField{}); d.pull(&message, &f, "endpoints/hints"); {
		if f.number == hintsForZones {
			n++
		}
	}
	d.hinted += n
	d.room("endpoints/hints/forZones", n, d.limits.MaxNames)
	d.room("zone hints of all endpoints", d.hinted, hintsPerEndpoint*d.limits.MaxBackends)
	if d.err != nil || n == 0 {
		return nil
	}
	return make([]string, 0, n)
}

func (d *sliceReader) forZone(f *protoField) (zone string) {
	var have seen
	const name = "endpoints/hints/forZones"
	d.is(f, name, protowire.BytesType)
	for part := (protoField{}); d.pull(&f.bytes, &part, name); {
		if part.number == forZoneName {
			zone = d.intern(d.single(&have, &part, "endpoints/hints/forZones/name"))
		}
	}
	return zone
}

// port reads a port; an absent protocol is TCP, as in Kubernetes.
func (d *sliceReader) port(f *protoField) SlicePort {
	var have seen
	p := SlicePort{Protocol: TCP}
	d.is(f, "ports", protowire.BytesType)
	for part := (protoField{}); d.pull(&f.bytes, &part, "ports"); {
		switch part.number {
		case portName:
			p.Name = d.intern(d.portName(d.single(&have, &part, "ports/name")))
		case portProtocol:
			p.Protocol = d.protocol(d.single(&have, &part, "ports/protocol"))
		case portNumber:
			p.Port = uint16(d.uint(&have, &part, "ports/port", math.MaxUint16))
		case portAppProtocol:
			p.AppProtocol = d.intern(d.single(&have, &part, "ports/appProtocol"))
		}
	}
	return p
}

// portName refuses a name that is too long for a port; the alphabet is checked
// where the string is made.
func (d *sliceReader) portName(text []byte) []byte {
	if len(text) > maxPortName {
		d.fail(excerpt(text), portNameReason)
	}
	return text
}

func (d *sliceReader) protocol(text []byte) Protocol {
	for _, p := range [...]Protocol{TCP, UDP, SCTP} {
		if string(text) == string(p) {
			return p
		}
	}
	d.fail(excerpt(text), protocolReason)
	return ""
}
