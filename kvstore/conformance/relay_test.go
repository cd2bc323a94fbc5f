package conformance

import (
	"crypto/x509"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// TestRelayPasses looks at a cluster through another's relay, laid out and
// granted as Cilium's KVStoreMesh does.
func TestRelayPasses(t *testing.T) {
	w := newWorld(t, "east")
	w.config.Capabilities.Cached = true
	w.ca.files(&w.target, w.ca.issue("local-home", x509.ExtKeyUsageClientAuth))
	w.server.granted = []keyRange{
		heartbeatRange(), prefixRange("cilium/cache/"), prefixRange("cilium/cluster-config/"), prefixRange("cilium/synced/"),
	}
	for key, value := range entriesOf("east", w.config) {
		for _, k := range kinds() {
			if rest, ok := strings.CutPrefix(key, schema.WatchPrefix(k, "east", false)); ok {
				w.content[key], w.content[schema.WatchPrefix(k, "east", true)+rest] = nil, value
			}
			if key == schema.CanaryKey(k, "east", false) {
				w.content[key], w.content[schema.CanaryKey(k, "east", true)] = nil, value
			}
		}
	}
	w.open()
	w.compare(expect(map[string]Outcome{"deny-config-list": Skip, "watch-deletes": Skip}))
}
