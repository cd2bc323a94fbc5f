package report

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

func TestText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "text")
		got := Text(strings.Repeat(s, rapid.IntRange(0, 20).Draw(t, "times")))
		if len(got) > MaxText || Text(got) != got || checkTexts(map[string]string{"x": got}) != nil {
			t.Fatalf("%q became %q", s, got)
		}
	})
	if got := Text("a\x1b[31m\nü\xff"); got != "a?[31m????" && got != "a?[31m???" {
		t.Errorf("got %q", got)
	}
}

func TestNodeNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"n1": true, "ip-10-0-0-1.eu-west-1.compute.internal": true, "a": true, strings.Repeat("x", 253): true,
		"": false, "-a": false, "a-": false, "a/b": false, "a b": false, "ü": false, strings.Repeat("x", 254): false, "a\n": false,
	} {
		if err := ValidateNode(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestMarks(t *testing.T) {
	m := schema.Marker{Stamp: schema.Stamp{Micros: 7, Incarnation: 1 << 63}, Begun: 3}
	if got := Mark(m).Schema(); got != m {
		t.Errorf("%+v became %+v", m, got)
	}
	var none *Marker
	if none.Schema().Covers(schema.Stamp{Micros: 1}) {
		t.Error("no marker covers something")
	}
}

// FuzzReport takes a report of anybody: what is accepted is bounded and printable.
func FuzzReport(f *testing.F) {
	good, _ := proto.Marshal(&NodeReport{Node: "n1", Clusters: []*ClusterReport{{Name: "east", State: "synced", Acknowledged: &Marker{Stamp: 1}}}})
	f.Add(good)
	f.Add([]byte{0x0a, 1, 'x', 0x22, 2, 0x0a, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > MaxBytes {
			return
		}
		r := &NodeReport{}
		cost.Bounded(t, len(data), 64*len(data), func() {
			if proto.Unmarshal(data, r) != nil || Check(r) != nil {
				r = nil
			}
		})
		if r == nil {
			return
		}
		for _, c := range r.GetClusters() {
			if schema.ValidateClusterName(c.GetName()) != nil || len(c.GetLastError()) > MaxText || strings.ContainsAny(c.GetLastError()+c.GetRemedy(), "\x1b\n") {
				t.Fatalf("accepted %v", c)
			}
		}
	})
}
