package export_test

import (
	"github.com/clustermesh/clustermesh/apiserver/export"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

func drawExport(t *rapid.T) metav1.Object {
	x := &export.ServiceExport{ObjectMeta: meta(t, "web", "db")}
	x.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(1, 2).Draw(t, "age")), 0)
	x.Spec.ExportedLabels = map[string]string{"team": pick(t, "team", "x", "y")}
	return x
}

func drawCiliumNode(t *rapid.T) metav1.Object {
	n := &export.CiliumNode{}
	n.Name = pick(t, "name", "n1", "n2")
	n.Spec.IPAM.PodCIDRs = []string{pick(t, "cidr", "10.1.0.0/24", "bad")}
	n.Spec.Addresses = []export.CiliumNodeAddress{{Type: "InternalIP", IP: pick(t, "ip", "192.0.2.1", "name")}}
	return n
}

func drawCiliumIdentity(t *rapid.T) metav1.Object {
	i := &export.CiliumIdentity{}
	i.Name = pick(t, "number", "458760", "458761", "7", "word")
	i.SecurityLabels = map[string]string{
		"k8s:app": pick(t, "app", "x", "y"), "k8s:io.kubernetes.pod.namespace": pick(t, "namespace", "a", "b", ""),
		"k8s:io.cilium.k8s.policy.cluster": pick(t, "cluster", "east", "east", "west"),
	}
	return i
}

func drawCiliumEndpoint(t *rapid.T) metav1.Object {
	e := &export.CiliumEndpoint{ObjectMeta: meta(t, "p1", "p2")}
	e.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(0, 2).Draw(t, "age")), 0)
	e.Status.Networking = drawNetworking(t)
	if rapid.Bool().Draw(t, "has identity") {
		e.Status.Identity = &export.CiliumEndpointIdentity{ID: rapid.SampledFrom([]int64{458760, 5, 7 << 20}).Draw(t, "identity")}
	}
	return e
}

func drawNetworking(t *rapid.T) *export.CiliumEndpointNetworking {
	return &export.CiliumEndpointNetworking{NodeIP: "192.0.2.1", Addressing: []export.CiliumAddressPair{{
		IPv4: pick(t, "IPv4", "", "10.1.0.1", "10.1.0.2", "bad"), IPv6: pick(t, "IPv6", "", "fd00::1"),
	}}}
}

func drawCiliumSlice(t *rapid.T) metav1.Object {
	s := &export.CiliumEndpointSlice{EndpointsNamespace: pick(t, "namespace", "a", "b")}
	s.Name = pick(t, "name", "ces-1", "ces-2")
	s.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(0, 2).Draw(t, "age")), 0)
	for range rapid.IntRange(0, 2).Draw(t, "endpoints") {
		s.Endpoints = append(s.Endpoints, export.CiliumCoreEndpoint{
			Name: pick(t, "pod", "p1", "p2"), IdentityID: rapid.SampledFrom([]int64{458760, 458761}).Draw(t, "identity"),
			Networking: drawNetworking(t),
		})
	}
	return s
}
