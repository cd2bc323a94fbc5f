package oracle

import (
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// world is one service "ns/web" in cluster near and far, each with one endpoint
// whose conditions the test sets.
func world(near, far map[string]string, nearReady, farReady bool) []kube.Objects {
	return []kube.Objects{
		objects("near", "10.96.0.1", "10.1.0.1", near, nearReady),
		objects("far", "10.97.0.1", "10.2.0.1", far, farReady),
	}
}

func objects(cluster, ip, endpoint string, annotations map[string]string, ready bool) kube.Objects {
	name, protocol, port := "http", corev1.ProtocolTCP, int32(8080)
	return kube.Objects{
		Cluster: cluster,
		Services: []*corev1.Service{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", Annotations: annotations},
			Spec: corev1.ServiceSpec{
				ClusterIPs: []string{ip},
				Ports:      []corev1.ServicePort{{Name: name, Protocol: protocol, Port: 80}},
			},
		}},
		Slices: []*discoveryv1.EndpointSlice{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			Ports:      []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{endpoint}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		}},
	}
}

func TestExpect(t *testing.T) {
	global := map[string]string{"service.cilium.io/global": "true"}
	with := func(key, value string) map[string]string {
		return map[string]string{"service.cilium.io/global": "TRUE", key: value}
	}
	const head = "ns/web 10.96.0.1:80/TCP affinity="
	tests := []struct {
		name      string
		near, far map[string]string
		nearReady bool
		farReady  bool
		want      string
	}{
		{"both", global, global, true, true, head + "none\n" + head + "none > far 10.2.0.1:8080 active\n" + head + "none > near 10.1.0.1:8080 active"},
		{"not global here", nil, global, true, true, ""},
		{"not global there", global, nil, true, true, head + "none\n" + head + "none > near 10.1.0.1:8080 active"},
		{"old spelling", map[string]string{"io.cilium/global-service": "true"}, nil, true, true, head + "none\n" + head + "none > near 10.1.0.1:8080 active"},
		{"not shared there", global, with("service.cilium.io/shared", "false"), true, true, head + "none\n" + head + "none > near 10.1.0.1:8080 active"},
		{"not shared here", with("service.cilium.io/shared", "false"), global, true, true, head + "none\n" + head + "none > far 10.2.0.1:8080 active\n" + head + "none > near 10.1.0.1:8080 active"},
		{"local", with("service.cilium.io/affinity", "local"), global, true, true, head + "local\n" + head + "local - far 10.2.0.1:8080 active\n" + head + "local > near 10.1.0.1:8080 active"},
		{"local, none ready", with("service.cilium.io/affinity", "local"), global, false, true, head + "local\n" + head + "local - near 10.1.0.1:8080 not-ready\n" + head + "local > far 10.2.0.1:8080 active"},
		{"remote", with("service.cilium.io/affinity", "remote"), global, true, true, head + "remote\n" + head + "remote - near 10.1.0.1:8080 active\n" + head + "remote > far 10.2.0.1:8080 active"},
		{"remote, none ready", with("service.cilium.io/affinity", "remote"), global, true, false, head + "remote\n" + head + "remote - far 10.2.0.1:8080 not-ready\n" + head + "remote > near 10.1.0.1:8080 active"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := Expect("near", "n1", world(test.near, test.far, test.nearReady, test.farReady))
			if got.String() != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestTableDiff(t *testing.T) {
	f := Frontend{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Protocol: "TCP"}
	b := Backend{Addr: netip.MustParseAddrPort("10.1.0.1:80"), Cluster: "near", State: "active"}
	want := Table{f: {Service: "ns/web", Affinity: "none", Selected: map[Backend]bool{b: true}}}
	got := Table{f: {Service: "ns/web", Affinity: "none", Others: map[Backend]bool{b: true}}}
	if got.Equal(want) || !want.Equal(want) {
		t.Error("Equal does not tell selected from other backends")
	}
	const text = "missing: ns/web 10.96.0.1:80/TCP affinity=none > near 10.1.0.1:80 active\n" +
		"beyond:  ns/web 10.96.0.1:80/TCP affinity=none - near 10.1.0.1:80 active"
	if diff := got.Diff(want); diff != text {
		t.Errorf("diff is\n%s", diff)
	}
}
