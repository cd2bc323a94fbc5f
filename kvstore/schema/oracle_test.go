package schema

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"testing"
)

// oracleService decodes a service in the plainest way, with encoding/json and
// exact member names. It cannot see members that occur twice (repeatsMember can)
// and knows no limits; in all else DecodeService must agree with it.
func oracleService(src Source, namespace, name string, value []byte) (*Service, bool) {
	var m map[string]json.RawMessage
	if json.Unmarshal(value, &m) != nil {
		return nil, false
	}
	s := &Service{}
	ok := member(m, "cluster", &s.Cluster) && member(m, "namespace", &s.Namespace) && member(m, "name", &s.Name) &&
		member(m, "clusterID", &s.ClusterID) && member(m, "includeExternal", &s.IncludeExternal) &&
		member(m, "shared", &s.Shared) && member(m, "labels", &s.Labels) && member(m, "selector", &s.Selector) &&
		oracleAddrs(m["frontends"], &s.Frontends, oraclePorts) && oracleAddrs(m["backends"], &s.Backends, oraclePorts) &&
		oracleAddrs(m["hostnames"], &s.Hostnames, oracleName) && oracleAddrs(m["zones"], &s.Zones, oracleZone)
	if !ok || s.Cluster != src.Cluster || s.ClusterID != src.ClusterID || s.Namespace != namespace || s.Name != name {
		return nil, false
	}
	if s.Frontends == nil {
		s.Frontends = map[netip.Addr]PortMap{}
	}
	if s.Backends == nil {
		s.Backends = map[netip.Addr]PortMap{}
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.Selector == nil {
		s.Selector = map[string]string{}
	}
	return s, true
}

// member decodes a member that may be absent.
func member(m map[string]json.RawMessage, name string, into any) bool {
	raw, ok := m[name]
	return !ok || json.Unmarshal(raw, into) == nil
}

func oracleAddrs[V any](raw json.RawMessage, into *map[netip.Addr]V, value func(json.RawMessage) (V, bool)) bool {
	var m map[string]json.RawMessage
	if raw == nil {
		return true
	}
	if json.Unmarshal(raw, &m) != nil {
		return false
	}
	for k, raw := range m {
		a, err := netip.ParseAddr(k)
		v, ok := value(raw)
		if err != nil || a.Zone() != "" || !ok {
			return false
		}
		if *into == nil {
			*into = map[netip.Addr]V{}
		}
		if _, twice := (*into)[a.Unmap()]; twice {
			return false
		}
		(*into)[a.Unmap()] = v
	}
	return true
}

func oracleName(raw json.RawMessage) (name string, ok bool) {
	return name, json.Unmarshal(raw, &name) == nil && oracleToken.MatchString(name)
}

var oracleToken = regexp.MustCompile(`^[!-~]{0,253}\z`)

func oraclePorts(raw json.RawMessage) (PortMap, bool) {
	var m map[string]map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return nil, false
	}
	ports := PortMap{}
	for name, l4 := range m {
		var p L4
		ok := member(l4, "Protocol", &p.Protocol) && member(l4, "Port", &p.Port)
		if !ok || p.Port == 0 || len(name) > 63 || !oracleToken.MatchString(name) || !slices.Contains([]Protocol{TCP, UDP, SCTP}, p.Protocol) {
			return nil, false
		}
		ports[name] = p
	}
	return ports, true
}

func oracleZone(raw json.RawMessage) (z Zone, ok bool) {
	var m map[string]json.RawMessage
	var hints []map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil || !member(m, "zone", &z.Zone) || !member(m, "forZones", &hints) ||
		!oracleToken.MatchString(z.Zone) {
		return z, false
	}
	for _, hint := range hints {
		var f ForZone
		if !member(hint, "name", &f.Name) || !oracleToken.MatchString(f.Name) {
			return z, false
		}
		z.ForZones = append(z.ForZones, f)
	}
	return z, true
}

// repeatsMember reports whether any object in a valid JSON text has a member
// twice.
func repeatsMember(value []byte) bool {
	type level struct {
		names map[string]bool // nil in a list
		value bool            // a member's value comes next
	}
	var open []level
	for d := json.NewDecoder(bytes.NewReader(value)); ; {
		token, err := d.Token()
		if err != nil {
			return false
		}
		if token == json.Delim('}') || token == json.Delim(']') {
			open = open[:len(open)-1]
			continue
		}
		if n := len(open); n > 0 && open[n-1].names != nil {
			open[n-1].value = !open[n-1].value
			if name, ok := token.(string); ok && open[n-1].value {
				if open[n-1].names[name] {
					return true
				}
				open[n-1].names[name] = true
			}
		}
		switch token {
		case json.Delim('{'):
			open = append(open, level{names: map[string]bool{}})
		case json.Delim('['):
			open = append(open, level{})
		}
	}
}

func TestRepeatsMember(t *testing.T) {
	for value, want := range map[string]bool{
		`{"a":"a","b":{"a":"b"},"c":["a","a"]}`: false,
		`{"a":1,"b":2,"a":3}`:                   true,
		`{"a":{"b":[{"c":1,"\u0063":2}]}}`:      true,
		`{"a":{"b":1},"b":2,"c":{"b":"b"}}`:     false,
	} {
		if got := repeatsMember([]byte(value)); got != want {
			t.Errorf("%s: got %v, want %v", value, got, want)
		}
	}
}
