package export

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// A record that readers refuse, or that etcd does not take, would take a
// service away as a whole. So an oversized service is published with fewer
// backends, always the same ones, and said to be incomplete.

// fitPublic encodes a service within the readers' limits.
func fitPublic(s *schema.Service, f *findings) []byte {
	limits := schema.DefaultLimits()
	all := slices.SortedFunc(maps.Keys(s.Backends), netip.Addr.Compare)
	keep := min(len(all), limits.MaxBackends)
	value := encodeFirst(s, all, keep)
	for len(value) > limits.MaxValueBytes && keep > 0 {
		keep = keep * 3 / 4
		value = encodeFirst(s, all, keep)
	}
	reportCut(f, "addresses to other clusters", keep, len(all))
	return value
}

func encodeFirst(s *schema.Service, all []netip.Addr, keep int) []byte {
	if keep == len(all) {
		return s.Encode()
	}
	cut := *s
	cut.Backends = map[netip.Addr]schema.PortMap{}
	cut.Hostnames, cut.Zones = map[netip.Addr]string{}, map[netip.Addr]schema.Zone{}
	for _, a := range all[:keep] {
		cut.Backends[a] = s.Backends[a]
		copyEntry(cut.Hostnames, s.Hostnames, a)
		copyEntry(cut.Zones, s.Zones, a)
	}
	return cut.Encode()
}

func copyEntry[V any](to, from map[netip.Addr]V, a netip.Addr) {
	if v, ok := from[a]; ok {
		to[a] = v
	}
}

// fitLocal encodes a local service within the readers' limits. Backends that
// are not ready go first.
func fitLocal(s *schema.LocalService, f *findings) []byte {
	limits, all := schema.DefaultLimits(), len(s.Backends)
	value := s.Encode()
	for (len(value) > limits.MaxValueBytes || len(s.Backends) > limits.MaxBackends) && len(s.Backends) > 0 {
		s.Backends = readiest(s.Backends, min(len(s.Backends)*3/4, limits.MaxBackends))
		value = s.Encode()
	}
	reportCut(f, "backends to this cluster's agents", len(s.Backends), all)
	return value
}

func readiest(backends []schema.LocalBackend, keep int) []schema.LocalBackend {
	byReady := slices.Clone(backends)
	slices.SortStableFunc(byReady, func(a, b schema.LocalBackend) int { return rank(a) - rank(b) })
	kept := byReady[:keep]
	sortBackends(kept)
	return kept
}

func rank(b schema.LocalBackend) int {
	switch {
	case b.Ready:
		return 0
	case b.Serving:
		return 1
	}
	return 2
}

func reportCut(f *findings, what string, kept, all int) {
	if kept < all {
		f.add(TooLarge, fmt.Sprintf("only %d of %d %s fit into one record; split the service", kept, all, what))
	}
}
