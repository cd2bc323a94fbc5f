package schema

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// wantField fails unless err is an *Error about the given field.
func wantField(t *testing.T, err error, field string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("got %v, want an *Error about %s", err, field)
		return
	}
	if e.Field != field {
		t.Errorf("error names field %q, want %q: %v", e.Field, field, err)
	}
	if e.Reason == "" || !strings.Contains(err.Error(), e.Reason) || !strings.Contains(err.Error(), e.Key) {
		t.Errorf("error lacks its key or remedy: %v", err)
	}
	if len(e.Value) > maxErrorValue {
		t.Errorf("error shows %d bytes of the value", len(e.Value))
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func east(cached bool) Source { return Source{Cluster: "east", ClusterID: 7, Cached: cached} }

func cluster3() Source { return Source{Cluster: "cluster3", ClusterID: 3} }

const (
	eastService = `{"cluster":"east","namespace":"shop","name":"web","frontends":{"172.20.0.10":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.7.0.21":{"http":{"Protocol":"TCP","Port":8080}}},"hostnames":{"10.7.0.22":"db-0"},"zones":{"10.7.0.21":{"zone":"east-a","forZones":[{"name":"east-a"}]}},"labels":{},"selector":{},"includeExternal":true,"shared":true,"clusterID":7}`
	echoService = `{"cluster":"cluster3","namespace":"test","name":"echo","frontends":{"10.96.50.104":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.244.1.1":{"http":{"Protocol":"TCP","Port":8080}}},"zones":{"10.244.1.1":{"zone":"zone1","forZones":[{"name":"zone1"}]}},"labels":{},"selector":{"name":"echo"},"includeExternal":true,"shared":true,"clusterID":3}`
	emptyEcho   = `{"cluster":"cluster3","namespace":"test","name":"echo","frontends":{},"backends":{},"labels":{},"selector":{},"includeExternal":true,"shared":true,"clusterID":3}`
	nullZone    = `{"cluster":"cluster3","namespace":"test","name":"echo","frontends":{},"backends":{"10.244.1.1":{"":{"Protocol":"UDP","Port":53}},"fd00::1":{"":{"Protocol":"UDP","Port":53}}},"zones":{"10.244.1.1":{"zone":"zone1","forZones":null}},"labels":{"a\u003cb":"\u0026\"ü"},"selector":{},"includeExternal":true,"shared":false,"clusterID":3}`

	nodeOne  = `{"Name":"test-node-1","Cluster":"cluster3","IPAddresses":[{"Type":"InternalIP","IP":"172.18.0.2"},{"Type":"CiliumInternalIP","IP":"10.244.0.10"}],"IPv4AllocCIDR":{"IP":"10.244.0.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":{"IP":"fd00:10:244::","Mask":"//////////8AAAAAAAAAAA=="},"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":3,"Source":"custom-resource","EncryptionKey":0,"Labels":null,"Annotations":null,"WireguardPubKey":"","BootID":""}`
	ipEast   = `{"IP":"10.7.0.21","Mask":null,"HostIP":"192.0.2.11","ID":458753,"Key":3,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-1","K8sServiceAccount":"default","NamedPorts":[{"Name":"http","Port":8080,"Protocol":"TCP"}]}`
	ipBar    = `{"IP":"10.244.2.74","Mask":null,"HostIP":"172.18.0.2","ID":199475,"Key":5,"Metadata":"","K8sNamespace":"bar","K8sPodName":"cep-002","K8sServiceAccount":"default","NamedPorts":[{"Name":"http","Port":8080,"Protocol":"TCP"},{"Name":"dns","Port":53,"Protocol":"UDP"}]}`
	ipMasked = `{"IP":"10.7.1.0","Mask":"////AA==","HostIP":"","ID":458753,"Key":0,"Metadata":""}`

	idEast = `k8s:app=web;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;`
	idBaz  = `k8s:app=baz;k8s:io.cilium.k8s.policy.cluster=cluster3;k8s:io.kubernetes.pod.namespace=bar;`

	configStock   = `{"id":3,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}`
	configEast    = `{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}`
	configMinimal = `{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}`
	configCached  = `{"id":7,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255}}`

	localWeb = `{"cluster":"east","clusterID":7,"namespace":"shop","name":"web","shared":false,"affinity":"local","frontends":[{"address":"172.20.0.10","port":80,"protocol":"TCP","portName":"http"},{"address":"fd00::a","port":80,"protocol":"TCP","portName":"http"}],"backends":[{"address":"10.7.0.21","port":8080,"protocol":"TCP","portNames":["http"],"ready":true,"serving":true,"zone":"east-a","forZones":["east-a"],"node":"n1"},{"address":"10.7.0.22","port":8080,"protocol":"TCP","portNames":["http"],"ready":false,"serving":true,"terminating":true}],"sessionAffinity":"ClientIP","sessionAffinitySeconds":10800,"internalTrafficPolicy":"Local","trafficDistribution":"PreferClose","policy":{"tiers":"local; *","weights":"east=3,west=1"}}`
	// localPort has what came to local services later.
	localPort = `{"cluster":"east","clusterID":7,"namespace":"shop","name":"web","shared":true,"frontends":[{"address":"172.20.0.10","port":80,"protocol":"TCP"},{"address":"192.0.2.1","port":80,"protocol":"TCP","portName":"http","external":true}],"backends":[],"externalTrafficPolicy":"Local","nodePorts":[{"port":30053,"protocol":"TCP"},{"port":30053,"protocol":"UDP","portName":"dns"},{"port":30080,"protocol":"TCP","portName":"http"}],"externalFrontends":[{"address":"192.0.2.2","port":80,"protocol":"TCP","portName":"http"}],"restricted":true}`
)

// wireExample is one value seen on the wire with how to decode it.
type wireExample struct {
	name, value string
	decode      func() (record, error)
}

// record is what every decoder yields.
type record interface{ Encode() []byte }

func wireExamples() []wireExample {
	l := DefaultLimits()
	service := func(src Source, key, value string) func() (record, error) {
		return func() (record, error) { return DecodeService(src, key, []byte(value), l) }
	}
	ip := func(src Source, key, value string) func() (record, error) {
		return func() (record, error) { return DecodeIPEntry(src, 255, key, []byte(value), l) }
	}
	identity := func(src Source, key, value string) func() (record, error) {
		return func() (record, error) { return DecodeIdentity(src, 255, key, []byte(value), l) }
	}
	config := func(cluster, value string) func() (record, error) {
		return func() (record, error) { return DecodeClusterConfig(cluster, []byte(value)) }
	}
	return []wireExample{
		{"service east", eastService, service(east(false), "cilium/state/services/v1/east/shop/web", eastService)},
		{"service cached", eastService, service(east(true), "cilium/cache/services/v1/east/shop/web", eastService)},
		{"service echo", echoService, service(cluster3(), "cilium/state/services/v1/cluster3/test/echo", echoService)},
		{"service empty", emptyEcho, service(cluster3(), "cilium/state/services/v1/cluster3/test/echo", emptyEcho)},
		{"service null hints", nullZone, service(cluster3(), "cilium/state/services/v1/cluster3/test/echo", nullZone)},
		{"node", nodeOne, func() (record, error) {
			return DecodeNode(cluster3(), "cilium/state/nodes/v1/cluster3/test-node-1", []byte(nodeOne), l)
		}},
		{"ip east", ipEast, ip(east(false), "cilium/state/ip/v1/default/10.7.0.21", ipEast)},
		{"ip cached", ipEast, ip(east(true), "cilium/cache/ip/v1/east/10.7.0.21", ipEast)},
		{"ip bar", ipBar, ip(cluster3(), "cilium/state/ip/v1/default/10.244.2.74", ipBar)},
		{"ip masked", ipMasked, ip(east(false), "cilium/state/ip/v1/default/10.7.1.0/24", ipMasked)},
		{"identity east", idEast, identity(east(false), "cilium/state/identities/v1/id/458753", idEast)},
		{"identity cached", idEast, identity(east(true), "cilium/cache/identities/v1/east/id/458753", idEast)},
		{"identity baz", idBaz, identity(cluster3(), "cilium/state/identities/v1/id/196915", idBaz)},
		{"config stock", configStock, config("cluster3", configStock)},
		{"config east", configEast, config("east", configEast)},
		{"config minimal", configMinimal, config("east", configMinimal)},
		{"config cached", configCached, config("east", configCached)},
		{"export", exportBasic, func() (record, error) {
			return DecodeServiceExport(cluster3(), "cilium/state/serviceexports/v1/cluster3/default/basic", []byte(exportBasic), l)
		}},
		{"export cached", exportHeadless, func() (record, error) {
			return DecodeServiceExport(east(true), "cilium/cache/serviceexports/v1/east/shop/db", []byte(exportHeadless), l)
		}},
		{"local service", localWeb, func() (record, error) {
			return DecodeLocalService(east(false), "clustermesh/local/services/v1/east/shop/web", []byte(localWeb), l)
		}},
		{"local service with node ports", localPort, func() (record, error) {
			return DecodeLocalService(east(false), "clustermesh/local/services/v1/east/shop/web", []byte(localPort), l)
		}},
	}
}

func TestWireExamplesDecodeAndEncodeToTheSameBytes(t *testing.T) {
	for _, tt := range wireExamples() {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.decode()
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Encode()) != tt.value {
				t.Errorf("encoded\n %s, want\n %s", got.Encode(), tt.value)
			}
		})
	}
}

func TestDecodeServiceFillsEveryMember(t *testing.T) {
	got, err := DecodeService(east(false), ServiceKey("east", "shop", "web"), []byte(eastService), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	want := &Service{
		Cluster: "east", Namespace: "shop", Name: "web",
		Frontends:       map[netip.Addr]PortMap{addr("172.20.0.10"): {"http": {TCP, 80}}},
		Backends:        map[netip.Addr]PortMap{addr("10.7.0.21"): {"http": {TCP, 8080}}},
		Hostnames:       map[netip.Addr]string{addr("10.7.0.22"): "db-0"},
		Zones:           map[netip.Addr]Zone{addr("10.7.0.21"): {"east-a", []ForZone{{"east-a"}}}},
		Labels:          map[string]string{},
		Selector:        map[string]string{},
		IncludeExternal: true, Shared: true, ClusterID: 7,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
