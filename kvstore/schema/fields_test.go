package schema

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// change returns the text with one substring replaced, which must occur once.
func change(t *testing.T, text, old, new string) []byte {
	t.Helper()
	if strings.Count(text, old) != 1 {
		t.Fatalf("%q occurs %d times", old, strings.Count(text, old))
	}
	return []byte(strings.Replace(text, old, new, 1))
}

// fieldTest alters a good value and names the field the error must blame; ""
// means that the value must still be accepted.
type fieldTest struct{ old, new, field string }

func runFieldTests(t *testing.T, good string, tests []fieldTest, decode func([]byte) error) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.old+"→"+tt.new, func(t *testing.T) {
			err := decode(change(t, good, tt.old, tt.new))
			if tt.field != "" {
				wantField(t, err, tt.field)
			} else if err != nil {
				t.Errorf("must be accepted: %v", err)
			}
		})
	}
}

func TestDecodeServiceNamesTheWrongField(t *testing.T) {
	key := ServiceKey("east", "shop", "web")
	runFieldTests(t, eastService, []fieldTest{
		{`"cluster":"east"`, `"cluster":"west"`, "cluster"},
		{`"cluster":"east"`, `"cluster":""`, "cluster"},
		{`"cluster":"east"`, `"cluster":null`, "cluster"},
		{`"cluster":"east",`, ``, "cluster"},
		{`"cluster":"east"`, `"cluster":1`, "cluster"},
		{`"cluster":"east"`, `"cluster":"east","cluster":"east"`, "cluster"},
		{`"namespace":"shop"`, `"namespace":"kube-system"`, "namespace"},
		{`"namespace":"shop",`, ``, "namespace"},
		{`"name":"web"`, `"name":"db"`, "name"},
		{`"name":"web"`, `"Name":"web"`, "name"},
		{`"clusterID":7`, `"clusterID":8`, "clusterID"},
		{`,"clusterID":7`, ``, "clusterID"},
		{`"clusterID":7`, `"clusterID":7.0`, "clusterID"},
		{`"clusterID":7`, `"clusterID":7e0`, "clusterID"},
		{`"clusterID":7`, `"clusterID":07`, "clusterID"},
		{`"clusterID":7`, `"clusterID":-7`, "clusterID"},
		{`"clusterID":7`, `"clusterID":4294967303`, "clusterID"},
		{`"clusterID":7`, `"clusterID":"7"`, "clusterID"},
		{`"clusterID":7}`, `"clusterID":7}x`, "value"},
		{`"clusterID":7}`, `"clusterID":7}` + "\x00", "value"},
		{`"clusterID":7}`, `"clusterID":7`, "clusterID"},
		{`"clusterID":7}`, `"clusterID":7,}`, "clusterID"},
		{`"clusterID":7}`, "\"clusterID\":7}\n", ""},
		{`"172.20.0.10"`, `""`, "frontends/"},
		{`"172.20.0.10"`, `"web.shop"`, "frontends/web.shop"},
		{`"10.7.0.21":{"http"`, `"10.7.0.21 ":{"http"`, "backends/10.7.0.21 "},
		{`"10.7.0.21":{"http"`, `"10.7.0.021":{"http"`, "backends/10.7.0.021"},
		{`"10.7.0.21":{"http"`, `"10.7.0.256":{"http"`, "backends/10.7.0.256"},
		{`"10.7.0.21":{"http"`, `"10.7.0":{"http"`, "backends/10.7.0"},
		{`"10.7.0.21":{"http"`, `"fe80::1%eth0":{"http"`, "backends/fe80::1%eth0"},
		{`"10.7.0.21":{"http"`, `"10.7.0.21":{},"::ffff:10.7.0.21":{"http"`, "backends/::ffff:10.7.0.21"},
		{`"10.7.0.21":{"http"`, `"10.7.0.21":{},"10.7.0.21":{"http"`, "backends/10.7.0.21"},
		{`"10.7.0.21":{"http"`, `"fd00::1":{},"FD00:0::1":{"http"`, "backends/FD00:0::1"},
		{`"10.7.0.21":{"http"`, `"::ffff:10.7.0.21":{"http"`, ""},
		{`"10.7.0.21":{"http"`, `"10.7.0.20":null,"10.7.0.21":{"http"`, ""},
		{`"TCP","Port":8080`, `"tcp","Port":8080`, "backends/10.7.0.21/http/Protocol"},
		{`"TCP","Port":8080`, `"TCP","Port":0`, "backends/10.7.0.21/http/Port"},
		{`"TCP","Port":8080`, `"TCP","Port":65536`, "backends/10.7.0.21/http/Port"},
		{`"TCP","Port":8080`, `"TCP","port":8080`, "backends/10.7.0.21/http/Port"},
		{`"Protocol":"TCP","Port":8080`, `"Port":8080`, "backends/10.7.0.21/http/Protocol"},
		{`{"Protocol":"TCP","Port":8080}`, `null`, "backends/10.7.0.21/http/Protocol"},
		{`{"Protocol":"TCP","Port":8080}`, `[]`, "backends/10.7.0.21/http"},
		{`{"http":{"Protocol":"TCP","Port":8080}}`, `{"a":{"Protocol":"TCP","Port":1},"a":{"Protocol":"TCP","Port":1}}`, "backends/10.7.0.21/a"},
		{`{"10.7.0.22":"db-0"}`, `{"db":"db-0"}`, "hostnames/db"},
		{`{"10.7.0.22":"db-0"}`, `{"10.7.0.22":1}`, "hostnames/10.7.0.22"},
		{`{"10.7.0.22":"db-0"}`, `null`, ""},
		{`"zone":"east-a"`, `"zone":7`, "zones/10.7.0.21/zone"},
		{`[{"name":"east-a"}]`, `{}`, "zones/10.7.0.21/forZones"},
		{`[{"name":"east-a"}]`, `[{"name":7}]`, "zones/10.7.0.21/forZones/name"},
		{`[{"name":"east-a"}]`, `null`, ""},
		{`"labels":{}`, `"labels":{"a":"b","a":"c"}`, "labels/a"},
		{`"labels":{}`, `"labels":["a"]`, "labels"},
		{`"labels":{}`, `"labels":null`, ""},
		{`"shared":true`, `"shared":1`, "shared"},
		{`"shared":true`, `"shared":tru`, "shared"},
		{`"shared":true`, `"shared":false`, ""},
		{`"shared":true,`, ``, ""},
		{`"shared":true`, `"shared":true,"newer":{"a":[1,-2.5e3,"x",null,true,{"b":{}}]}`, ""},
		{`"shared":true`, `"shared":true,"newer":[1 2]`, "newer"},
		{`"shared":true`, `"shared":true,"newer":01`, "newer"},
		{`"shared":true`, `"shared":true,"newer":"\q"`, "newer"},
		{`"shared":true`, `"shared":true,"newer":` + strings.Repeat("[", 40) + strings.Repeat("]", 40), "newer"},
		{`"shared":true`, `"shared":true,"newer":` + strings.Repeat("[", 12) + strings.Repeat("]", 12), ""},
		{`"db-0"`, "\"db\n0\"", "hostnames/10.7.0.22"},
		{`"db-0"`, "\"db\xff\"", "value"},
		{`"db-0"`, `"db 0"`, "hostnames/10.7.0.22"},
		{`"db-0"`, `"db\u001b[2J"`, "hostnames/10.7.0.22"},
		{`"db-0"`, `"dü"`, "hostnames/10.7.0.22"},
		{`"db-0"`, `"` + strings.Repeat("x", 254) + `"`, "hostnames/10.7.0.22"},
		{`"db-0"`, `"` + strings.Repeat("x", 253) + `"`, ""},
		{`"zone":"east-a"`, `"zone":"a\nb"`, "zones/10.7.0.21/zone"},
		{`{"name":"east-a"}`, `{"name":" "}`, "zones/10.7.0.21/forZones/name"},
		{`"http":{"Protocol":"TCP","Port":8080}`, `"` + strings.Repeat("p", 63) + `":{"Protocol":"TCP","Port":8080}`, ""},
		{`"http":{"Protocol":"TCP","Port":8080}`, `"` + strings.Repeat("p", 64) + `":{"Protocol":"TCP","Port":8080}`, "backends/10.7.0.21/" + strings.Repeat("p", 64)},
		{`{"http":{"Protocol":"TCP","Port":8080}}`, `{"\u007f":{"Protocol":"TCP","Port":8080}}`, "backends/10.7.0.21/?"},
	}, func(b []byte) error {
		_, err := DecodeService(east(false), key, b, DefaultLimits())
		return err
	})
}

