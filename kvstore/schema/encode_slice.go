package schema

import (
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
)

// The field numbers of schemapb/endpointslice.proto.
const (
	sliceCluster protowire.Number = iota + 1
	sliceClusterID
	sliceNamespace
	sliceName
	sliceLabels
	sliceAnnotations
	sliceAddressType
	sliceEndpoints
	slicePorts
)

const (
	endpointAddresses  protowire.Number = 1
	endpointConditions protowire.Number = 2
	endpointHostname   protowire.Number = 3
	endpointNodeName   protowire.Number = 6
	endpointZone       protowire.Number = 7
	endpointHints      protowire.Number = 8
)

const (
	conditionReady protowire.Number = iota + 1
	conditionServing
	conditionTerminating
)

const (
	portName protowire.Number = iota + 1
	portProtocol
	portNumber
	portAppProtocol
)

const (
	hintsForZones protowire.Number = 1
	forZoneName   protowire.Number = 1
	mapKey        protowire.Number = 1
	mapValue      protowire.Number = 2
)

// appendSlice appends the message of an endpoint slice as Cilium encodes it:
// fields by number, the scalars that are not pointers there even if empty.
func appendSlice(b []byte, s *EndpointSlice) []byte {
	b = appendString(b, sliceCluster, s.Cluster)
	b = appendVarint(b, sliceClusterID, uint64(s.ClusterID))
	b = appendString(b, sliceNamespace, s.Namespace)
	b = appendString(b, sliceName, s.Name)
	b = appendEntries(b, sliceLabels, s.Labels)
	b = appendEntries(b, sliceAnnotations, s.Annotations)
	b = appendString(b, sliceAddressType, string(s.AddressType))
	for i := range s.Endpoints {
		b = appendMessage(b, sliceEndpoints, &s.Endpoints[i], appendEndpoint)
	}
	for i := range s.Ports {
		b = appendMessage(b, slicePorts, &s.Ports[i], appendSlicePort)
	}
	return b
}

// appendEndpoint writes the conditions even if all are unknown, as Cilium does.
func appendEndpoint(b []byte, e *Endpoint) []byte {
	for i := range e.Addresses {
		b = appendMessage(b, endpointAddresses, &e.Addresses[i], appendAddr)
	}
	b = appendMessage(b, endpointConditions, e, appendConditions)
	b = appendName(b, endpointHostname, e.Hostname)
	b = appendName(b, endpointNodeName, e.NodeName)
	b = appendName(b, endpointZone, e.Zone)
	if len(e.ForZones) > 0 {
		b = appendMessage(b, endpointHints, e, appendHints)
	}
	return b
}

// appendAddr writes the text of an address without making a string of it.
func appendAddr(b []byte, a *netip.Addr) []byte { return a.AppendTo(b) }

func appendConditions(b []byte, e *Endpoint) []byte {
	b = appendCondition(b, conditionReady, e.Ready)
	b = appendCondition(b, conditionServing, e.Serving)
	return appendCondition(b, conditionTerminating, e.Terminating)
}

func appendCondition(b []byte, n protowire.Number, c Condition) []byte {
	if c == ConditionUnknown {
		return b
	}
	return appendVarint(b, n, protowire.EncodeBool(c == ConditionTrue))
}

func appendHints(b []byte, e *Endpoint) []byte {
	for i := range e.ForZones {
		b = appendMessage(b, hintsForZones, &e.ForZones[i], appendForZone)
	}
	return b
}

func appendForZone(b []byte, zone *string) []byte { return appendString(b, forZoneName, *zone) }

// appendSlicePort writes an empty name, as the API server gives an unnamed
// port one.
func appendSlicePort(b []byte, p *SlicePort) []byte {
	b = appendString(b, portName, p.Name)
	b = appendString(b, portProtocol, string(p.Protocol))
	if p.Port != 0 {
		b = appendVarint(b, portNumber, uint64(p.Port))
	}
	return appendName(b, portAppProtocol, p.AppProtocol)
}

// appendEntries writes a map as messages of key and value, sorted by key.
func appendEntries(b []byte, n protowire.Number, m map[string]string) []byte {
	var few [8]string
	for _, k := range sortedKeys(few[:0], m) {
		const tags = 2
		b = protowire.AppendTag(b, n, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(tags+protowire.SizeBytes(len(k))+protowire.SizeBytes(len(m[k]))))
		b = appendString(appendString(b, mapKey, k), mapValue, m[k])
	}
	return b
}

// appendMessage writes a nested message. Its length stands before it: one byte
// is set aside for that, and the message moved if it needs more.
func appendMessage[T any](b []byte, n protowire.Number, v *T, body func([]byte, *T) []byte) []byte {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	start := len(b) + 1
	b = body(append(b, 0), v)
	size := len(b) - start
	if more := protowire.SizeVarint(uint64(size)) - 1; more > 0 {
		var room [9]byte
		b = append(b, room[:more]...)
		copy(b[start+more:], b[start:start+size])
	}
	protowire.AppendVarint(b[:start-1], uint64(size))
	return b
}

func appendString(b []byte, n protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
}

// appendName writes a string that is absent when empty.
func appendName(b []byte, n protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return appendString(b, n, s)
}

func appendVarint(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}
