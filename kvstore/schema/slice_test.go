package schema

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/schema/schemapb"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

const (
	// webMessage was made by protoc, the two frames of it by zstd 1.5.4; the
	// second frame does not announce its size.
	webMessage = "0a046561737410071a0473686f7022097765622d78376b32702a0a0a0361707012037765622a210a1a6b756265726e657465732e696f2f736572766963652d6e616d65120377656232080a046e6f746512003a0449507634422b0a0931302e372e302e3231120608011001180032026e313a06656173742d61420a0a080a06656173742d6142250a0931302e372e302e323212060800100118011a0464622d3032026e323a06656173742d624a210a0468747470120354435018903f22116b756265726e657465732e696f2f6832634a090a0012035544501835"
	webFrame   = "28b52ffd24da4d0500520a2418507d3033de1d483319138621d149e34fe864495ed88c3c58d8127ae3a000fc00cd8e26ce562f61270e8afb3fba790396bd92ca733301d01f6e70ce91d287494f68162b74600990c02014ab4fd5944d9575f088bbe4f0db1aa0f8dfb29b1bddaf242b7933955f0f536d3ac1fe7bf6f565ac32bc814a3f0f8aeb9203e790dbd58c964a3f1f8edba2f0660ae4c3a4df3c0800314606e00aab0003c001c0a0dac25e080673a933269541be"
	webStream  = "28b52ffd0458ad0500e24a2826406bf4c3301b03dc012c86223889793656d7b0693c14d4cb5fd9dddba49e43ea95afc2b2720706714a60687035d3703815001d44c40961a1c19b33e5fa6954b78a47b236388745d6acb74017e8d7cda03263facb42b28aafc81af61628f98ca6624612d3038c02c9a4e0160b7eaeacebe7ef40ad7cc74312794c503d26fefc36f2f501e2f493a83f69f05edaba13d7210a08597fc240b7a2b073009a8ce9bb0e050031468656390b1514f6f26030823a03269541be"
	// fooMessage is the smallest slice, of cluster "default" with id 0.
	fooMessage = "0a0764656661756c7410001a036261722203666f6f3a0449507634"
	fooFrame   = "28b52ffd0458d900000a0764656661756c7410001a036261722203666f6f3a04495076348944a75d"
)

// webKey is where the slice of webMessage lies.
const webKey = "cilium/state/endpointslices/v1/east/shop/web-x7k2p"

func webSlice() *EndpointSlice {
	return &EndpointSlice{
		Cluster: "east", ClusterID: 7, Namespace: "shop", Name: "web-x7k2p",
		Labels:      map[string]string{"app": "web", serviceNameLabel: "web"},
		Annotations: map[string]string{"note": ""},
		AddressType: IPv4,
		Endpoints: []Endpoint{
			{Addresses: addrs("10.7.0.21"), Ready: ConditionTrue, Serving: ConditionTrue, Terminating: ConditionFalse,
				NodeName: "n1", Zone: "east-a", ForZones: []string{"east-a"}},
			{Addresses: addrs("10.7.0.22"), Ready: ConditionFalse, Serving: ConditionTrue, Terminating: ConditionTrue,
				Hostname: "db-0", NodeName: "n2", Zone: "east-b"},
		},
		Ports: []SlicePort{{"http", TCP, 8080, "kubernetes.io/h2c"}, {"", UDP, 53, ""}},
	}
}

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, addr(text))
	}
	return list
}

func unhex(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return b
}

func TestSliceMessagesHaveTheBytesOfTheWire(t *testing.T) {
	foo := &EndpointSlice{Cluster: "default", Namespace: "bar", Name: "foo", AddressType: IPv4}
	for want, s := range map[string]*EndpointSlice{fooMessage: foo, webMessage: webSlice()} {
		if got := hex.EncodeToString(appendSlice(nil, s)); got != want {
			t.Errorf("encoded\n%s, want\n%s", got, want)
		}
	}
}