func TestDecodeServiceRefusesWhatIsNoObject(t *testing.T) {
	for _, value := range []string{"", " ", "null", "[]", "7", `"x"`, "{", "true", "{]", `{"a"}`, "{7:1}"} {
		_, err := DecodeService(east(false), ServiceKey("east", "shop", "web"), []byte(value), DefaultLimits())
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("value %q: got %v, want an *Error", value, err)
		}
	}
}

func TestDecodeNodeNamesTheWrongField(t *testing.T) {
	key := NodeKey("cluster3", "test-node-1")
	runFieldTests(t, nodeOne, []fieldTest{
		{`"Name":"test-node-1"`, `"Name":"other"`, "Name"},
		{`"Name":"test-node-1",`, ``, "Name"},
		{`"Cluster":"cluster3"`, `"Cluster":"east"`, "Cluster"},
		{`"ClusterID":3`, `"ClusterID":4`, "ClusterID"},
		{`"ClusterID":3,`, ``, "ClusterID"},
		{`"IP":"172.18.0.2"`, `"IP":"node"`, "IPAddresses/IP"},
		{`"IP":"172.18.0.2"`, `"IP":""`, ""},
		{`"Type":"InternalIP",`, ``, "IPAddresses/Type"},
		{`"Type":"InternalIP"`, `"Type":"NewerIP"`, ""},
		{`"Mask":"////AA=="`, `"Mask":"////"`, "IPv4AllocCIDR"},
		{`"Mask":"////AA=="`, `"Mask":"*"`, "IPv4AllocCIDR/Mask"},
		{`"Mask":"////AA=="`, `"Mask":"/wD/AA=="`, "IPv4AllocCIDR"},
		{`"Mask":"////AA=="`, `"Mask":null`, "IPv4AllocCIDR"},
		{`"IP":"10.244.0.0"`, `"IP":"fd00::"`, "IPv4AllocCIDR"},
		{`"IPv4AllocCIDR":{"IP":"10.244.0.0","Mask":"////AA=="}`, `"IPv4AllocCIDR":null`, ""},
		{`"IPv4SecondaryAllocCIDRs":null`, `"IPv4SecondaryAllocCIDRs":[{"IP":"10.245.0.0"}]`, "IPv4SecondaryAllocCIDRs/Mask"},
		{`"IPv4SecondaryAllocCIDRs":null`, `"IPv4SecondaryAllocCIDRs":[{"IP":"10.245.0.0","Mask":"////AA=="}]`, ""},
		{`"IPv4HealthIP":""`, `"IPv4HealthIP":"x"`, "IPv4HealthIP"},
		{`"EncryptionKey":0`, `"EncryptionKey":256`, "EncryptionKey"},
		{`"EncryptionKey":0`, `"EncryptionKey":0,"NodeIdentity":1`, ""},
		{`"Labels":null`, `"Labels":{"a":1}`, "Labels/a"},
	}, func(b []byte) error {
		_, err := DecodeNode(cluster3(), key, b, DefaultLimits())
		return err
	})
}

