package schema

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/schema/schemapb"
	"google.golang.org/protobuf/proto"
)

// message is a slice that encodes as the bare message.
type message struct{ *EndpointSlice }

func (m message) Encode() []byte { return appendSlice(nil, m.EndpointSlice) }

func FuzzDecodeEndpointSlice(f *testing.F) {
	for _, value := range hostileFrames(f) {
		f.Add(value)
	}
	f.Add(unhex(webFrame))
	f.Add(unhex(webStream))
	f.Fuzz(func(t *testing.T, value []byte) {
		var c SliceCodec
		s, err := measuredSlice(t, len(value), func() (*EndpointSlice, error) { return c.Decode(east(false), webKey, value, DefaultLimits()) })
		if err != nil {
			checkRefused(t, err)
			return
		}
		again, err := c.Decode(east(false), webKey, c.Encode(s), roomy())
		if err != nil || !reflect.DeepEqual(again, s) || s.Validate() != nil {
			t.Fatalf("%+v decodes to %+v (%v, %v)", s, again, err, s.Validate())
		}
	})
}

// The message without its compression, against the generated code.
func FuzzDecodeSliceMessage(f *testing.F) {
	web := unhex(webMessage)
	f.Add(web)
	f.Add(web[:len(web)/2])
	f.Add(append(unhex(webMessage), "\x53\x54\x42\x0e\x0a\x0810.7.0.1\x12\x00\x12\x00"...))
	f.Add(appendSlice(nil, &EndpointSlice{Cluster: "east", ClusterID: 7, Namespace: "shop", Name: "web-x7k2p", AddressType: IPv6,
		Endpoints: []Endpoint{{Addresses: addrs("fd00::1"), ForZones: []string{"a", ""}}}}))
	decode := func(value []byte) (record, error) {
		s, err := decodeSlice(east(false), "shop", "web-x7k2p", webKey, value, roomy())
		return message{s}, err
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := measuredSlice(t, len(value), func() (*EndpointSlice, error) { return decodeWeb(value) })
		checkFuzzed(t, value, message{s}, err, decode)
		checkAgainstOracle(t, value, s, err)
	})
}

func checkAgainstOracle(t *testing.T, value []byte, s *EndpointSlice, err error) {
	t.Helper()
	var m schemapb.EndpointSlice
	failed := proto.Unmarshal(value, &m)
	if err == nil && failed != nil {
		t.Fatalf("generated code refuses it: %v", failed)
	}
	want, ok := oracleSlice(&m)
	ok = ok && want.Cluster == "east" && want.ClusterID == 7 && want.Namespace == "shop" && want.Name == "web-x7k2p"
	if err == nil && (!ok || !reflect.DeepEqual(s, want)) {
		t.Fatalf("got %+v, want %+v (%v)", s, want, ok)
	}
	// A member that occurs twice is judged at its first by us, at its last by
	// generated code; what that keeps is shorter then.
	if err != nil && failed == nil && ok && proto.Size(&m) == len(value) && !beyondSliceOracle(err) {
		t.Fatalf("generated code accepts it: %v", err)
	}
}

func FuzzDecodeServiceExport(f *testing.F) {
	seed(f, exportHeadless, exportSmallest, strings.Replace(exportSmallest, `"ports":[]`, `"labels":{},"Labels":{"<":"\u0001"}`, 1))
	decode := func(value []byte) (record, error) {
		return DecodeServiceExport(east(false), ServiceExportKey("east", "shop", "db"), value, roomy())
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := measured(t, len(value), func() (*ServiceExport, error) { return decodeDB(value) })
		// Texts are written twice, and a character may need six.
		checkFuzzedGrowth(t, 12, value, got, err, decode)
		if err == nil && got.Validate() != nil {
			t.Fatalf("what was accepted does not validate: %v", got.Validate())
		}
	})
}

func FuzzParseTime(f *testing.F) {
	f.Add("2026-11-21T00:35:12Z")
	f.Add("2026-11-21T00:35:12.5+01:00")
	f.Fuzz(func(t *testing.T, text string) {
		var got int64
		var ok bool
		cost.Bounded(t, len(text), 0, func() { got, ok = parseTime([]byte(text)) })
		want, err := time.Parse(time.RFC3339, text)
		if ok && (err != nil || got != want.Unix()) {
			t.Fatalf("%q is read as %d, want %d (%v)", text, got, want.Unix(), err)
		}
	})
}