func TestSlicesOfOtherCompressorsDecode(t *testing.T) {
	var c SliceCodec
	for _, frame := range []string{webFrame, webStream} {
		for _, cached := range []bool{false, true} {
			got, err := c.Decode(east(cached), WatchPrefix(KindEndpointSlice, "east", cached)+"shop/web-x7k2p", unhex(frame), DefaultLimits())
			if err != nil || !reflect.DeepEqual(got, webSlice()) {
				t.Errorf("got %+v (%v), want %+v", got, err, webSlice())
			}
		}
	}
	got, err := c.Decode(Source{Cluster: "default"}, EndpointSliceKey("default", "bar", "foo"), unhex(fooFrame), DefaultLimits())
	if want := (&EndpointSlice{Cluster: "default", Namespace: "bar", Name: "foo", AddressType: IPv4}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
}

func TestServiceName(t *testing.T) {
	tests := map[string]string{"web": "web", "a.b": "a.b", "": "", "We": "", "a b": "", "-": "", "../x": "", strings.Repeat("a", 254): ""}
	for label, want := range tests {
		s := EndpointSlice{Labels: map[string]string{serviceNameLabel: label}}
		if got := s.ServiceName(); got != want {
			t.Errorf("label %q: got %q, want %q", label, got, want)
		}
	}
	if got := (&EndpointSlice{Name: "web-x7k2p"}).ServiceName(); got != "" {
		t.Errorf("without the label: got %q", got)
	}
}

func TestConditions(t *testing.T) {
	yes, no := true, false
	tests := []struct {
		value       *bool
		want        Condition
		or, orFalse bool
	}{{nil, ConditionUnknown, true, false}, {&yes, ConditionTrue, true, true}, {&no, ConditionFalse, false, false}}
	for _, tt := range tests {
		c := ConditionOf(tt.value)
		if c != tt.want || c.Or(true) != tt.or || c.Or(false) != tt.orFalse {
			t.Errorf("got %v, %v, %v; want %+v", c, c.Or(true), c.Or(false), tt)
		}
	}
}

// sliceTest alters webMessage and names the field the error must blame; ""
// means that the slice must still be accepted.
type sliceTest struct {
	name  string
	field string
	alter func(*schemapb.EndpointSlice)
}

func sliceFieldTests() []sliceTest {
	type pb = schemapb.EndpointSlice
	text := proto.String
	address := func(a string) func(*pb) { return func(s *pb) { s.Endpoints[1].Addresses[0] = a } }
	return []sliceTest{
		{"nothing", "", func(*pb) {}},
		{"other cluster", "cluster", func(s *pb) { s.Cluster = text("west") }},
		{"empty cluster", "cluster", func(s *pb) { s.Cluster = text("") }},
		{"no cluster", "cluster", func(s *pb) { s.Cluster = nil }},
		{"other id", "clusterID", func(s *pb) { s.ClusterId = proto.Uint32(8) }},
		{"no id", "clusterID", func(s *pb) { s.ClusterId = nil }},
		{"other namespace", "namespace", func(s *pb) { s.Namespace = text("kube-system") }},
		{"no namespace", "namespace", func(s *pb) { s.Namespace = nil }},
		{"other name", "name", func(s *pb) { s.Name = text("web-x7k2q") }},
		{"no name", "name", func(s *pb) { s.Name = nil }},
		{"label not text", "labels", func(s *pb) { s.Labels["a"] = "\xff" }},
		{"label name not text", "labels", func(s *pb) { s.Labels["\xff"] = "" }},
		{"empty label", "", func(s *pb) { s.Labels[""] = "" }},
		{"annotation not text", "annotations", func(s *pb) { s.Annotations["a"] = "\xff" }},
		{"names", "addressType", func(s *pb) { s.AddressType = text("FQDN") }},
		{"lower case", "addressType", func(s *pb) { s.AddressType = text("ipv4") }},
		{"no family", "addressType", func(s *pb) { s.AddressType = nil }},
		{"other family", "endpoints/addresses", func(s *pb) { s.AddressType = text("IPv6") }},
		{"IPv6 address", "endpoints/addresses", address("fd00::1")},
		{"mapped address", "endpoints/addresses", address("::ffff:10.7.0.22")},
		{"no address", "endpoints/addresses", address("web.shop")},
		{"empty address", "endpoints/addresses", address("")},
		{"leading zero", "endpoints/addresses", address("10.7.0.022")},
		{"prefix", "endpoints/addresses", address("10.7.0.22/32")},
		{"control character", "endpoints/addresses", address("10.7.0.22\x1b")},
		{"zone", "endpoints/addresses", func(s *pb) { six(s, "fe80::1%eth0") }},
		{"mapped in IPv6", "endpoints/addresses", func(s *pb) { six(s, "::ffff:10.7.0.22") }},
		{"IPv4 in IPv6", "endpoints/addresses", func(s *pb) { six(s, "10.7.0.22") }},
		{"IPv6", "", func(s *pb) { six(s, "FD00:0::1") }},
		{"endpoint without address", "endpoints/addresses", func(s *pb) { s.Endpoints[0].Addresses = nil }},
		{"two addresses", "", func(s *pb) { s.Endpoints[0].Addresses = []string{"10.7.0.1", "10.7.0.2"} }},
		{"no endpoints", "", func(s *pb) { s.Endpoints = nil }},
		{"no conditions", "", func(s *pb) { s.Endpoints[0].Conditions = nil }},
		{"no ready", "", func(s *pb) { s.Endpoints[0].Conditions.Ready = nil }},
		{"hostname", "endpoints/hostname", func(s *pb) { s.Endpoints[0].Hostname = text("a b") }},
		{"node", "endpoints/nodeName", func(s *pb) { s.Endpoints[0].NodeName = text("\x1b[2J") }},
		{"zone name", "endpoints/zone", func(s *pb) { s.Endpoints[0].Zone = text(strings.Repeat("z", 254)) }},
		{"long zone name", "", func(s *pb) { s.Endpoints[0].Zone = text(strings.Repeat("z", 253)) }},
		{"hint", "endpoints/hints/forZones/name", func(s *pb) { s.Endpoints[0].Hints.ForZones[0].Name = text("ü") }},
		{"no hints", "", func(s *pb) { s.Endpoints[0].Hints.ForZones = nil }},
		{"port name", "ports/name", func(s *pb) { s.Ports[0].Name = text("a\n") }},
		{"port name too long", "ports/name", func(s *pb) { s.Ports[0].Name = text(strings.Repeat("p", 64)) }},
		{"long port name", "", func(s *pb) { s.Ports[0].Name = text(strings.Repeat("p", 63)) }},
		{"no port name", "", func(s *pb) { s.Ports[0].Name = nil }},
		{"protocol", "ports/protocol", func(s *pb) { s.Ports[0].Protocol = text("tcp") }},
		{"empty protocol", "ports/protocol", func(s *pb) { s.Ports[0].Protocol = text("") }},
		{"no protocol", "", func(s *pb) { s.Ports[0].Protocol = nil }},
		{"negative port", "ports/port", func(s *pb) { s.Ports[0].Port = proto.Int32(-1) }},
		{"large port", "ports/port", func(s *pb) { s.Ports[0].Port = proto.Int32(65536) }},
		{"port 0", "", func(s *pb) { s.Ports[0].Port = proto.Int32(0) }},
		{"no port", "", func(s *pb) { s.Ports[0].Port = nil }},
		{"app protocol", "ports/appProtocol", func(s *pb) { s.Ports[0].AppProtocol = text("h 2") }},
		{"no ports", "", func(s *pb) { s.Ports = nil }},
	}
}

// six makes the slice one of IPv6 with one address.
func six(s *schemapb.EndpointSlice, address string) {
	s.AddressType = proto.String("IPv6")
	s.Endpoints = s.Endpoints[:1]
	s.Endpoints[0].Addresses = []string{address}
}

func TestDecodeSliceNamesTheWrongField(t *testing.T) {
	for _, tt := range sliceFieldTests() {
		t.Run(tt.name, func(t *testing.T) {
			var m schemapb.EndpointSlice
			if err := proto.Unmarshal(unhex(webMessage), &m); err != nil {
				t.Fatal(err)
			}
			tt.alter(&m)
			message, err := proto.Marshal(&m)
			if err != nil {
				t.Fatal(err)
			}
			checkSliceField(t, message, tt.field)
		})
	}
}

func checkSliceField(t *testing.T, message []byte, field string) {
	t.Helper()
	s, err := decodeWeb(message)
	if field != "" {
		wantField(t, err, field)
		checkPrintable(t, err)
		return
	}
	if err != nil {
		t.Fatalf("must be accepted: %v", err)
	}
	if err := s.Validate(); err != nil {
		t.Errorf("what was accepted does not validate: %v", err)
	}
}

// decodeWeb decodes a message as if it lay at webKey.
func decodeWeb(message []byte) (*EndpointSlice, error) {
	return decodeSlice(east(false), "shop", "web-x7k2p", webKey, message, DefaultLimits())
}

// What no generated encoder writes.
func TestDecodeSliceRefusesMalformedMessages(t *testing.T) {
	web := unhex(webMessage)
	tests := []struct {
		name, more, field string
	}{
		{"second cluster", "0a0465617374", "cluster"},
		{"second id", "1007", "clusterID"},
		{"second family", "3a0449507634", "addressType"},
		{"cluster as number", "0801", "cluster"},
		{"id as text", "120107", "clusterID"},
		{"id of 33 bits", "108780808010", "clusterID"},
		{"label twice", "2a0a0a03617070120377656c", "labels"},
		{"label as number", "2801", "labels"},
		{"label with two keys", "2a060a01610a0161", "labels"},
		{"label of a number", "2a020801", "labels"},
		{"label without parts", "2a00", ""},
		{"endpoint as number", "4001", "endpoints"},
		{"address as number", "42020801", "endpoints/addresses"},
		{"conditions twice", "420e0a0831302e372e302e3112001200", "endpoints/conditions"},
		{"ready twice", "42100a0831302e372e302e31120408010801", "endpoints/conditions/ready"},
		{"ready as text", "420f0a0831302e372e302e3112030a0101", "endpoints/conditions/ready"},
		{"ready is 2", "420e0a0831302e372e302e3112020802", ""},
		{"port twice", "4a0418011801", "ports/port"},
		{"empty port", "4a00", ""},
		{"unknown fields", "500a5a0161650000000069000000000000000053500154", ""},
		{"unknown field of an endpoint", "420e0a0831302e372e302e312202aabb", ""},
		{"field 0", "0000", wholeValue},
		{"no length", "42", wholeValue},
		{"length beyond the end", "427f", wholeValue},
		{"length of 64 bits", "42ffffffffffffffffff01", wholeValue},
		{"endless number", "10ffffffffffffffffffff01", wholeValue},
		{"group without end", "53", wholeValue},
		{"end without group", "54", wholeValue},
		{"wire type 6", "56", wholeValue},
		{"endpoint cut short", "42010a", "endpoints"},
		{"hints cut short", "420d0a0831302e372e302e3142010a", "endpoints/hints"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkSliceField(t, append(bytes.Clone(web), unhex(tt.more)...), tt.field) })
	}
}