func TestDecodeIPEntryNamesTheWrongField(t *testing.T) {
	key := IPKey("10.7.0.21")
	runFieldTests(t, ipEast, []fieldTest{
		{`"IP":"10.7.0.21"`, `"IP":"10.7.0.22"`, "IP"},
		{`"IP":"10.7.0.21"`, `"IP":"pod"`, "IP"},
		{`"IP":"10.7.0.21",`, ``, "IP"},
		{`"IP":"10.7.0.21"`, `"IP":"::ffff:10.7.0.21"`, ""},
		{`"Mask":null`, `"Mask":"////AA=="`, "IP"},
		{`"Mask":null`, `"Mask":"////"`, "Mask"},
		{`"Mask":null`, `"Mask":"/wD/AA=="`, "Mask"},
		{`"Mask":null`, `"Mask":""`, ""},
		{`"HostIP":"192.0.2.11"`, `"HostIP":"host"`, "HostIP"},
		{`"HostIP":"192.0.2.11"`, `"HostIP":""`, ""},
		{`"ID":458753`, `"ID":458751`, "ID"},
		{`"ID":458753`, `"ID":524288`, "ID"},
		{`"ID":458753`, `"ID":256`, "ID"},
		{`"ID":458753`, `"ID":255`, ""},
		{`"ID":458753`, `"ID":1`, ""},
		{`"ID":458753,`, ``, "ID"},
		{`"Key":3`, `"Key":256`, "Key"},
		{`"Port":8080`, `"Port":0`, "NamedPorts/Port"},
		{`"Protocol":"TCP"`, `"Protocol":"ICMP"`, "NamedPorts/Protocol"},
	}, func(b []byte) error {
		_, err := DecodeIPEntry(east(false), 255, key, b, DefaultLimits())
		return err
	})
}

