package schema

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
)

// sizedService has n backends with a zone each, as an exporter writes them.
func sizedService(n int) *Service {
	s := &Service{
		Cluster: "east", Namespace: "shop", Name: "web", ClusterID: 7, IncludeExternal: true, Shared: true,
		Frontends: map[netip.Addr]PortMap{addr("172.20.0.10"): {"http": {TCP, 80}, "metrics": {TCP, 9090}}},
		Backends:  map[netip.Addr]PortMap{},
		Zones:     map[netip.Addr]Zone{},
		Labels:    map[string]string{"app": "web", "team": "shop"},
		Selector:  map[string]string{"app": "web"},
	}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)})
		zone := fmt.Sprintf("east-%c", 'a'+i%3)
		s.Backends[a] = PortMap{"http": {TCP, 8080}, "metrics": {TCP, 9090}}
		s.Zones[a] = Zone{Zone: zone, ForZones: []ForZone{{Name: zone}}}
	}
	return s
}

func forSizes(b *testing.B, run func(b *testing.B, s *Service)) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("backends=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			run(b, sizedService(n))
		})
	}
}

func BenchmarkDecodeService(b *testing.B) {
	key := ServiceKey("east", "shop", "web")
	forSizes(b, func(b *testing.B, s *Service) {
		value := s.Encode()
		b.SetBytes(int64(len(value)))
		for b.Loop() {
			if _, err := DecodeService(east(false), key, value, DefaultLimits()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// What encoding/json needs for the same, as a measure.
func BenchmarkDecodeServiceStandardLibrary(b *testing.B) {
	forSizes(b, func(b *testing.B, s *Service) {
		value := s.Encode()
		b.SetBytes(int64(len(value)))
		for b.Loop() {
			var got Service
			if err := json.Unmarshal(value, &got); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncodeService(b *testing.B) {
	forSizes(b, func(b *testing.B, s *Service) {
		for b.Loop() {
			b.SetBytes(int64(len(s.Encode())))
		}
	})
}

func sizedLocal(n int) *LocalService {
	s := &LocalService{Cluster: "east", ClusterID: 7, Namespace: "shop", Name: "web", Shared: true}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)})
		s.Backends = append(s.Backends, LocalBackend{
			Address: a, Port: 8080, Protocol: TCP, PortNames: []string{"http"}, Ready: true, Serving: true,
			Zone: "east-a", ForZones: []string{"east-a"}, Node: fmt.Sprintf("node-%d", i%50),
		})
	}
	return s
}

func BenchmarkLocalService(b *testing.B) {
	for _, n := range []int{10, 1000} {
		s := sizedLocal(n)
		value := s.Encode()
		b.Run(fmt.Sprintf("decode/backends=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeLocalService(east(false), LocalServiceKey("east", "shop", "web"), value, DefaultLimits()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("encode/backends=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Encode()
			}
		})
	}
}