// The family may come last.
func TestFieldsMayComeInAnyOrder(t *testing.T) {
	web := unhex(webMessage)
	family := unhex("3a0449507634")
	at := bytes.Index(web, family)
	message := append(append(bytes.Clone(web[:at]), web[at+len(family):]...), family...)
	got, err := decodeWeb(message)
	if err != nil || !reflect.DeepEqual(got, webSlice()) {
		t.Errorf("got %+v (%v)", got, err)
	}
	checkSliceField(t, bytes.Replace(message, family, unhex("3a0449507636"), 1), "endpoints/addresses")
}

func TestSliceLimits(t *testing.T) {
	many := webSlice()
	many.Endpoints[0].ForZones = []string{"a", "b", "c"}
	many.Endpoints[1].Addresses = addrs("10.7.0.22", "10.7.0.23")
	tests := []struct {
		field string
		lower func(*Limits)
	}{
		{"value bytes", func(l *Limits) { l.MaxValueBytes = 100 }},
		{"endpoints", func(l *Limits) { l.MaxBackends = 1 }},
		{"endpoints/addresses", func(l *Limits) { l.MaxBackends = 2 }},
		{"ports", func(l *Limits) { l.MaxPorts = 1 }},
		{"labels", func(l *Limits) { l.MaxNames = 1 }},
		{"endpoints/hints/forZones", func(l *Limits) { l.MaxNames = 2 }},
		{"value bytes", func(l *Limits) { *l = Limits{} }},
	}
	var c SliceCodec
	value := c.Encode(many)
	for _, tt := range tests {
		l := DefaultLimits()
		tt.lower(&l)
		_, err := c.Decode(east(false), webKey, value, l)
		wantField(t, err, tt.field)
	}
}