func TestDecodeLocalServiceNamesTheWrongField(t *testing.T) {
	key := LocalServiceKey("east", "shop", "web")
	runFieldTests(t, localWeb, []fieldTest{
		{`"cluster":"east"`, `"cluster":"west"`, "cluster"},
		{`"clusterID":7`, `"clusterID":8`, "clusterID"},
		{`"namespace":"shop"`, `"namespace":"x"`, "namespace"},
		{`"name":"web"`, `"name":"x"`, "name"},
		{`"affinity":"local"`, `"affinity":"nearest"`, "affinity"},
		{`"affinity":"local"`, `"affinity":""`, ""},
		{`"sessionAffinity":"ClientIP"`, `"sessionAffinity":"Cookie"`, "sessionAffinity"},
		{`"internalTrafficPolicy":"Local"`, `"internalTrafficPolicy":"Far"`, "internalTrafficPolicy"},
		{`"trafficDistribution":"PreferClose"`, `"trafficDistribution":"PreferSameNode"`, ""},
		{`"weights":"east=3,west=1"`, `"weights":3`, "policy/weights"},
		{`"weights":"east=3,west=1"`, `"tiers":""`, "policy/tiers"},
		{`{"tiers":"local; *","weights":"east=3,west=1"}`, `"local"`, "policy"},
		{`{"tiers":"local; *","weights":"east=3,west=1"}`, `{}`, ""},
		{`{"tiers":"local; *","weights":"east=3,west=1"}`, `null`, ""},
		{`"address":"172.20.0.10"`, `"address":"x"`, "frontends/address"},
		{`"address":"172.20.0.10"`, `"address":"fd00:0::a"`, "frontends"},
		{`"address":"10.7.0.21"`, `"address":"10.7.0.23"`, ""},
		{`"address":"10.7.0.21"`, `"address":"::ffff:10.7.0.22"`, "backends"},
		{`{"address":"10.7.0.21",`, `{`, "backends/address"},
		{`"portNames":["http"],"ready":true`, `"portNames":[""],"ready":true`, "backends/portNames"},
		{`"portNames":["http"],"ready":true`, `"portNames":["z","a","a"],"ready":true`, ""},
		{`"node":"n1"`, `"node":"n\r1"`, "backends/node"},
		{`"forZones":["east-a"]`, `"forZones":"east-a"`, "backends/forZones"},
		{`"terminating":true`, `"terminating":"yes"`, "backends/terminating"},
	}, func(b []byte) error {
		_, err := DecodeLocalService(east(false), key, b, DefaultLimits())
		return err
	})
}

