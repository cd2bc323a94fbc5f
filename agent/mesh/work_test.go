package mesh_test

import (
	"fmt"
	"testing"

	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// TestR07_WorkOfSmallChanges: a change of one endpoint is work for all records of its
// service, and one that concerns no service here is none.
func TestR07_WorkOfSmallChanges(t *testing.T) {
	m, codec := joinedBySlices(t, config()), &schema.SliceCodec{}
	put := func(s *schema.EndpointSlice) int {
		m.Work()
		m.Apply(remote, []mesh.Change{change(codec, s)})
		m.Dirty()
		records, _ := m.Work()
		return records
	}
	for i := range 10 {
		var all []string
		for j := range 100 {
			all = append(all, fmt.Sprintf("10.1.%d.%d", i, j))
		}
		put(sliceOf(remote, fmt.Sprintf("s%d", i), all...))
	}
	if n := put(sliceOf(remote, "s0", "10.1.0.1")); n < 2*900 || n > 4*1000 {
		t.Errorf("work for %d records; 901 are merged for one frontend", n)
	}
	elsewhere := sliceOf(remote, "s10", "10.1.10.1")
	elsewhere.Labels[serviceLabel] = "elsewhere"
	if n := put(elsewhere); n != 0 {
		t.Errorf("work for %d records of a service that is not here", n)
	}
	if n, services := m.Work(); n != 0 || services != 0 {
		t.Errorf("%d records are counted twice", n)
	}
	m.Apply("north", []mesh.Change{far("north", "cart", "10.3.0.9")})
	if n, services := m.Work(); n < 2 || n > 300 || services != 1 {
		t.Errorf("a cluster with one backend works for %d records of %d services", n, services)
	}
}
