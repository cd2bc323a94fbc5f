package schema

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/cost"
	"google.golang.org/protobuf/encoding/protowire"
)

// sliceExtra is what a slice of the largest size takes whatever its encoding: a
// decompressor, a buffer that is kept, and lists of as many endpoints, addresses
// and zone hints as the limits allow.
const sliceExtra = 3 << 20

// measuredSlice decodes a slice within the bounds of memory.
func measuredSlice(t *testing.T, n int, decode func() (*EndpointSlice, error)) (got *EndpointSlice, err error) {
	t.Helper()
	cost.Bounded(t, n, sliceExtra, func() { got, err = decode() })
	return got, err
}

// dearSlices are messages that say little in many bytes once compressed, and
// whose members are small on the wire and large in memory.
func dearSlices() map[string][]byte {
	fill := func(number protowire.Number, entry func(i int) []byte, n int) []byte {
		message := unhex(webMessage)
		for i := range n {
			message = protowire.AppendBytes(protowire.AppendTag(message, number, protowire.BytesType), entry(i))
		}
		return message
	}
	endpoint := func(more []byte) []byte { return append([]byte("\x0a\x0810.7.0.1"), more...) }
	hints := func(i int) []byte {
		list := bytes.Repeat([]byte{0x0a, 0}, 1000)
		list = append(list, 0x0a, 6, 0x0a, 4, 'a'+byte(i%20), 'a'+byte(i/20%20), 'a'+byte(i/400%20), 'z')
		return endpoint(protowire.AppendBytes(protowire.AppendTag(nil, endpointHints, protowire.BytesType), list))
	}
	names := func(i int) []byte {
		return endpoint(protowire.AppendBytes(protowire.AppendTag(nil, endpointHostname, protowire.BytesType), []byte{'a' + byte(i%26), 'a' + byte(i/26%26), 'a' + byte(i/676%26), 'a'}))
	}
	return map[string][]byte{
		"lists of zone hints": fill(sliceEndpoints, hints, 4_990),
		"names":               fill(sliceEndpoints, names, 4_990),
		"endpoints":           fill(sliceEndpoints, func(int) []byte { return endpoint(nil) }, 4_990),
		"labels":              fill(sliceLabels, func(i int) []byte { return append([]byte{0x0a, 4}, fmt.Sprintf("%04d", i)...) }, 1_000),
		"long labels": fill(sliceLabels, func(i int) []byte {
			key := binary.BigEndian.AppendUint16(bytes.Repeat([]byte("a"), 4_000), uint16(i)&0x7f7f)
			return protowire.AppendBytes([]byte{0x0a}, key)
		}, 100),
	}
}

// padded adds what does not compress until the frame may hold the message.
func padded(message []byte) []byte {
	noise := make([]byte, len(message)/maxRatio)
	rand.NewChaCha8([32]byte{}).Read(noise)
	return protowire.AppendBytes(protowire.AppendTag(message, 1000, protowire.BytesType), noise)
}

// What a few compressed bytes make is bounded, accepted or not.
func TestCompressedSlicesCostLittleMemory(t *testing.T) {
	for name, message := range dearSlices() {
		t.Run(name, func(t *testing.T) {
			frame := newEncoder().EncodeAll(padded(message), nil)
			var c SliceCodec
			s, err := measuredSlice(t, len(frame), func() (*EndpointSlice, error) { return c.Decode(east(false), webKey, frame, DefaultLimits()) })
			if (s == nil) == (err == nil) {
				t.Errorf("got both or neither of a slice and an error: %v", err)
			}
			t.Logf("%d bytes, uncompressed %d: %v", len(frame), len(message), err)
		})
	}
}

// decoders reads a value of each kind that is JSON or text, with an example.
func decoders() map[string]struct {
	example string
	decode  func(value []byte) (record, error)
} {
	type decoder = struct {
		example string
		decode  func(value []byte) (record, error)
	}
	return map[string]decoder{
		"service": {eastService, func(v []byte) (record, error) {
			return DecodeService(east(false), ServiceKey("east", "shop", "web"), v, DefaultLimits())
		}},
		"local service": {localWeb, func(v []byte) (record, error) {
			return DecodeLocalService(east(false), LocalServiceKey("east", "shop", "web"), v, DefaultLimits())
		}},
		"node": {nodeOne, func(v []byte) (record, error) {
			return DecodeNode(cluster3(), NodeKey("cluster3", "test-node-1"), v, DefaultLimits())
		}},
		"address": {ipEast, func(v []byte) (record, error) {
			return DecodeIPEntry(east(false), 255, IPKey("10.7.0.21"), v, DefaultLimits())
		}},
		"identity": {idEast, func(v []byte) (record, error) {
			return DecodeIdentity(east(false), 255, IdentityKey(458753), v, DefaultLimits())
		}},
		"config": {configStock, func(v []byte) (record, error) { return DecodeClusterConfig("east", v) }},
		"export": {exportHeadless, func(v []byte) (record, error) {
			return DecodeServiceExport(east(false), ServiceExportKey("east", "shop", "db"), v, DefaultLimits())
		}},
	}
}

// TestStuffedValuesCostLittleMemory puts many small things into every place of a
// value of every kind that opens a list, a map or a text, or ends a label.
func TestStuffedValuesCostLittleMemory(t *testing.T) {
	const size = 12 << 10
	for name, d := range decoders() {
		t.Run(name, func(t *testing.T) {
			for at := range d.example {
				opens := strings.ContainsRune("[{;", rune(d.example[at])) || at > 0 && strings.Contains(`:" ["`, d.example[at-1:at+1])
				if !opens {
					continue
				}
				for _, small := range []string{`{}`, `""`, `0`, `[]`, `"%d":{}`, `"%d":""`, `"%d":[]`, `"1::%x":{}`, `"1::%x":null`, `{"":0}`, `a%d=;`, `\u0061`} {
					value := stuffed(d.example[:at+1], small, d.example[at+1:], size)
					cost.Bounded(t, len(value), 0, func() { d.decode(value) })
				}
			}
		})
	}
}

// stuffed repeats a small thing, with a number if it wants one, between two parts.
func stuffed(before, small, after string, size int) []byte {
	out := []byte(before)
	for i := 0; len(out) < size; i++ {
		if strings.Contains(small, "%") {
			out = fmt.Appendf(out, small, i)
		} else {
			out = append(out, small...)
		}
		if last := small[len(small)-1]; last != ';' && small[0] != '\\' {
			out = append(out, ',')
		}
	}
	return append(bytes.TrimSuffix(out, []byte(",")), after...)
}
