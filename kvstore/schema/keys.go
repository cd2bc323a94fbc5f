package schema

import (
	"strconv"
	"strings"
)

// HeartbeatKey is rewritten by an exporter every minute; its readers treat two
// minutes without a put as a lost connection. Its value is an RFC 3339 time
// that nobody reads.
const HeartbeatKey = "cilium/.heartbeat"

// LocalPrefix lies above everything that is ours and not Cilium's. Only a
// cluster's own agents may read there, but for [MarkerPrefix].
const LocalPrefix = "clustermesh/"

const (
	statePrefix  = "cilium/state/"
	cachePrefix  = "cilium/cache/"
	syncedPrefix = "cilium/synced/"
	configPrefix = "cilium/cluster-config/"

	localServices = LocalPrefix + "local/services/v1/"
	localSynced   = LocalPrefix + "synced/"
	localType     = "local/services/v1"
)

// Kind is a kind of entry that a cluster publishes.
type Kind uint8

// The kinds of entries. KindLocalService is ours, the others are Cilium's.
const (
	KindService Kind = iota
	KindNode
	KindIdentity
	KindIP
	KindLocalService
	KindEndpointSlice
	KindServiceExport
)

// String returns the kind's name in keys, or "local-services"; it is meant for
// logs, metrics and status output too.
func (k Kind) String() string {
	switch k {
	case KindService:
		return "services"
	case KindNode:
		return "nodes"
	case KindIdentity:
		return "identities"
	case KindIP:
		return "ip"
	case KindLocalService:
		return "local-services"
	case KindEndpointSlice:
		return "endpointslices"
	case KindServiceExport:
		return "serviceexports"
	}
	return "kind-" + strconv.Itoa(int(k))
}

// WatchPrefix returns the prefix, with its final slash, of all entries of a
// kind that the named cluster published. The cached form is the one below
// which a relay (Cilium's KVStoreMesh) mirrors another cluster; it differs in
// more than its root, because the live keys of identities and addresses do not
// name their cluster. Entries of KindLocalService are never cached: cached is
// ignored for them. cluster is a valid cluster name.
func WatchPrefix(k Kind, cluster string, cached bool) string {
	parts := prefixParts(k, cluster, cached)
	return strings.Join(parts[:], "")
}

// prefixParts returns the pieces of a watch prefix, so that decoders can match
// a key against it without building it.
func prefixParts(k Kind, cluster string, cached bool) [4]string {
	switch {
	case k == KindLocalService:
		return [4]string{localServices, "", cluster, "/"}
	case cached && k == KindIdentity:
		return [4]string{cachePrefix, "identities/v1/", cluster, "/id/"}
	case cached:
		return [4]string{cachePrefix, k.root(), cluster, "/"}
	case k == KindIdentity:
		return [4]string{statePrefix, "identities/v1/", "id", "/"}
	case k == KindIP:
		return [4]string{statePrefix, "ip/v1/", "default", "/"}
	}
	return [4]string{statePrefix, k.root(), cluster, "/"}
}

// root returns what follows cilium/state/ in the keys of one of Cilium's kinds.
func (k Kind) root() string {
	switch k {
	case KindService:
		return "services/v1/"
	case KindNode:
		return "nodes/v1/"
	case KindIP:
		return "ip/v1/"
	case KindEndpointSlice:
		return "endpointslices/v1/"
	case KindServiceExport:
		return "serviceexports/v1/"
	}
	return k.String() + "/v1/"
}

// below returns the part of a key below the kind's watch prefix, or false.
func below(k Kind, cluster string, cached bool, key string) (rest string, ok bool) {
	for _, part := range prefixParts(k, cluster, cached) {
		if key, ok = strings.CutPrefix(key, part); !ok {
			return "", false
		}
	}
	return key, key != ""
}

// CanaryKey returns the key whose existence says that the list of a kind is
// complete. It names the kind's root, not its watch prefix: neither "/id" nor
// "/default" nor the cluster is part of its end.
func CanaryKey(k Kind, cluster string, cached bool) string {
	if k == KindLocalService {
		return LocalCanaryPrefix(cluster) + localType
	}
	root := statePrefix
	if cached {
		root = cachePrefix
	}
	return CanaryPrefix(cluster) + root + k.String() + "/v1"
}

