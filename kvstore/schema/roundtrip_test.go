package schema

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var (
	genName     = rapid.StringMatching(`[a-z0-9]([-a-z0-9.]{0,8}[a-z0-9])?`)
	genProtocol = rapid.SampledFrom([]Protocol{TCP, UDP, SCTP})
	genPort     = rapid.Uint16Range(1, 65535)
	genToken    = rapid.StringMatching(`[!-~]{0,12}`)
	genTexts    = rapid.MapOfN(rapid.String(), rapid.String(), 0, 4)
	genAddr     = rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "v4") {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "quad")))
		}
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "six"))).Unmap()
	})
	genL4 = rapid.Custom(func(t *rapid.T) L4 {
		return L4{genProtocol.Draw(t, "protocol"), genPort.Draw(t, "port")}
	})
	genPorts   = rapid.Map(rapid.MapOfN(genToken, genL4, 0, 4), func(m map[string]L4) PortMap { return m })
	genForZone = rapid.Map(genToken, func(s string) ForZone { return ForZone{s} })
	genZone    = rapid.Custom(func(t *rapid.T) Zone {
		return Zone{genToken.Draw(t, "zone"), orNil(rapid.SliceOfN(genForZone, 0, 3).Draw(t, "hints"))}
	})
	genService = rapid.Custom(func(t *rapid.T) *Service {
		return &Service{
			Cluster: "east", ClusterID: 7, Namespace: genName.Draw(t, "namespace"), Name: genName.Draw(t, "name"),
			Frontends:       rapid.MapOfN(genAddr, genPorts, 0, 3).Draw(t, "frontends"),
			Backends:        rapid.MapOfN(genAddr, genPorts, 0, 20).Draw(t, "backends"),
			Hostnames:       emptyToNil(rapid.MapOfN(genAddr, genToken, 0, 3).Draw(t, "hostnames")),
			Zones:           emptyToNil(rapid.MapOfN(genAddr, genZone, 0, 3).Draw(t, "zones")),
			Labels:          genTexts.Draw(t, "labels"),
			Selector:        genTexts.Draw(t, "selector"),
			IncludeExternal: rapid.Bool().Draw(t, "includeExternal"),
			Shared:          rapid.Bool().Draw(t, "shared"),
		}
	})
)

func orNil[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

func emptyToNil[K comparable, V any](m map[K]V) map[K]V {
	if len(m) == 0 {
		return nil
	}
	return m
}

func TestServiceRoundTripsAndEncodesAsTheStandardLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genService.Draw(t, "service")
		value := want.Encode()
		if std, err := json.Marshal(want); err != nil || string(std) != string(value) {
			t.Fatalf("encoded %s, want %s (%v)", value, std, err)
		}
		got, err := DecodeService(east(false), ServiceKey("east", want.Namespace, want.Name), value, DefaultLimits())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("decoded %+v, want %+v (%v)", got, want, err)
		}
	})
}

func TestNilMapsOfAServiceAreEncodedAsEmptyObjects(t *testing.T) {
	s := Service{Cluster: "cluster3", Namespace: "test", Name: "echo", IncludeExternal: true, Shared: true, ClusterID: 3}
	if got := string(s.Encode()); got != emptyEcho {
		t.Errorf("encoded %s, want %s", got, emptyEcho)
	}
	s.Backends = map[netip.Addr]PortMap{addr("10.0.0.1"): nil}
	if got := string(s.Encode()); got != string(change(t, emptyEcho, `"backends":{}`, `"backends":{"10.0.0.1":{}}`)) {
		t.Errorf("a nil port map is encoded in %s", got)
	}
}

