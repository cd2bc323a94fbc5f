package main

import (
	"encoding/json"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/clustermesh/clustermesh/agent/api"
)

// TestStatusShowsTheSource: JSON and table say what each cluster is read from,
// and that of a cluster which was never accepted nothing is known.
func TestStatusShowsTheSource(t *testing.T) {
	v := newStatus(&api.StatusResponse{Clusters: []*api.Cluster{
		{Name: "east", Local: true, State: "synced", Source: "local-services"},
		{Name: "west", State: "synced", Source: "endpointslices"},
		{Name: "north", State: "connecting"},
	}})
	encoded, err := json.Marshal(v)
	if err != nil || !strings.Contains(string(encoded), `"source":"endpointslices"`) || !strings.Contains(string(encoded), `"source":""`) {
		t.Errorf("%s, %v", encoded, err)
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 1, ' ', 0)
	v.table(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, line := range strings.Split(strings.ReplaceAll(text.String(), " (own)", ""), "\n") {
		if f := strings.Fields(line); len(f) > 4 {
			got[f[0]] = f[4]
		}
	}
	for name, want := range map[string]string{"CLUSTER": "SOURCE", "east": "local-services", "west": "endpointslices", "north": "-"} {
		if got[name] != want {
			t.Errorf("%s is shown with %q, want %q:\n%s", name, got[name], want, text.String())
		}
	}
}
