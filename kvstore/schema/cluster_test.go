package schema

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestValidateClusterName(t *testing.T) {
	tests := map[string]bool{
		"a": true, "7": true, "east": true, "east-1": true, "a--b": true, strings.Repeat("x", 32): true,
		"": false, "-a": false, "a-": false, "-": false, "East": false, "a.b": false, "a_b": false, "ä": false,
		"a/b": false, "a b": false, "a\n": false, strings.Repeat("x", 33): false, "default": false,
	}
	for name, ok := range tests {
		err := ValidateClusterName(name)
		if (err == nil) != ok {
			t.Errorf("ValidateClusterName(%q) = %v", name, err)
		}
		if !ok {
			wantField(t, err, "cluster name")
		}
	}
}

func TestValidateClusterID(t *testing.T) {
	tests := []struct {
		id, max uint32
		field   string
	}{
		{1, 255, ""}, {255, 255, ""}, {511, 511, ""}, {256, 511, ""},
		{0, 255, "cluster id"}, {256, 255, "cluster id"}, {512, 511, "cluster id"},
		{1, 0, "maxConnectedClusters"}, {1, 256, "maxConnectedClusters"}, {1, 1 << 31, "maxConnectedClusters"},
	}
	for _, tt := range tests {
		err := ValidateClusterID(tt.id, tt.max)
		if tt.field != "" {
			wantField(t, err, tt.field)
		} else if err != nil {
			t.Errorf("id %d of %d: %v", tt.id, tt.max, err)
		}
	}
}

func TestIdentityRange(t *testing.T) {
	tests := []struct{ id, max, first, last uint32 }{
		{3, 255, 196608, 262143},
		{7, 255, 458752, 524287},
		{255, 255, 0xff0000, 0xffffff},
		{1, 511, 32768, 65535},
		{511, 511, 0xff8000, 0xffffff},
		{0, 255, 256, 65535},
		{0, 511, 256, 32767},
	}
	for _, tt := range tests {
		if first, last := IdentityRange(tt.id, tt.max); first != tt.first || last != tt.last {
			t.Errorf("IdentityRange(%d, %d) = %d, %d, want %d, %d", tt.id, tt.max, first, last, tt.first, tt.last)
		}
	}
}

// Every identity of 24 bits above the reserved ones belongs to one cluster.
func TestIdentityRangesMeetWithoutOverlap(t *testing.T) {
	for _, max := range []uint32{MaxClusters255, MaxClusters511} {
		next := uint32(reservedIdentities)
		for id := range max + 1 {
			first, last := IdentityRange(id, max)
			if first != next || last < first {
				t.Fatalf("cluster %d of %d has %d..%d, want it to start at %d", id, max, first, last, next)
			}
			next = last + 1
		}
		if next != 1<<24 {
			t.Errorf("the ranges of %d clusters end at %d", max, next)
		}
	}
}