var genLocal = rapid.Custom(func(t *rapid.T) *LocalService {
	s := &LocalService{
		Cluster: "east", ClusterID: 7, Namespace: genName.Draw(t, "namespace"), Name: genName.Draw(t, "name"),
		Shared:                 rapid.Bool().Draw(t, "shared"),
		Affinity:               rapid.SampledFrom([]string{"", "local", "remote"}).Draw(t, "affinity"),
		SessionAffinity:        rapid.SampledFrom([]string{"", "ClientIP"}).Draw(t, "session"),
		SessionAffinitySeconds: rapid.Uint32().Draw(t, "seconds"),
		InternalTrafficPolicy:  rapid.SampledFrom([]string{"", "Local"}).Draw(t, "policy"),
		TrafficDistribution:    genToken.Draw(t, "distribution"),
		Headless:               rapid.Bool().Draw(t, "headless"),
		Policy:                 orNone(genTexts.Draw(t, "annotations")),
	}
	for _, at := range genL4Addrs.Draw(t, "frontends") {
		s.Frontends = append(s.Frontends, LocalFrontend{at.addr, at.port, at.protocol, genToken.Draw(t, "portName"), rapid.Bool().Draw(t, "external")})
	}
	s.Restricted = rapid.Bool().Draw(t, "restricted")
	s.ExternalTrafficPolicy = rapid.SampledFrom([]string{"", "Local"}).Draw(t, "external policy")
	for _, at := range genL4Addrs.Draw(t, "external frontends") {
		s.ExternalFrontends = append(s.ExternalFrontends, LocalFrontend{Address: at.addr, Port: at.port, Protocol: at.protocol})
	}
	for _, at := range rapid.SliceOfNDistinct(genL4Addr, 0, 4, func(a l4Addr) l4Addr { return l4Addr{port: a.port, protocol: a.protocol} }).Draw(t, "node ports") {
		s.NodePorts = append(s.NodePorts, LocalNodePort{at.port, at.protocol, genToken.Draw(t, "portName")})
	}
	for _, at := range genL4Addrs.Draw(t, "backends") {
		s.Backends = append(s.Backends, drawBackend(t, at))
	}
	return s
})

var (
	genL4Addr = rapid.Custom(func(t *rapid.T) l4Addr {
		return l4Addr{genAddr.Draw(t, "addr"), genPort.Draw(t, "port"), genProtocol.Draw(t, "protocol")}
	})
	genL4Addrs = rapid.SliceOfNDistinct(genL4Addr, 0, 8, func(a l4Addr) l4Addr { return a })
	genNames   = rapid.Map(rapid.SliceOfNDistinct(genName, 0, 3, func(s string) string { return s }), func(names []string) []string {
		slices.Sort(names)
		return orNil(names)
	})
)

func drawBackend(t *rapid.T, at l4Addr) LocalBackend {
	return LocalBackend{
		Address: at.addr, Port: at.port, Protocol: at.protocol,
		PortNames: genNames.Draw(t, "portNames"), ForZones: genNames.Draw(t, "forZones"),
		Ready: rapid.Bool().Draw(t, "ready"), Serving: rapid.Bool().Draw(t, "serving"), Terminating: rapid.Bool().Draw(t, "terminating"),
		Zone: genToken.Draw(t, "zone"), Node: genToken.Draw(t, "node"),
	}
}

// A local service comes back sorted, and its bytes do not depend on the order
// it was given in.
func TestLocalServiceRoundTripsSorted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := genLocal.Draw(t, "service")
		value := in.Encode()
		got, err := DecodeLocalService(east(false), LocalServiceKey("east", in.Namespace, in.Name), value, DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		want := *in
		want.Frontends = slices.SortedFunc(slices.Values(in.Frontends), compareFrontends)
		want.Backends = slices.SortedFunc(slices.Values(in.Backends), compareBackends)
		want.NodePorts = slices.SortedFunc(slices.Values(in.NodePorts), compareNodePorts)
		want.ExternalFrontends = slices.SortedFunc(slices.Values(in.ExternalFrontends), compareFrontends)
		if !reflect.DeepEqual(got, &want) || string(got.Encode()) != string(value) {
			t.Fatalf("decoded %+v, want %+v", got, want)
		}
		shuffled := *in
		shuffled.Backends = rapid.Permutation(in.Backends).Draw(t, "order")
		shuffled.NodePorts = rapid.Permutation(in.NodePorts).Draw(t, "order of ports")
		if string(shuffled.Encode()) != string(value) {
			t.Fatal("the order of backends shows in the encoding")
		}
	})
}

