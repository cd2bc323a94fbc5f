package conformance

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

func TestPrintableTamesWhatServersWrite(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  "plain",
		"two\nlines":             "two; lines",
		"\x1b[31mred\a\x00":      " [31mred  ",
		"\xff\xfe":               "  ",
		"right\u202eleft":        "right left",
		"grüße":                  "grüße",
		`{"id":7,"x":"\t"}`:      `{"id":7,"x":"\t"}`,
		strings.Repeat("ü", 500): strings.Repeat("ü", maxEvidence) + "...",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestAppendLength holds the encoding to the example of RFC 7541 C.1.2, with a
// prefix of 7 bits instead of 5, and to its own inverse.
func TestAppendLength(t *testing.T) {
	for _, n := range []int{0, 1, 126, 127, 128, 253, 254, 255, 1337, 1 << 14} {
		b := appendLength(nil, n)
		got := int(b[0])
		if b[0] == 127 {
			rest, size := binary.Uvarint(b[1:])
			if size != len(b)-1 {
				t.Errorf("%d: %x has bytes left over", n, b)
			}
			got += int(rest)
		} else if len(b) != 1 {
			t.Errorf("%d: %x", n, b)
		}
		if got != n {
			t.Errorf("%d is written as %x, which is %d", n, b, got)
		}
	}
	if got := appendLength(nil, 1337); !bytes.Equal(got, []byte{127, 0xba, 0x09}) {
		t.Errorf("1337 is %x", got)
	}
}

func TestTargetValidate(t *testing.T) {
	for endpoint, ok := range map[string]bool{
		"https://east.mesh.cilium.io:2379": true, "https://[2001:db8::1]:2379": true, "https://192.0.2.1:2379/": true,
		"http://192.0.2.1:2379": false, "https://192.0.2.1": false, "192.0.2.1:2379": false, "https://:2379": false, "https://a:1/path": false, "": false,
	} {
		if err := (Target{Cluster: "east", Endpoint: endpoint}).Validate(); (err == nil) != ok {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
	if err := (Target{Endpoint: "https://a:1"}).Validate(); err == nil {
		t.Error("a target without a cluster is accepted")
	}
}

// TestLeanClusterIsNotFaulted covers what a cluster may leave out.
func TestLeanClusterIsNotFaulted(t *testing.T) {
	w := newWorld(t, "east")
	w.config.Capabilities.SyncedCanaries = false
	w.config.Capabilities.ServiceExportsEnabled = nil
	w.config.Capabilities.EndpointSlicesExportMode = ""
	w.config.Capabilities.MaxConnectedClusters = 0
	w.opts.OwnID, w.opts.Wait, w.opts.ProbeWrites = 0, false, false
	w.open()
	spoiled := map[string]Outcome{"config-id-own": Skip, "ping-tolerated": Skip, "heartbeat-put": Skip, "data-endpointslices": Skip, "data-serviceexports": Skip}
	for _, k := range kinds() {
		spoiled["canary-"+k.String()] = Skip
	}
	for _, kind := range []string{"put", "delete", "txn", "lease"} {
		spoiled["deny-"+kind] = Skip
	}
	w.compare(expect(spoiled))
}
