package schema

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/schema/schemapb"
	"google.golang.org/protobuf/proto"
)

// sizedSlice has n endpoints as Kubernetes makes them for pods.
func sizedSlice(n int) *EndpointSlice {
	s := &EndpointSlice{
		Cluster: "east", ClusterID: 7, Namespace: "shop", Name: "web-x7k2p", AddressType: IPv4,
		Labels: map[string]string{serviceNameLabel: "web", "app": "web", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
		Ports:  []SlicePort{{Name: "http", Protocol: TCP, Port: 8080}, {Name: "metrics", Protocol: TCP, Port: 9090}},
	}
	for i := range n {
		zone := fmt.Sprintf("east-%c", 'a'+i%3)
		s.Endpoints = append(s.Endpoints, Endpoint{
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)})},
			Ready:     ConditionTrue, Serving: ConditionTrue, Terminating: ConditionFalse,
			NodeName: fmt.Sprintf("node-%d", i%50), Zone: zone, ForZones: []string{zone},
		})
	}
	return s
}

func forSliceSizes(b *testing.B, run func(b *testing.B, s *EndpointSlice)) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			run(b, sizedSlice(n))
		})
	}
}

func BenchmarkDecodeEndpointSlice(b *testing.B) {
	forSliceSizes(b, func(b *testing.B, s *EndpointSlice) {
		var c SliceCodec
		value := c.Encode(s)
		b.ReportMetric(float64(len(value)), "value-bytes")
		for b.Loop() {
			if _, err := c.Decode(east(false), webKey, value, DefaultLimits()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncodeEndpointSlice(b *testing.B) {
	forSliceSizes(b, func(b *testing.B, s *EndpointSlice) {
		var c SliceCodec
		for b.Loop() {
			c.Encode(s)
		}
	})
}

// The message alone, without compression, and what generated code needs for
// it, as a measure.
func BenchmarkDecodeSliceMessage(b *testing.B) {
	forSliceSizes(b, func(b *testing.B, s *EndpointSlice) {
		message := appendSlice(nil, s)
		for b.Loop() {
			if _, err := decodeWeb(message); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecodeSliceMessageGeneratedCode(b *testing.B) {
	forSliceSizes(b, func(b *testing.B, s *EndpointSlice) {
		message := appendSlice(nil, s)
		for b.Loop() {
			var m schemapb.EndpointSlice
			if err := proto.Unmarshal(message, &m); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkServiceExport(b *testing.B) {
	e, err := decodeBasic([]byte(exportBasic))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeBasic([]byte(exportBasic)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			e.Encode()
		}
	})
}

// Endpoints that say the same share it, so a large slice costs few
// allocations.
func TestDecodingLargeSlicesAllocatesLittle(t *testing.T) {
	var c SliceCodec
	value := c.Encode(sizedSlice(100))
	allocs := testing.AllocsPerRun(20, func() {
		if _, err := c.Decode(east(false), webKey, value, DefaultLimits()); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 120 {
		t.Errorf("100 endpoints cost %v allocations", allocs)
	}
}
