package export

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
)

// The annotations, as Cilium spells them; of two spellings the first that is
// present counts (pkg/annotation of Cilium v1.20).
const (
	globalAnnotation      = "service.cilium.io/global"
	oldGlobalAnnotation   = "io.cilium/global-service"
	sharedAnnotation      = "service.cilium.io/shared"
	oldSharedAnnotation   = "io.cilium/shared-service"
	affinityAnnotation    = "service.cilium.io/affinity"
	oldAffinityAnnotation = "io.cilium/service-affinity"
	namespaceAnnotation   = "clustermesh.cilium.io/global"
	wireguardAnnotation   = "network.cilium.io/wg-pub-key"
)

// ownPrefix is that of the annotations that go beyond Cilium's. What they mean
// is for the agents to judge; here they are only bounded.
const (
	ownPrefix      = "clustermesh.io/"
	maxOwn         = 64
	maxOwnValue    = 1024
	shownOfOwnSize = 64
)

// policy is what a service's annotations say.
type policy struct {
	global, shared bool
	affinity       string // "local", "remote" or ""
}

func policyOf(s *corev1.Service, f *findings) policy {
	if !boolean(s.Annotations, f, false, globalAnnotation, oldGlobalAnnotation) {
		return policy{}
	}
	return policy{
		global:   true,
		shared:   boolean(s.Annotations, f, true, sharedAnnotation, oldSharedAnnotation),
		affinity: affinity(s.Annotations, f),
	}
}

// own returns a service's annotations below ownPrefix by the rest of their names.
func own(annotations map[string]string, f *findings) map[string]string {
	var out map[string]string
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ok := strings.CutPrefix(key, ownPrefix)
		value := annotations[key]
		switch {
		case !ok:
		case len(value) > maxOwnValue || !utf8.ValidString(value):
			f.add(InvalidAnnotation, fmt.Sprintf("annotation %s has value %.*q..., which is ignored; write at most %d bytes of text", key, shownOfOwnSize, value, maxOwnValue))
		case len(out) == maxOwn:
			f.add(InvalidAnnotation, fmt.Sprintf("annotation %s is ignored; write at most %d annotations below %s", key, maxOwn, ownPrefix))
		default:
			if out == nil {
				out = map[string]string{}
			}
			out[name] = value
		}
	}
	return out
}

// first returns the value of the first of keys that is present.
func first(annotations map[string]string, keys ...string) (key, value string, ok bool) {
	for _, key := range keys {
		if value, ok := annotations[key]; ok {
			return key, value, true
		}
	}
	return "", "", false
}

// boolean reads an annotation that is true only if it says so, in any case.
func boolean(annotations map[string]string, f *findings, absent bool, keys ...string) bool {
	key, value, ok := first(annotations, keys...)
	if !ok {
		return absent
	}
	yes := strings.EqualFold(value, "true")
	if !yes && !strings.EqualFold(value, "false") {
		f.add(InvalidAnnotation, fmt.Sprintf("annotation %s has value %q, which counts as false; write true or false", key, value))
	}
	return yes
}

func affinity(annotations map[string]string, f *findings) string {
	key, value, _ := first(annotations, affinityAnnotation, oldAffinityAnnotation)
	switch v := strings.ToLower(value); v {
	case "local", "remote":
		return v
	case "", "none":
		return ""
	}
	f.add(InvalidAnnotation, fmt.Sprintf("annotation %s has value %q, which counts as none; write local, remote or none", key, value))
	return ""
}

// global reports whether a namespace is known and takes part in the mesh. Its
// annotation counts only if it says true; any other value means no.
func (e *Exporter) global(namespace string) bool {
	ns, ok := e.namespaces[namespace]
	if !ok {
		return false
	}
	value, ok := ns.Annotations[namespaceAnnotation]
	if !ok {
		return e.config.DefaultGlobalNamespace
	}
	return strings.EqualFold(value, "true")
}