// CanaryPrefix returns the prefix of all canaries of Cilium's kinds for a
// cluster, live and cached.
func CanaryPrefix(cluster string) string { return syncedPrefix + cluster + "/" }

// LocalCanaryPrefix returns the prefix of the canaries of our own kinds.
func LocalCanaryPrefix(cluster string) string { return localSynced + cluster + "/" }

// ClusterConfigKey returns the key of a cluster's [ClusterConfig], which is the
// same in the cluster's own store and in a relay's.
func ClusterConfigKey(cluster string) string { return configPrefix + cluster }

// ServiceKey returns the live key of a [Service].
func ServiceKey(cluster, namespace, name string) string {
	return statePrefix + "services/v1/" + cluster + "/" + namespace + "/" + name
}

// EndpointSliceKey returns the live key of an [EndpointSlice]; name is the
// slice's own, not its service's.
func EndpointSliceKey(cluster, namespace, name string) string {
	return statePrefix + "endpointslices/v1/" + cluster + "/" + namespace + "/" + name
}

// ServiceExportKey returns the live key of a [ServiceExport].
func ServiceExportKey(cluster, namespace, name string) string {
	return statePrefix + "serviceexports/v1/" + cluster + "/" + namespace + "/" + name
}

// LocalServiceKey returns the key of a [LocalService].
func LocalServiceKey(cluster, namespace, name string) string {
	return localServices + cluster + "/" + namespace + "/" + name
}

// NodeKey returns the live key of a [Node].
func NodeKey(cluster, node string) string {
	return statePrefix + "nodes/v1/" + cluster + "/" + node
}

// IdentityKey returns the live key of an [Identity].
func IdentityKey(id uint32) string {
	return statePrefix + "identities/v1/id/" + strconv.FormatUint(uint64(id), 10)
}

// IPKey returns the live key of an [IPEntry]. ip is its canonical text
// (netip.Addr.String) or, for an entry with a mask, that of the prefix.
func IPKey(ip string) string { return statePrefix + "ip/v1/default/" + ip }

// PrefixEnd returns the end of the range that holds exactly the keys with the
// prefix: the smallest string greater than all of them. Where none exists (the
// empty prefix, or 0xff bytes only) it returns "\x00", etcd's spelling of "to
// the end of the keyspace".
func PrefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return "\x00"
}

// ParseServiceKey splits the key of an entry of the named cluster that is named
// like a service, by a namespace and a name of its own (KindService,
// KindLocalService, KindEndpointSlice, KindServiceExport), into both. The error
// is an *[Error] if the key is not below the kind's prefix or does not end in two
// Kubernetes names.
func ParseServiceKey(k Kind, cluster string, cached bool, key string) (namespace, name string, err error) {
	rest, ok := below(k, cluster, cached, key)
	namespace, name, _ = strings.Cut(rest, "/")
	if !ok || !validName(namespace) || !validName(name) {
		return "", "", keyError(key, "must be "+WatchPrefix(k, cluster, cached)+"<namespace>/<name> with Kubernetes names")
	}
	return namespace, name, nil
}

// nameIn returns the part of a key below the prefix of a kind in src.
func nameIn(k Kind, src Source, key string) (string, error) {
	rest, ok := below(k, src.Cluster, src.Cached, key)
	if !ok {
		return "", keyError(key, "must be below "+WatchPrefix(k, src.Cluster, src.Cached))
	}
	return rest, nil
}

// maxNameBytes is the longest name Kubernetes accepts (RFC 1123 subdomain).
const maxNameBytes = 253

// maxPortName is the longest name of a port: Kubernetes accepts no more of a
// service's port or an endpoint slice's (RFC 1123 label), and the kernel's tables
// have room for no more.
const maxPortName = 63

const portNameReason = "the name of a port may have at most 63 bytes, as in Kubernetes; give the port a shorter name"

// validName reports whether s may name a Kubernetes object: lower case
// letters, digits, '-' and '.', starting and ending with a letter or digit.
func validName(s string) bool {
	if s == "" || len(s) > maxNameBytes {
		return false
	}
	for i := range len(s) {
		edge := i == 0 || i == len(s)-1
		if !isLowerAlnum(s[i]) && (edge || s[i] != '-' && s[i] != '.') {
			return false
		}
	}
	return true
}

func isLowerAlnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
