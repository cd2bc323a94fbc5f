package server

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/clustermesh/clustermesh/kvstore/peers"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// window is a range of keys that a restricted reader sees: all of them, or, if
// services is set, the endpoint slices of these services.
type window struct {
	span
	prefix   string // what precedes the names of slices
	services map[string]bool
}

// shows reports whether a key inside the window is seen. Slices that somebody
// wrote by hand are mostly called like their service. Only names count: to call
// one service's slice by the name of another, or of another and a suffix, is to
// show it to who sees that one.
func (w window) shows(key string) bool {
	return w.services == nil || w.services[serviceOf(strings.TrimPrefix(key, w.prefix))] || w.services[strings.TrimPrefix(key, w.prefix)]
}

// The names that Kubernetes gives to the slices of a service: the service's
// name, '-', and five of these letters (k8s.io/apimachinery/pkg/util/rand).
const (
	suffixLetters = "bcdfghjklmnpqrstvwxz2456789"
	suffixLength  = 5
	// maxNamed is the longest service name that its slices' names tell. Of the name
	// and '-' 63-suffixLength bytes are kept: a service whose name fills them could
	// be one whose longer name was cut after a '-'.
	maxNamed = 63 - suffixLength - 2
)

// serviceOf returns the service that a slice is named after, or "". Slices that
// are named otherwise are seen only by those who see their namespace.
func serviceOf(slice string) string {
	cut := len(slice) - suffixLength - 1
	if cut <= 0 || cut > maxNamed || slice[cut] != '-' || strings.Trim(slice[cut+1:], suffixLetters) != "" {
		return ""
	}
	return slice[:cut]
}

// windowsOf lists, in order and without overlap, what a peer sees of a cluster.
func windowsOf(cluster string, v peers.View) []window {
	prefixes := []string{schema.HeartbeatKey, schema.CanaryPrefix(cluster), schema.MarkerPrefix(cluster)}
	for kind, sees := range map[schema.Kind]bool{
		schema.KindNode: v.Nodes, schema.KindIdentity: v.Identities, schema.KindIP: v.Addresses,
	} {
		if sees {
			prefixes = append(prefixes, schema.WatchPrefix(kind, cluster, false))
		}
	}
	for _, kind := range []schema.Kind{schema.KindService, schema.KindEndpointSlice, schema.KindServiceExport} {
		for _, ns := range v.Namespaces {
			prefixes = append(prefixes, schema.WatchPrefix(kind, cluster, false)+ns+"/")
		}
	}
	ws := []window{{span: keySpan(schema.ClusterConfigKey(cluster))}}
	for _, p := range prefixes {
		ws = append(ws, window{span: prefixSpan(p)})
	}
	ws = append(ws, serviceWindows(cluster, v)...)
	slices.SortFunc(ws, func(a, b window) int { return cmp.Compare(a.start, b.start) })
	return slices.CompactFunc(ws, func(a, b window) bool { return a.span == b.span })
}

// serviceWindows is for the services that are listed one by one, but for those
// whose namespace is seen anyway.
func serviceWindows(cluster string, v peers.View) (ws []window) {
	byNamespace := map[string]map[string]bool{}
	for _, s := range v.Services {
		if slices.Contains(v.Namespaces, s.Namespace) {
			continue
		}
		if byNamespace[s.Namespace] == nil {
			byNamespace[s.Namespace] = map[string]bool{}
		}
		byNamespace[s.Namespace][s.Name] = true
	}
	for ns, names := range byNamespace {
		prefix := schema.WatchPrefix(schema.KindEndpointSlice, cluster, false) + ns + "/"
		ws = append(ws, window{span: prefixSpan(prefix), prefix: prefix, services: names})
		for name := range maps.Keys(names) {
			ws = append(ws,
				window{span: keySpan(schema.ServiceKey(cluster, ns, name))},
				window{span: keySpan(schema.ServiceExportKey(cluster, ns, name))})
		}
	}
	return ws
}

// sees reports whether the holder may know of a key inside its spans.
func (g grant) sees(key string) bool {
	if !g.restricted {
		return true
	}
	i := sort.Search(len(g.windows), func(i int) bool { return g.windows[i].end > key })
	return i < len(g.windows) && g.windows[i].start <= key && g.windows[i].shows(key)
}

// visible returns the parts of a span that the holder may know of, in order.
func (g grant) visible(s span) []window {
	if !g.restricted {
		return []window{{span: s}}
	}
	var parts []window
	i := sort.Search(len(g.windows), func(i int) bool { return g.windows[i].end > s.start })
	for ; i < len(g.windows) && g.windows[i].start < s.end; i++ {
		w := g.windows[i]
		w.span = span{max(w.start, s.start), min(w.end, s.end)}
		parts = append(parts, w)
	}
	return parts
}
