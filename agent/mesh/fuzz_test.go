package mesh_test

import (
	"testing"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// FuzzRemote lets two clusters say anything about anything. Nothing of it may
// become a frontend, point where no backend may be, depend on the order it came
// in, or stay once it is taken back.
func FuzzRemote(f *testing.F) {
	const west = `{"cluster":"west","namespace":"shop","name":"web","frontends":{},"backends":{"10.0.0.5":{"http":{"Protocol":"TCP","Port":80}},"127.0.0.1":{"http":{"Protocol":"TCP","Port":80}}},"labels":{},"selector":{},"includeExternal":true,"shared":true,"clusterID":1}`
	web := schema.ServiceKey(remote, "shop", "web")
	f.Add(web, []byte(west), "x", []byte("{}"), []byte("\n\x05north\x10\x03\x1a\x04shop\"\x03web2\x00"))
	f.Add(schema.ServiceKey(remote, "kube-system", "dns"), []byte(west), web, []byte(west), []byte{})
	var codec schema.SliceCodec
	slice := schema.EndpointSliceKey("north", "shop", "web-a")
	f.Fuzz(func(t *testing.T, key1 string, value1 []byte, key2 string, value2, value3 []byte) {
		put := []mesh.Change{{Key: key1, Value: value1}, {Key: key2, Value: value2}}
		other := []mesh.Change{{Key: slice, Value: value3}, {Key: slice + "b", Value: sliceOf(&codec, "north", "web-ab", value1)}}
		m := meshOf(t)
		m.Apply(remote, put)
		m.Apply("north", other)
		first := tablesOf(t, m)
		again := meshOf(t)
		again.Apply("north", []mesh.Change{other[1], other[0], other[1]})
		if key1 != key2 {
			again.Apply(remote, []mesh.Change{put[1], put[0], put[0]})
		} else {
			again.Apply(remote, []mesh.Change{put[1], put[0], put[1]})
		}
		if second := tablesOf(t, again); first != second {
			t.Fatalf("in one order\n%s\nin another\n%s", first, second)
		}
		checkWithdrawn(t, m, append(put, other...))
	})
}

// sliceOf is a slice whose one endpoint has the addresses that bytes spell.
func sliceOf(codec *schema.SliceCodec, cluster, name string, spelled []byte) []byte {
	s := schema.EndpointSlice{Cluster: cluster, ClusterID: ids[cluster], Namespace: "shop", Name: name, AddressType: schema.IPv4,
		Labels: map[string]string{"kubernetes.io/service-name": "web"}, Ports: []schema.SlicePort{{Name: "http", Protocol: schema.TCP, Port: 80}}}
	for i := 0; i+4 <= len(spelled) && i < 40; i += 4 {
		s.Endpoints = append(s.Endpoints, schema.Endpoint{Addresses: addressesOf([4]byte(spelled[i : i+4]))})
	}
	return codec.Encode(&s)
}
