package schema

import (
	"encoding/json"
	"net/netip"
	"slices"
)

// oracleService decodes a service in the plainest way, with encoding/json and
// exact member names. It cannot see members or keys that occur twice and knows
// no limits; in all else DecodeService must agree with it.
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
		oracleAddrs(m["hostnames"], &s.Hostnames, oraclePlain[string]) && oracleAddrs(m["zones"], &s.Zones, oracleZone)
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

func oraclePlain[V any](raw json.RawMessage) (v V, ok bool) {
	return v, json.Unmarshal(raw, &v) == nil
}

func oraclePorts(raw json.RawMessage) (PortMap, bool) {
	var m map[string]map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return nil, false
	}
	ports := PortMap{}
	for name, l4 := range m {
		var p L4
		ok := member(l4, "Protocol", &p.Protocol) && member(l4, "Port", &p.Port)
		if !ok || p.Port == 0 || !slices.Contains([]Protocol{TCP, UDP, SCTP}, p.Protocol) {
			return nil, false
		}
		ports[name] = p
	}
	return ports, true
}

func oracleZone(raw json.RawMessage) (z Zone, ok bool) {
	var m map[string]json.RawMessage
	var hints []map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil || !member(m, "zone", &z.Zone) || !member(m, "forZones", &hints) {
		return z, false
	}
	for _, hint := range hints {
		var f ForZone
		if !member(hint, "name", &f.Name) {
			return z, false
		}
		z.ForZones = append(z.ForZones, f)
	}
	return z, true
}