// A decoder sorts what an unsorted writer sent.
func TestDecodeLocalServiceSorts(t *testing.T) {
	value := serviceWith(`"backends":[{"address":"10.0.0.2","port":1,"protocol":"TCP"},{"address":"10.0.0.1","port":1,"protocol":"UDP"},{"address":"10.0.0.1","port":1,"protocol":"TCP"}]`)
	s, err := DecodeLocalService(east(false), LocalServiceKey("east", "shop", "web"), []byte(value), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range s.Backends {
		got = append(got, b.l4().String())
	}
	if want := []string{"10.0.0.1:1/TCP", "10.0.0.1:1/UDP", "10.0.0.2:1/TCP"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func drawCIDR(t *rapid.T, v4 bool) CIDR {
	a := genAddr.Filter(func(a netip.Addr) bool { return a.Is4() == v4 }).Draw(t, "addr")
	return NewCIDR(netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")))
}

func TestCIDRRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := genAddr.Draw(t, "addr")
		want := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
		if got, ok := NewCIDR(want).Prefix(); !ok || got != want {
			t.Fatalf("got %v (%v), want %v", got, ok, want)
		}
	})
}

func TestNodeRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		four, six := drawCIDR(t, true), drawCIDR(t, false)
		want := &Node{
			Name: genName.Draw(t, "name"), Cluster: "east", ClusterID: 7,
			IPAddresses:             []NodeAddress{{"InternalIP", genAddr.Draw(t, "internal").String()}, {genToken.Draw(t, "type"), ""}},
			IPv4AllocCIDR:           &four,
			IPv6AllocCIDR:           &six,
			IPv4SecondaryAllocCIDRs: []CIDR{four},
			IPv6SecondaryAllocCIDRs: []CIDR{six, six},
			IPv4HealthIP:            genAddr.Draw(t, "health").String(),
			IPv6HealthIP:            genAddr.Draw(t, "health").String(),
			IPv4IngressIP:           genAddr.Draw(t, "ingress").String(),
			IPv6IngressIP:           genAddr.Draw(t, "ingress").String(),
			Source:                  genToken.Draw(t, "source"), EncryptionKey: rapid.Uint8().Draw(t, "key"),
			Labels: genTexts.Draw(t, "labels"), Annotations: genTexts.Draw(t, "annotations"),
			WireguardPubKey: genToken.Draw(t, "wireguard"), BootID: genToken.Draw(t, "boot"),
		}
		got, err := DecodeNode(east(false), NodeKey("east", want.Name), want.Encode(), DefaultLimits())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("decoded %+v, want %+v (%v)", got, want, err)
		}
	})
}

func TestIPEntryRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := genAddr.Draw(t, "ip")
		want := &IPEntry{
			IP: a.String(), HostIP: genAddr.Draw(t, "host").String(),
			ID: rapid.Uint32Range(458752, 524287).Draw(t, "id"), Key: rapid.Uint8().Draw(t, "key"),
			Metadata: rapid.String().Draw(t, "metadata"), K8sNamespace: genToken.Draw(t, "namespace"),
			K8sPodName: genToken.Draw(t, "pod"), K8sServiceAccount: genToken.Draw(t, "account"),
			NamedPorts: []NamedPort{{genToken.Draw(t, "name"), genPort.Draw(t, "port"), genProtocol.Draw(t, "protocol")}},
		}
		key := IPKey(want.IP)
		if rapid.Bool().Draw(t, "masked") {
			p := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
			c := NewCIDR(p)
			want.IP, want.Mask, key = c.IP, c.Mask, IPKey(p.String())
		}
		got, err := DecodeIPEntry(east(false), 255, key, want.Encode(), DefaultLimits())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("decoded %+v, want %+v (%v)", got, want, err)
		}
	})
}

func TestIdentityRoundTrips(t *testing.T) {
	word := rapid.StringMatching(`[a-zA-Z0-9./_-]{1,12}`)
	rapid.Check(t, func(t *rapid.T) {
		labels := map[string]string{"k8s:" + clusterLabel: "east"}
		for _, k := range rapid.SliceOfNDistinct(word, 0, 5, func(s string) string { return s }).Draw(t, "keys") {
			if k != clusterLabel {
				labels[word.Draw(t, "source")+":"+k] = rapid.StringMatching(`[^;]{0,12}`).Draw(t, "value")
			}
		}
		want := &Identity{ID: rapid.Uint32Range(458752, 524287).Draw(t, "id"), Labels: labels}
		got, err := DecodeIdentity(east(false), 255, IdentityKey(want.ID), want.Encode(), DefaultLimits())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("decoded %+v, want %+v (%v)", got, want, err)
		}
	})
}

// Labels are sorted by key alone: the source does not count.
func TestIdentityLabelsAreSortedByKey(t *testing.T) {
	i := Identity{ID: 458753, Labels: map[string]string{"k8s:b": "1", "any:c": "2", "zz:a": "3", "cni:b": "4"}}
	if got, want := string(i.Encode()), "zz:a=3;cni:b=4;k8s:b=1;any:c=2;"; got != want {
		t.Errorf("encoded %q, want %q", got, want)
	}
}
