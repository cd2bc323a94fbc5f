package server

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/kvstore/peers"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// span is the key range [start, end); an empty end, which no reader is granted,
// means no upper bound.
type span struct{ start, end string }

func (s span) has(key string) bool { return s.start <= key && (key < s.end || s.end == "") }

func prefixSpan(prefix string) span { return span{prefix, schema.PrefixEnd(prefix)} }

func keySpan(key string) span { return span{key, key + "\x00"} }

// spanOf reads etcd's two range fields. It accepts a single key (no range end)
// and a proper range; it refuses the empty key, "from this key on" (range end
// "\x00") and ranges that are empty or reversed.
func spanOf(key, rangeEnd []byte) (span, bool) {
	if len(rangeEnd) == 0 {
		return keySpan(string(key)), len(key) > 0
	}
	s := span{string(key), string(rangeEnd)}
	return s, s.start != "" && s.end != "\x00" && s.start < s.end
}

// maxKey is the longest key or range end that can be asked for. Ours are
// shorter, and a watch keeps both for as long as it lives.
const maxKey = 1 << 10

// tooLong refuses a key or range end that no key of ours is as long as.
func (g *gateway) tooLong(c *conn, key, rangeEnd []byte) error {
	for _, f := range []struct {
		field string
		bytes int
	}{{"key", len(key)}, {"range_end", len(rangeEnd)}} {
		if f.bytes > maxKey {
			c.refuse(refusedSize)
			return status.Errorf(codes.InvalidArgument, "%s of %d bytes is longer than any key here: use at most %d bytes", f.field, f.bytes, maxKey)
		}
	}
	return nil
}

// grant is what the holder of a certificate may read.
type grant struct {
	name    string
	own     bool   // an agent of this cluster
	spans   []span // what may be asked for
	account *account
	peer    *peers.Peer // nil for those whom their common name admits

	restricted bool     // only windows are shown of spans
	windows    []window // sorted, without overlap
}

// allows reports whether all of s lies inside one granted range.
func (g grant) allows(s span) bool {
	for _, have := range g.spans {
		if have.start <= s.start && s.end <= have.end {
			return true
		}
	}
	return false
}

// The grants are those of Cilium's own server (the users remote and local that
// its etcdinit makes), with two differences: a cluster's own agents may read
// the live state too, and our own records.
const (
	statePrefix  = "cilium/state/"
	cachePrefix  = "cilium/cache/"
	configPrefix = "cilium/cluster-config/"
	syncedPrefix = "cilium/synced/"
)

func remoteSpans(cluster string) []span {
	return []span{
		prefixSpan(schema.HeartbeatKey),
		prefixSpan(statePrefix),
		keySpan(schema.ClusterConfigKey(cluster)),
		prefixSpan(schema.CanaryPrefix(cluster)),
		prefixSpan(schema.MarkerPrefix(cluster)),
	}
}

func localSpans(cluster string) []span {
	return append(remoteSpans(cluster),
		prefixSpan(cachePrefix),
		prefixSpan(configPrefix),
		prefixSpan(syncedPrefix),
		prefixSpan(schema.LocalPrefix),
	)
}

// nameError refuses a certificate for its common name.
type nameError struct{ cluster, name string }

func (e *nameError) Error() string {
	return fmt.Sprintf("certificate name %q is not one of remote, remote-<cluster>, local-%s", e.name, e.cluster)
}

// grantFor returns what the common name of a verified certificate may read
// from the given cluster, or a *nameError.
func grantFor(cluster, name string) (grant, error) {
	if name == "local-"+cluster {
		return grant{name: name, own: true, spans: localSpans(cluster)}, nil
	}
	peer, named := strings.CutPrefix(name, "remote-")
	if name == "remote" || named && schema.ValidateClusterName(peer) == nil {
		return grant{name: name, spans: remoteSpans(cluster)}, nil
	}
	return grant{}, &nameError{cluster: cluster, name: name}
}
