package export_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// what a cluster was told of others it does not pass on as its own.
// Slices that the mesh's own controllers made of other clusters' backends lie in
// our Kubernetes like any other; in whatever order they come, go and change
// hands, no address of them is published.
func TestR14_OtherClustersBackendsAreNotPassedOn(t *testing.T) {
	for what, config := range variants() {
		t.Run(what, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { passesNothingOn(t, config) }) })
	}
}

func passesNothingOn(t *rapid.T, config export.Config) {
	foreign := netip.MustParsePrefix("203.0.113.0/24")
	e := export.New(config, hashed{})
	published := map[string]export.Record{}
	hear := func(changes ...export.Change) {
		for _, r := range e.Apply(changes) {
			published[r.Key] = r
		}
	}
	hear(cluster(3)...)
	for range rapid.IntRange(1, 12).Draw(t, "steps") {
		i := rapid.IntRange(0, 2).Draw(t, "service")
		s := slice(i, rapid.Bool().Draw(t, "ready"))
		s.Name = fmt.Sprintf("s%d-%s", i, rapid.SampledFrom([]string{"own", "told", "both"}).Draw(t, "name"))
		if s.Name[3:] != "own" && (s.Name[3:] == "told" || rapid.Bool().Draw(t, "told")) {
			s.Labels[discoveryv1.LabelManagedBy] = "endpointslice-mesh-controller.cilium.io"
			s.Labels["multicluster.kubernetes.io/source-cluster"] = "elsewhere"
			for j := range s.Endpoints {
				s.Endpoints[j].Addresses = []string{fmt.Sprintf("203.0.113.%d", j)}
			}
		}
		hear(export.Change{Object: s, Deleted: rapid.IntRange(0, 4).Draw(t, "deleted") == 0})
		for key, r := range published {
			if bytes.Contains(r.Value, []byte("203.0.113.")) {
				t.Fatalf("%s passes on: %s", key, r.Value)
			}
			if r.Kind != schema.KindEndpointSlice || len(r.Value) == 0 {
				continue
			}
			if v, err := read(config, r); err != nil || names(v, foreign) {
				t.Fatalf("%s passes on: %v, %v", key, v, err)
			}
		}
	}
}

func names(s *schema.EndpointSlice, in netip.Prefix) bool {
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			if in.Contains(a) {
				return true
			}
		}
	}
	return false
}
