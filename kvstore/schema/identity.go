package schema

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// clusterLabel is the label, of source k8s, that ties an identity to its
// cluster.
const clusterLabel = "io.cilium.k8s.policy.cluster"

// Encode returns the value of the identity: its labels as source:key=value;
// sorted by key, whatever the source. A label's key (with its source) must
// hold a ':' and no '=' or ';', its value no ';'; [DecodeIdentity] yields only
// such labels.
func (i *Identity) Encode() []byte {
	labels := slices.SortedFunc(maps.Keys(i.Labels), func(a, b string) int {
		return cmp.Or(cmp.Compare(labelKey(a), labelKey(b)), cmp.Compare(a, b))
	})
	var b []byte
	for _, l := range labels {
		b = append(b, l...)
		b = append(b, '=')
		b = append(b, i.Labels[l]...)
		b = append(b, ';')
	}
	return b
}

// labelKey strips the source of source:key.
func labelKey(label string) string {
	_, key, _ := strings.Cut(label, ":")
	return key
}

// DecodeIdentity decodes an identity and checks that its number, the end of
// the key, lies in the range of src's cluster and that its labels name that
// cluster. The error is an *[Error].
func DecodeIdentity(src Source, maxClusters uint32, key string, value []byte, l Limits) (*Identity, error) {
	id, err := parseIdentityKey(src, maxClusters, key)
	if err != nil {
		return nil, err
	}
	if len(value) > l.MaxValueBytes {
		return nil, tooMany(key, "value bytes", len(value), l.MaxValueBytes)
	}
	if !utf8.Valid(value) {
		return nil, newError(key, wholeValue, excerpt(value), "must be valid UTF-8")
	}
	labels, err := parseLabels(key, string(value), l.MaxNames)
	if err != nil {
		return nil, err
	}
	if got, ok := labels["k8s:"+clusterLabel]; !ok || got != src.Cluster {
		return nil, newError(key, "k8s:"+clusterLabel, got, "every identity must name its cluster, here "+src.Cluster)
	}
	return &Identity{ID: id, Labels: labels}, nil
}

func parseIdentityKey(src Source, maxClusters uint32, key string) (uint32, error) {
	rest, err := nameIn(KindIdentity, src, key)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(rest, 10, 32)
	if err != nil || decimal(uint32(n)) != rest {
		return 0, newError(key, "id", rest, "must be a decimal number without sign or leading zeros")
	}
	first, last := IdentityRange(src.ClusterID, maxClusters)
	if id := uint32(n); id < first || id > last {
		return 0, newError(key, "id", rest, "cluster "+src.Cluster+" may use "+decimal(first)+" to "+decimal(last)+
			"; check that both clusters agree on its id and on maxConnectedClusters")
	}
	return uint32(n), nil
}

// parseLabels refuses a key that occurs with two sources: Cilium's label sets
// hold one label per key and would keep the last.
func parseLabels(key, text string, limit int) (map[string]string, error) {
	if n := strings.Count(text, ";"); n > limit {
		return nil, tooMany(key, "labels", n, limit)
	}
	labels, seen := map[string]string{}, map[string]bool{}
	for text != "" {
		one, rest, ended := strings.Cut(text, ";")
		name, value, ok := strings.Cut(one, "=")
		source, k, hasSource := strings.Cut(name, ":")
		if !ended || !ok || !hasSource || source == "" || k == "" {
			return nil, newError(key, "labels", one, "each label must read source:key=value;")
		}
		if seen[k] {
			return nil, newError(key, "labels", name, "a label key may occur once")
		}
		seen[k], labels[name] = true, value
		text = rest
	}
	return labels, nil
}