func TestCheckCompatible(t *testing.T) {
	config := func(id, max uint32, mode string) ClusterConfig {
		return ClusterConfig{ID: id, Capabilities: Capabilities{MaxConnectedClusters: max, EndpointSlicesExportMode: mode}}
	}
	tests := []struct {
		name   string
		max    uint32
		remote ClusterConfig
		field  string
	}{
		{"plain", 255, config(8, 255, ""), ""},
		{"minimal", 255, ClusterConfig{ID: 8}, ""},
		{"both modes", 255, config(8, 255, "services-and-endpointslices"), ""},
		{"slices only", 255, config(8, 255, "endpointslices-only"), ""},
		{"remote larger", 255, config(8, 511, ""), ""},
		{"both 511", 511, config(300, 511, ""), ""},
		{"id 0", 255, config(0, 255, ""), "cluster id"},
		{"id too large", 255, config(256, 255, ""), "cluster id"},
		{"own id", 255, config(7, 255, ""), "cluster id"},
		{"remote smaller", 511, config(8, 255, ""), "maxConnectedClusters"},
		{"remote silent", 511, config(8, 0, ""), "maxConnectedClusters"},
		{"illegal local max", 300, config(8, 300, ""), "maxConnectedClusters"},
		{"unknown mode", 255, config(8, 255, "protobuf-only"), "capabilities/endpointSlicesExportMode"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckCompatible(config(7, tt.max, ""), tt.remote, tt.max)
			if tt.field != "" {
				wantField(t, err, tt.field)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServiceExportsEnabledHasThreeStates(t *testing.T) {
	for member, want := range map[string]string{"": "nil", `"serviceExportsEnabled":true`: "true", `"serviceExportsEnabled":false`: "false"} {
		c, err := DecodeClusterConfig("east", []byte(`{"id":7,"capabilities":{`+member+`}}`))
		if err != nil {
			t.Fatal(err)
		}
		got := "nil"
		if p := c.Capabilities.ServiceExportsEnabled; p != nil {
			got = map[bool]string{true: "true", false: "false"}[*p]
		}
		if got != want {
			t.Errorf("with %q: got %s, want %s", member, got, want)
		}
	}
}

// What a reader does and waits for, by what the peer announces.
func TestNegotiation(t *testing.T) {
	always := []Kind{KindNode, KindIdentity, KindIP}
	services, endpoints, exports := []Kind{KindService}, []Kind{KindEndpointSlice}, []Kind{KindServiceExport}
	tests := []struct {
		name, value string
		from        Kind
		published   [][]Kind
	}{
		{"minimal", configMinimal, KindService, [][]Kind{services, always}},
		{"id alone", `{"id":7}`, KindService, [][]Kind{services, always}},
		{"stock", configStock, KindEndpointSlice, [][]Kind{services, always, endpoints, exports}},
		{"exports enabled", configEast, KindEndpointSlice, [][]Kind{services, always, endpoints, exports}},
		{"cached", configCached, KindService, [][]Kind{services, always}},
		{"cached with slices", `{"id":7,"capabilities":{"syncedCanaries":true,"cached":true,"endpointSlicesExportMode":"services-and-endpointslices"}}`,
			KindEndpointSlice, [][]Kind{services, always, endpoints}},
		{"empty mode", `{"id":7,"capabilities":{"endpointSlicesExportMode":""}}`, KindService, [][]Kind{services, always}},
		{"slices only", `{"id":5,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"endpointslices-only"}}`,
			KindEndpointSlice, [][]Kind{always, endpoints, exports}},
		{"exports disabled", `{"id":7,"capabilities":{"serviceExportsEnabled":false}}`, KindService, [][]Kind{services, always, exports}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := DecodeClusterConfig("east", []byte(tt.value))
			if err != nil {
				t.Fatal(err)
			}
			if got := ReadServicesFrom(c); got != tt.from {
				t.Errorf("services are read from %v, want %v", got, tt.from)
			}
			if got, want := PublishedKinds(c), joined(tt.published); !reflect.DeepEqual(got, want) {
				t.Errorf("published are %v, want %v", got, want)
			}
		})
	}
}

func joined(parts [][]Kind) (all []Kind) {
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

// A reader never waits for the kind it reads services from in vain.
func TestServicesAreReadFromAPublishedKind(t *testing.T) {
	for _, mode := range []string{"", ModeServicesAndEndpointSlices, ModeEndpointSlicesOnly} {
		c := ClusterConfig{ID: 7, Capabilities: Capabilities{EndpointSlicesExportMode: mode}}
		if kind := ReadServicesFrom(c); !slices.Contains(PublishedKinds(c), kind) {
			t.Errorf("in mode %q services are read from %v, of %v", mode, kind, PublishedKinds(c))
		}
	}
}

func TestParseTimeAgreesWithPackageTime(t *testing.T) {
	good := []string{"1970-01-01T00:00:00Z", "2026-11-21T00:35:12Z", "2024-02-29T23:59:59Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
		"2026-11-21T00:35:12.999999999Z", "2026-11-21T00:35:12.5+01:00", "2026-11-21T00:35:12-23:59", "1969-12-31T23:59:59.9Z"}
	bad := []string{"", "Z", "2026-11-21", "2026-11-21T00:35:12", "2026-11-21T00:35:12z", "2026-11-21t00:35:12Z", "2026-11-21 00:35:12Z",
		"2023-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-01-00T00:00:00Z", "2026-01-32T00:00:00Z",
		"2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:60Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00+1:00",
		"2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+00:60", "2026-01-01T00:00:00*01:00", "2026-01-01T00:00:00ZZ", "20260-1-01T00:00:00Z", "-026-01-01T00:00:00Z"}
	for _, text := range good {
		want, err := time.Parse(time.RFC3339, text)
		if got, ok := parseTime([]byte(text)); err != nil || !ok || got != want.Unix() {
			t.Errorf("%s is %d (%v), want %d (%v)", text, got, ok, want.Unix(), err)
		}
	}
	for _, text := range bad {
		if got, ok := parseTime([]byte(text)); ok {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

func TestTimesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.Int64Range(-62167219200, 253402300799).Draw(t, "seconds")
		if got, ok := parseTime(EncodeTime(want)); !ok || got != want {
			t.Fatalf("%s is read as %d (%v), want %d", EncodeTime(want), got, ok, want)
		}
	})
}

func TestEncodeTimeAgreesWithPackageTime(t *testing.T) {
	seconds := []int64{0, 1, -1, 86399, 86400, 951782399, 951782400, 951868800, 1795221312, 4102444800, 253402300799, -62167219200}
	for s := int64(-62167219200); s < 253402300799; s += 7*86400*13 + 12345 {
		seconds = append(seconds, s)
	}
	for _, s := range seconds {
		want := time.Unix(s, 0).UTC().Format(time.RFC3339)
		if got := string(EncodeTime(s)); got != want {
			t.Fatalf("EncodeTime(%d) = %s, want %s", s, got, want)
		}
	}
}
