package schema

import (
	"strings"
	"testing"
)

func TestKeysAreSpelledAsObservedOnTheWire(t *testing.T) {
	tests := []struct{ got, want string }{
		{ServiceKey("east", "shop", "web"), "cilium/state/services/v1/east/shop/web"},
		{NodeKey("east", "n1"), "cilium/state/nodes/v1/east/n1"},
		{IdentityKey(458753), "cilium/state/identities/v1/id/458753"},
		{IPKey("10.7.0.21"), "cilium/state/ip/v1/default/10.7.0.21"},
		{EndpointSliceKey("east", "shop", "web-x7k2p"), "cilium/state/endpointslices/v1/east/shop/web-x7k2p"},
		{ServiceExportKey("east", "shop", "web"), "cilium/state/serviceexports/v1/east/shop/web"},
		{LocalServiceKey("east", "shop", "web"), "clustermesh/local/services/v1/east/shop/web"},
		{ClusterConfigKey("east"), "cilium/cluster-config/east"},
		{HeartbeatKey, "cilium/.heartbeat"},
		{CanaryPrefix("east"), "cilium/synced/east/"},
		{LocalCanaryPrefix("east"), "clustermesh/synced/east/"},
		{WatchPrefix(KindService, "east", false), "cilium/state/services/v1/east/"},
		{WatchPrefix(KindNode, "east", false), "cilium/state/nodes/v1/east/"},
		{WatchPrefix(KindIdentity, "east", false), "cilium/state/identities/v1/id/"},
		{WatchPrefix(KindIP, "east", false), "cilium/state/ip/v1/default/"},
		{WatchPrefix(KindLocalService, "east", false), "clustermesh/local/services/v1/east/"},
		{WatchPrefix(KindEndpointSlice, "east", false), "cilium/state/endpointslices/v1/east/"},
		{WatchPrefix(KindServiceExport, "east", false), "cilium/state/serviceexports/v1/east/"},
		{WatchPrefix(KindEndpointSlice, "east", true), "cilium/cache/endpointslices/v1/east/"},
		{WatchPrefix(KindServiceExport, "east", true), "cilium/cache/serviceexports/v1/east/"},
		{WatchPrefix(KindService, "east", true), "cilium/cache/services/v1/east/"},
		{WatchPrefix(KindNode, "east", true), "cilium/cache/nodes/v1/east/"},
		{WatchPrefix(KindIdentity, "east", true), "cilium/cache/identities/v1/east/id/"},
		{WatchPrefix(KindIP, "east", true), "cilium/cache/ip/v1/east/"},
		{WatchPrefix(KindLocalService, "east", true), "clustermesh/local/services/v1/east/"},
		{CanaryKey(KindService, "east", false), "cilium/synced/east/cilium/state/services/v1"},
		{CanaryKey(KindNode, "east", false), "cilium/synced/east/cilium/state/nodes/v1"},
		{CanaryKey(KindIdentity, "east", false), "cilium/synced/east/cilium/state/identities/v1"},
		{CanaryKey(KindIP, "east", false), "cilium/synced/east/cilium/state/ip/v1"},
		{CanaryKey(KindService, "east", true), "cilium/synced/east/cilium/cache/services/v1"},
		{CanaryKey(KindNode, "east", true), "cilium/synced/east/cilium/cache/nodes/v1"},
		{CanaryKey(KindIdentity, "east", true), "cilium/synced/east/cilium/cache/identities/v1"},
		{CanaryKey(KindIP, "east", true), "cilium/synced/east/cilium/cache/ip/v1"},
		{CanaryKey(KindEndpointSlice, "east", false), "cilium/synced/east/cilium/state/endpointslices/v1"},
		{CanaryKey(KindServiceExport, "east", false), "cilium/synced/east/cilium/state/serviceexports/v1"},
		{CanaryKey(KindEndpointSlice, "east", true), "cilium/synced/east/cilium/cache/endpointslices/v1"},
		{CanaryKey(KindServiceExport, "east", true), "cilium/synced/east/cilium/cache/serviceexports/v1"},
		{CanaryKey(KindLocalService, "east", false), "clustermesh/synced/east/local/services/v1"},
		{CanaryKey(KindLocalService, "east", true), "clustermesh/synced/east/local/services/v1"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestKindNames(t *testing.T) {
	want := map[Kind]string{
		KindService: "services", KindNode: "nodes", KindIdentity: "identities", KindIP: "ip",
		KindLocalService: "local-services", KindEndpointSlice: "endpointslices", KindServiceExport: "serviceexports", Kind(99): "kind-99",
	}
	for k, name := range want {
		if k.String() != name {
			t.Errorf("kind %d is called %q, want %q", k, k, name)
		}
	}
}

// Entries lie below their watch prefix, and no two kinds or clusters share one.
func TestWatchPrefixHoldsItsEntriesAlone(t *testing.T) {
	entries := map[Kind]string{
		KindService: ServiceKey("a", "ns", "s"), KindNode: NodeKey("a", "n"), KindIdentity: IdentityKey(65537),
		KindIP: IPKey("10.0.0.1"), KindLocalService: LocalServiceKey("a", "ns", "s"),
		KindEndpointSlice: EndpointSliceKey("a", "ns", "s"), KindServiceExport: ServiceExportKey("a", "ns", "s"),
	}
	for k, key := range entries {
		for other := range entries {
			prefix := WatchPrefix(other, "a", false)
			in := key >= prefix && key < PrefixEnd(prefix)
			if in != (k == other) {
				t.Errorf("key %s of kind %v in range of kind %v: %v", key, k, other, in)
			}
		}
	}
	if strings.HasPrefix(ServiceKey("a1", "ns", "s"), WatchPrefix(KindService, "a", false)) {
		t.Error("the prefix of cluster a holds services of cluster a1")
	}
}

func TestPrefixEnd(t *testing.T) {
	tests := []struct{ prefix, want string }{
		{"cilium/.heartbeat", "cilium/.heartbeau"},
		{"a/", "a0"},
		{"a\xff", "b"},
		{"a\xff\xff", "b"},
		{"\xff", "\x00"},
		{"", "\x00"},
		{"\x7f", "\x80"},
	}
	for _, tt := range tests {
		if got := PrefixEnd(tt.prefix); got != tt.want {
			t.Errorf("PrefixEnd(%q) = %q, want %q", tt.prefix, got, tt.want)
		}
	}
}

func TestParseServiceKey(t *testing.T) {
	tests := []struct {
		kind     Kind
		cached   bool
		key      string
		ns, name string
		ok       bool
	}{
		{KindService, false, "cilium/state/services/v1/east/shop/web", "shop", "web", true},
		{KindService, true, "cilium/cache/services/v1/east/shop/web", "shop", "web", true},
		{KindLocalService, false, "clustermesh/local/services/v1/east/shop/web", "shop", "web", true},
		{KindLocalService, true, "clustermesh/local/services/v1/east/shop/web", "shop", "web", true},
		{KindEndpointSlice, false, "cilium/state/endpointslices/v1/east/shop/web-x7k2p", "shop", "web-x7k2p", true},
		{KindEndpointSlice, true, "cilium/cache/endpointslices/v1/east/shop/web-x7k2p", "shop", "web-x7k2p", true},
		{KindServiceExport, false, "cilium/state/serviceexports/v1/east/shop/web", "shop", "web", true},
		{KindServiceExport, true, "cilium/cache/serviceexports/v1/east/shop/web", "shop", "web", true},
		{KindServiceExport, false, "cilium/state/services/v1/east/shop/web", "", "", false},
		{KindService, false, "cilium/state/serviceexports/v1/east/shop/web", "", "", false},
		{KindEndpointSlice, true, "cilium/state/endpointslices/v1/east/shop/web", "", "", false},
		{KindService, false, "cilium/cache/services/v1/east/shop/web", "", "", false},
		{KindService, false, "cilium/state/services/v1/east2/shop/web", "", "", false},
		{KindService, false, "cilium/state/services/v1/east/shop", "", "", false},
		{KindService, false, "cilium/state/services/v1/east/shop/", "", "", false},
		{KindService, false, "cilium/state/services/v1/east//web", "", "", false},
		{KindService, false, "cilium/state/services/v1/east/shop/web/x", "", "", false},
		{KindService, false, "cilium/state/services/v1/east/shop/We", "", "", false},
		{KindService, false, "cilium/state/services/v1/east/../web", "", "", false},
		{KindService, false, "cilium/state/services/v1/east/shop/\x1b[2J", "", "", false},
		{KindService, false, "cilium/state/services/v1/east/shop/" + strings.Repeat("a", 254), "", "", false},
		{KindService, false, "", "", "", false},
	}
	for _, tt := range tests {
		ns, name, err := ParseServiceKey(tt.kind, "east", tt.cached, tt.key)
		if ns != tt.ns || name != tt.name || (err == nil) != tt.ok {
			t.Errorf("ParseServiceKey(%v, %q) = %q, %q, %v", tt.kind, tt.key, ns, name, err)
		}
		if !tt.ok {
			wantField(t, err, "key")
		}
	}
}
