package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// FuzzPeerFile checks that a file which is accepted restricts as far as it says:
// what it lists is there, and nothing means more than it may.
func FuzzPeerFile(f *testing.F) {
	f.Add([]byte("accepts:\n  cluster-id: 3\n  pod-cidrs: [10.3.0.0/16, 'fd00:3::/48']\n  namespaces: [shop]\n  max-keys: 10\n  max-bytes: 1000\n  max-backends: 7\n  withdrawal-brake-percent: 50\n"))
	f.Add([]byte("ca-file: x\nidentity: {dns: a.b}\nsees: all\naccepts: {withdrawal-brake-percent: 0}\n"))
	f.Add([]byte("accepts:\n  pod-cidrs:\n  # - 10.3.0.0/16\n"))
	f.Add([]byte("accepts: {namespaces: [], pod-cidrs: [10.0.0.1/8], max-keys: -1}\n"))
	f.Add([]byte("accepts: {pod-cidrs: [" + strings.Repeat("a,", 4000) + "]}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var a admission
		var err error
		cost.Bounded(t, len(raw), yamlfile.Overhead, func() { a, err = parsePeerFile(raw, 255) })
		if err != nil {
			return
		}
		text := string(raw)
		switch {
		case a.ID > 255 || a.maxKeys < 0 || a.maxBytes < 0 || a.MaxBackends < 0 || a.Brake < mesh.NoBrake || a.Brake > 99:
			t.Fatalf("accepted %+v", a)
		case slices.Contains(a.Namespaces, "") || len(a.Namespaces) > maxListed || len(a.Allow) > maxListed:
			t.Fatalf("accepted the lists of %+v", a)
		case len(a.Allow) == 0 && strings.HasPrefix(text, "accepts:\n  pod-cidrs:"), len(a.Namespaces) == 0 && strings.HasPrefix(text, "accepts:\n  namespaces:"):
			t.Fatalf("a restriction without effect: %+v", a)
		}
		for _, p := range a.Allow {
			if p != p.Masked() {
				t.Fatalf("accepted the range %v", p)
			}
		}
	})
}