func TestDecodeNodePortsNamesTheWrongField(t *testing.T) {
	runFieldTests(t, localPort, []fieldTest{
		{`"externalTrafficPolicy":"Local"`, `"externalTrafficPolicy":"Far"`, "externalTrafficPolicy"},
		{`"externalTrafficPolicy":"Local"`, `"externalTrafficPolicy":""`, ""},
		{`"external":true`, `"external":"yes"`, "frontends/external"},
		{`"external":true`, `"outside":true`, ""},
		{`"nodePorts":[`, `"nodePorts":{`, "nodePorts"},
		{`"nodePorts":[`, `"nodePorts":[],"nodePorts":[`, "nodePorts"},
		{`"nodePorts":[`, `"newer":[`, ""},
		{`"port":30080`, `"port":0`, "nodePorts/port"},
		{`"port":30080`, `"port":30053`, "nodePorts"},
		{`"port":30080,`, ``, "nodePorts/port"},
		{`{"port":30080,"protocol":"TCP"`, `{"port":30080`, "nodePorts/protocol"},
		{`{"port":30080,"protocol":"TCP"`, `{"port":30080,"address":"x","protocol":"TCP"`, ""},
		{`"portName":"dns"`, `"portName":1`, "nodePorts/portName"},
		{`"address":"192.0.2.2"`, `"address":"x"`, "externalFrontends/address"},
		{`"externalFrontends":[`, `"externalFrontends":[{"address":"::ffff:192.0.2.2","port":80,"protocol":"TCP"},`, "externalFrontends"},
		{`"externalFrontends":[`, `"newer":[`, ""},
		{`"restricted":true`, `"restricted":1`, "restricted"},
	}, func(b []byte) error {
		_, err := DecodeLocalService(east(false), LocalServiceKey("east", "shop", "web"), b, DefaultLimits())
		return err
	})
}

func TestDecodeIdentityNamesTheWrongField(t *testing.T) {
	const cluster = "k8s:" + clusterLabel
	runFieldTests(t, idEast, []fieldTest{
		{`cluster=east`, `cluster=west`, cluster},
		{`cluster=east`, `cluster=`, cluster},
		{`k8s:io.cilium.k8s.policy.cluster=east;`, ``, cluster},
		{`k8s:io.cilium`, `any:io.cilium`, cluster},
		{`cluster=east;`, `cluster=east;any:io.cilium.k8s.policy.cluster=west;`, "labels"},
		{`k8s:app=web;`, `k8s:app=web;k8s:app=db;`, "labels"},
		{`k8s:app=web;`, `;`, "labels"},
		{`k8s:app=web;`, `k8s:app;`, "labels"},
		{`k8s:app=web;`, `app=web;`, "labels"},
		{`k8s:app=web;`, `:app=web;`, "labels"},
		{`k8s:app=web;`, `k8s:=web;`, "labels"},
		{`namespace=shop;`, `namespace=shop`, "labels"},
		{`k8s:app=web;`, `k8s:app=a=b:c;`, ""},
		{`k8s:app=web;`, "k8s:app=\xff;", "value"},
		{`k8s:app=web;`, `cidr:10.0.0.0/8=;`, ""},
	}, func(b []byte) error {
		_, err := DecodeIdentity(east(false), 255, IdentityKey(458753), b, DefaultLimits())
		return err
	})
}

func TestDecodeClusterConfigNamesTheWrongField(t *testing.T) {
	runFieldTests(t, configStock, []fieldTest{
		{`"id":3`, `"id":"3"`, "id"},
		{`"id":3`, `"id":-1`, "id"},
		{`"id":3,`, ``, ""},
		{`"syncedCanaries":true`, `"syncedCanaries":"yes"`, "capabilities/syncedCanaries"},
		{`"maxConnectedClusters":255`, `"maxConnectedClusters":1e3`, "capabilities/maxConnectedClusters"},
		{`"serviceExportsEnabled":false`, `"serviceExportsEnabled":0`, "capabilities/serviceExportsEnabled"},
		{`"serviceExportsEnabled":false`, `"serviceExportsEnabled":null`, ""},
		{`"services-and-endpointslices"`, `"services"`, "capabilities/endpointSlicesExportMode"},
		{`"services-and-endpointslices"`, `"endpointslices-only"`, ""},
		{`"services-and-endpointslices"`, `""`, ""},
		{`"id":3`, `"id":3,"newer":{}`, ""},
	}, func(b []byte) error {
		_, err := DecodeClusterConfig("cluster3", b)
		return err
	})
}