func TestDecodedSizeIsLimitedWhetherAnnouncedOrNot(t *testing.T) {
	var c SliceCodec
	l := DefaultLimits()
	l.MaxDecodedBytes = len(webMessage) / 2
	for field, frame := range map[string]string{"decoded bytes": webFrame, wholeValue: webStream} {
		if _, err := c.Decode(east(false), webKey, unhex(frame), l); err != nil {
			t.Errorf("a message of just the limit: %v", err)
		}
		less := l
		less.MaxDecodedBytes--
		_, err := c.Decode(east(false), webKey, unhex(frame), less)
		wantField(t, err, field)
	}
}

// hostileFrames are values that no writer of slices sends.
func hostileFrames(t testing.TB) map[string][]byte {
	frame := func(message []byte, announce bool) []byte {
		var b bytes.Buffer
		e, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		if announce {
			return e.EncodeAll(message, nil)
		}
		if _, err := e.Write(message); err != nil || e.Close() != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	web := unhex(webFrame)
	checksum := bytes.Clone(web)
	checksum[len(checksum)-1] ^= 1
	endpoint := unhex("420c0a0831302e372e302e311200")
	return map[string][]byte{
		"nothing":             {},
		"JSON":                []byte(eastService),
		"uncompressed":        unhex(webMessage),
		"magic alone":         web[:4],
		"half a header":       web[:5],
		"half a frame":        web[:len(web)/2],
		"no checksum":         web[:len(web)-4],
		"wrong checksum":      checksum,
		"bytes behind":        append(bytes.Clone(web), 0, 0, 0, 0),
		"two frames":          append(bytes.Clone(web), web...),
		"skippable frame":     append(unhex("502a4d1803000000616263"), web...),
		"empty frame":         frame(nil, true),
		"zeros":               frame(make([]byte, 15<<20), true),
		"unannounced zeros":   frame(make([]byte, 15<<20), false),
		"many zeros":          frame(make([]byte, 100<<20), true),
		"gzip":                unhex("1f8b0800000000000003"),
		"lying size":          append(unhex("28b52ffda000000001"), web[6:]...),
		"size of 64 bits":     append(unhex("28b52ffde0ffffffffffffff7f"), web[6:]...),
		"window of 3 TiB":     append(unhex("28b52ffd00ff"), web[6:]...),
		"dictionary":          append(unhex("28b52ffd2107da"), web[6:]...),
		"endless endpoints":   frame(bytes.Repeat(endpoint, 6_000), true),
		"nested groups":       frame(bytes.Repeat([]byte{0x53}, 200_000), true),
		"endless labels":      frame(labelMessage(20_000), true),
		"unannounced endless": frame(bytes.Repeat(endpoint, 1_000_000), false),
	}
}

func labelMessage(n int) []byte {
	labels := map[string]string{}
	for i := range n {
		labels[fmt.Sprint(i)] = ""
	}
	return appendSlice(nil, &EndpointSlice{Cluster: "east", ClusterID: 7, Namespace: "shop", Name: "web-x7k2p", AddressType: IPv4, Labels: labels})
}

// Each is refused, whatever was decoded before, and costs at most what any
// small value may, or a multiple of its size.
func TestHostileFramesAreRefusedCheaply(t *testing.T) {
	var c SliceCodec
	for name, value := range hostileFrames(t) {
		t.Run(name, func(t *testing.T) {
			if _, err := c.Decode(east(false), webKey, unhex(webStream), DefaultLimits()); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := c.Decode(east(false), webKey, value, DefaultLimits())
			runtime.ReadMemStats(&after)
			checkRefused(t, err)
			if used, most := after.TotalAlloc-before.TotalAlloc, uint64(max(4*freeBytes, 2*maxRatio*len(value))); used > most {
				t.Errorf("%d bytes cost %d of memory, want at most %d", len(value), used, most)
			}
		})
	}
}

func checkRefused(t *testing.T, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error", err)
	}
	checkPrintable(t, err)
}

// The bytes do not depend on what the codec did before, so a publisher can
// compare them.
func TestEncodingIsStable(t *testing.T) {
	var c SliceCodec
	rapid.Check(t, func(t *rapid.T) {
		s := genSlice.Draw(t, "slice")
		var fresh SliceCodec
		if got, want := c.Encode(s), fresh.Encode(s); !bytes.Equal(got, want) {
			t.Fatalf("encoded %x, and by a new codec %x", got, want)
		}
	})
}

func TestCodecOwnsNothingOfItsResults(t *testing.T) {
	var c SliceCodec
	first := c.Encode(webSlice())
	kept := bytes.Clone(first)
	s, err := c.Decode(east(false), webKey, first, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	other := webSlice()
	other.Name, other.Endpoints[0].NodeName = "web-other", "node-other"
	c.Encode(other)
	if !bytes.Equal(first, kept) || !reflect.DeepEqual(s, webSlice()) {
		t.Error("a later call changed an earlier result")
	}
}

func TestCodecStartsNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	var c SliceCodec
	if _, err := c.Decode(east(false), webKey, c.Encode(webSlice()), DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines became %d", before, after)
	}
}
