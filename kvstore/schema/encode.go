package schema

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Encode returns the value of the service as Cilium encodes it: members in
// declared order, maps sorted by the text of their keys, empty hostnames and
// zones omitted, every other map at least {}. Addresses are written as they
// are and must be canonical. Equal services have equal bytes.
func (s *Service) Encode() []byte {
	b := make([]byte, 0, s.encodedSize())
	b = appendText(append(b, `{"cluster":`...), s.Cluster)
	b = appendText(append(b, `,"namespace":`...), s.Namespace)
	b = appendText(append(b, `,"name":`...), s.Name)
	b = appendAddrs(append(b, `,"frontends":`...), s.Frontends, appendPorts)
	b = appendAddrs(append(b, `,"backends":`...), s.Backends, appendPorts)
	if len(s.Hostnames) > 0 {
		b = appendAddrs(append(b, `,"hostnames":`...), s.Hostnames, appendText)
	}
	if len(s.Zones) > 0 {
		b = appendAddrs(append(b, `,"zones":`...), s.Zones, appendZone)
	}
	b = appendTexts(append(b, `,"labels":`...), s.Labels)
	b = appendTexts(append(b, `,"selector":`...), s.Selector)
	b = strconv.AppendBool(append(b, `,"includeExternal":`...), s.IncludeExternal)
	b = strconv.AppendBool(append(b, `,"shared":`...), s.Shared)
	b = strconv.AppendUint(append(b, `,"clusterID":`...), uint64(s.ClusterID), 10)
	return append(b, '}')
}

// encodedSize guesses the size of the encoding from a typical one.
func (s *Service) encodedSize() int {
	return 256 + 64*(len(s.Frontends)+len(s.Backends)+len(s.Zones)+len(s.Labels)+len(s.Selector)) + 32*len(s.Hostnames)
}

// appendAddrs appends an object whose members are named by addresses. They are
// sorted as text, as encoding/json does, not as numbers.
func appendAddrs[V any](b []byte, m map[netip.Addr]V, value func([]byte, V) []byte) []byte {
	b = append(b, '{')
	for i, a := range sortedByText(m) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), a.text...), '"', ':')
		b = value(b, m[a.addr])
	}
	return append(b, '}')
}

type addrText struct {
	text string
	addr netip.Addr
}

// sortedByText formats all addresses into one string, so that a large map costs
// a few allocations instead of one per address.
func sortedByText[V any](m map[netip.Addr]V) []addrText {
	list, ends := make([]addrText, 0, len(m)), make([]int, 0, len(m))
	buf := make([]byte, 0, 16*len(m))
	for a := range m {
		buf = a.AppendTo(buf)
		list, ends = append(list, addrText{addr: a}), append(ends, len(buf))
	}
	all, start := string(buf), 0
	for i, end := range ends {
		list[i].text, start = all[start:end], end
	}
	slices.SortFunc(list, func(a, b addrText) int { return strings.Compare(a.text, b.text) })
	return list
}

func appendPorts(b []byte, ports PortMap) []byte {
	var few [8]string
	b = append(b, '{')
	for i, name := range sortedKeys(few[:0], ports) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendText(b, name), `:{"Protocol":`...)
		b = append(appendText(b, string(ports[name].Protocol)), `,"Port":`...)
		b = append(strconv.AppendUint(b, uint64(ports[name].Port), 10), '}')
	}
	return append(b, '}')
}

func appendZone(b []byte, z Zone) []byte {
	b = append(appendText(append(b, `{"zone":`...), z.Zone), `,"forZones":`...)
	if z.ForZones == nil {
		return append(b, "null}"...)
	}
	b = append(b, '[')
	for i, f := range z.ForZones {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendText(append(b, `{"name":`...), f.Name), '}')
	}
	return append(b, "]}"...)
}

func appendTexts(b []byte, m map[string]string) []byte {
	var few [8]string
	b = append(b, '{')
	for i, k := range sortedKeys(few[:0], m) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(appendText(b, k), ':'), m[k])
	}
	return append(b, '}')
}

// sortedKeys appends the keys of a map, which is usually tiny, to keys, which
// is empty and may lie on the caller's stack.
func sortedKeys[V any](keys []string, m map[string]V) []string {
	for k := range m {
		keys = append(keys, k)
	}
	if len(keys) > 1 {
		slices.Sort(keys)
	}
	return keys
}

// appendText appends a JSON string as encoding/json writes it, which escapes
// HTML and some Unicode too; it does that itself unless there is nothing to
// escape.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return append(b, marshal(s)...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// Encode returns the value of the local service. Frontends and backends are
// written sorted, whatever their order, and never as null; equal services have
// equal bytes.
func (s *LocalService) Encode() []byte {
	c := *s
	c.Frontends = sortedCopy(s.Frontends, compareFrontends)
	c.Backends = sortedCopy(s.Backends, compareBackends)
	c.NodePorts = sortedCopy(s.NodePorts, compareNodePorts)
	c.ExternalFrontends = sortedCopy(s.ExternalFrontends, compareFrontends)
	return marshal(&c)
}

// sortedCopy returns list itself if it is sorted and not nil.
func sortedCopy[T any](list []T, compare func(a, b T) int) []T {
	if list == nil {
		return []T{}
	}
	if slices.IsSortedFunc(list, compare) {
		return list
	}
	return slices.SortedFunc(slices.Values(list), compare)
}

// Encode returns the value of the node as Cilium encodes it; nil maps, lists
// and prefixes are written as null.
func (n *Node) Encode() []byte { return marshal(n) }

// Encode returns the value of the address entry as Cilium encodes it.
func (e *IPEntry) Encode() []byte { return marshal(e) }

// Encode returns the value of the cluster configuration as Cilium encodes it.
func (c ClusterConfig) Encode() []byte { return marshal(c) }

// marshal encodes one of this package's types. encoding/json fails on cycles,
// channels, functions, infinite floats and failing marshalers only, and these
// types have none: netip.Addr's marshaler cannot fail.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("encode a wire record: " + err.Error())
	}
	return b
}