// Keys that do not belong to the source, or are not canonical, are refused
// whatever the value.
func TestDecodersRefuseForeignKeys(t *testing.T) {
	l := DefaultLimits()
	decode := map[string]func(key string) error{
		"services": func(key string) error { _, err := DecodeService(east(false), key, []byte(eastService), l); return err },
		"local": func(key string) error {
			_, err := DecodeLocalService(east(false), key, []byte(localWeb), l)
			return err
		},
		"nodes":      func(key string) error { _, err := DecodeNode(cluster3(), key, []byte(nodeOne), l); return err },
		"ip":         func(key string) error { _, err := DecodeIPEntry(east(false), 255, key, []byte(ipEast), l); return err },
		"identities": func(key string) error { _, err := DecodeIdentity(east(false), 255, key, []byte(idEast), l); return err },
	}
	tests := []struct{ kind, key, field string }{
		{"services", ServiceKey("west", "shop", "web"), "key"},
		{"services", ServiceKey("east", "shop", "db"), "name"},
		{"services", "cilium/cache/services/v1/east/shop/web", "key"},
		{"local", ServiceKey("east", "shop", "web"), "key"},
		{"nodes", NodeKey("cluster3", "other"), "Name"},
		{"nodes", NodeKey("cluster3", "a/b"), "key"},
		{"nodes", NodeKey("cluster3", ""), "key"},
		{"ip", IPKey("10.7.0.22"), "IP"},
		{"ip", IPKey("10.7.0.21/32"), "IP"},
		{"ip", IPKey("::ffff:10.7.0.21"), "IP"},
		{"ip", "cilium/cache/ip/v1/east/10.7.0.21", "key"},
		{"identities", "cilium/state/identities/v1/id/0458753", "id"},
		{"identities", "cilium/state/identities/v1/id/+458753", "id"},
		{"identities", "cilium/state/identities/v1/id/458753/", "id"},
		{"identities", "cilium/state/identities/v1/id/4295426049", "id"},
		{"identities", IdentityKey(458751), "id"},
		{"identities", IdentityKey(524288), "id"},
		{"identities", IdentityKey(255), "id"},
		{"identities", "cilium/state/identities/v1/value/x", "key"},
	}
	for _, tt := range tests {
		t.Run(tt.key, func(t *testing.T) { wantField(t, decode[tt.kind](tt.key), tt.field) })
	}
}

func TestLimitsAreEnforcedAtTheEntryBeyondThem(t *testing.T) {
	l := Limits{MaxValueBytes: 2000, MaxBackends: 3, MaxFrontends: 2, MaxPorts: 2, MaxNames: 3}
	addrs := func(n int) string { return list(n, `"10.0.0.%d":{}`) }
	ports := func(n int) string { return list(n, `"p%d":{"Protocol":"TCP","Port":1}`) }
	tests := []struct {
		member string
		limit  int
		fill   func(int) string
	}{
		{`"frontends":{%s}`, 2, addrs},
		{`"backends":{%s}`, 3, addrs},
		{`"backends":{"10.0.0.1":{%s}}`, 2, ports},
		{`"hostnames":{%s}`, 3, func(n int) string { return list(n, `"10.0.0.%d":"h"`) }},
		{`"zones":{%s}`, 3, addrs},
		{`"zones":{"10.0.0.1":{"forZones":[%s]}}`, 3, func(n int) string { return list(n, `{"name":"z%d"}`) }},
		{`"labels":{%s}`, 3, func(n int) string { return list(n, `"l%d":""`) }},
		{`"selector":{%s}`, 3, func(n int) string { return list(n, `"l%d":""`) }},
		{`"newer":"%s"`, 2000 - len(serviceWith(`"newer":""`)), func(n int) string { return strings.Repeat("x", n) }},
	}
	for _, tt := range tests {
		for n, ok := range map[int]bool{tt.limit: true, tt.limit + 1: false} {
			value := serviceWith(fmt.Sprintf(tt.member, tt.fill(n)))
			_, err := DecodeService(east(false), ServiceKey("east", "shop", "web"), []byte(value), l)
			if (err == nil) != ok {
				t.Errorf("%s with %d entries: got %v", tt.member, n, err)
			}
		}
	}
}

