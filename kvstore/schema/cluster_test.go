package schema

import (
	"strings"
	"testing"
	"time"
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