func TestLocalServiceLimitsCountAddressesAndPorts(t *testing.T) {
	l := Limits{MaxValueBytes: 4000, MaxBackends: 2, MaxFrontends: 2, MaxPorts: 3, MaxNames: 3}
	addrs := func(n int) string { return list(n, `{"address":"10.0.0.%d","port":1,"protocol":"TCP"}`) }
	ports := func(n int) string { return list(n, `{"address":"10.0.0.1","port":%d,"protocol":"TCP"}`) }
	tests := []struct {
		field string
		limit int
		fill  func(int) string
	}{{"frontends", 2, addrs}, {"backends", 2, addrs}, {"frontends", 3, ports}, {"backends", 3, ports},
		{"externalFrontends", 2, addrs}, {"externalFrontends", 3, ports}, {"nodePorts", 3, ports}}
	for _, tt := range tests {
		for n, ok := range map[int]bool{tt.limit: true, tt.limit + 1: false} {
			value := serviceWith(fmt.Sprintf(`"%s":[%s]`, tt.field, tt.fill(n)))
			_, err := DecodeLocalService(east(false), LocalServiceKey("east", "shop", "web"), []byte(value), l)
			if (err == nil) != ok {
				t.Errorf("%s with %d entries: got %v", tt.field, n, err)
			}
			if !ok {
				wantField(t, err, tt.field)
			}
		}
	}
}

// list joins n entries numbered from 1.
func list(n int, format string) string {
	var parts []string
	for i := range n {
		part := format
		if strings.Contains(format, "%") {
			part = fmt.Sprintf(format, i+1)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ",")
}

func serviceWith(member string) string {
	return `{"cluster":"east","namespace":"shop","name":"web","clusterID":7,` + member + `}`
}

// What a remote wrote reaches logs only as short printable text.
func TestErrorsAreShortAndPrintable(t *testing.T) {
	long := strings.Repeat("\u001b[2J\u202e", 1000)
	values := []string{
		strings.Replace(eastService, `"cluster":"east"`, fmt.Sprintf(`"cluster":%q`, strings.Repeat("é", 500)), 1),
		strings.Replace(eastService, `"labels":{}`, `"labels":{"`+strings.Repeat("\\u001b", 500)+`":7}`, 1),
		serviceWith(`"backends":{"` + strings.Repeat("\\u202e", 400) + `":{}}`),
		long,
	}
	for _, value := range values {
		_, err := DecodeService(east(false), ServiceKey("east", "shop", "web"), []byte(value), DefaultLimits())
		checkPrintable(t, err)
	}
	_, err := DecodeService(east(false), ServiceKey("east", "shop", long), []byte(eastService), DefaultLimits())
	checkPrintable(t, err)
	checkPrintable(t, ValidateClusterName(long))
}

func checkPrintable(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	text := err.Error()
	if len(text) > 2000 || strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
		t.Errorf("error of %d bytes is not short printable ASCII: %q", len(text), text)
	}
}

func TestErrorShowsTheWholeNumberThatWasRefused(t *testing.T) {
	for _, number := range []string{"7.5", "7e1", "-7", "007", "99999999999999999999999"} {
		value := change(t, eastService, `"clusterID":7`, `"clusterID":`+number)
		_, err := DecodeService(east(false), ServiceKey("east", "shop", "web"), value, DefaultLimits())
		var e *Error
		if !errors.As(err, &e) || !strings.HasPrefix(e.Value, number) {
			t.Errorf("clusterID %s: got %v", number, err)
		}
	}
}

func TestIdentityLabelsAreLimited(t *testing.T) {
	l := DefaultLimits()
	l.MaxNames = 3
	if _, err := DecodeIdentity(east(false), 255, IdentityKey(458753), []byte(idEast), l); err != nil {
		t.Error(err)
	}
	l.MaxNames = 2
	_, err := DecodeIdentity(east(false), 255, IdentityKey(458753), []byte(idEast), l)
	wantField(t, err, "labels")
}

func TestNameListsOfBackendsAreSortedSets(t *testing.T) {
	value := change(t, localWeb, `"portNames":["http"],"ready":true`, `"portNames":["z","a","z"],"ready":true`)
	s, err := DecodeLocalService(east(false), LocalServiceKey("east", "shop", "web"), value, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.Backends[0].PortNames, " "); got != "a z" {
		t.Errorf("port names %q, want %q", got, "a z")
	}
}
