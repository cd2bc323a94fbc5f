package main

import (
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	apiserverapi "github.com/clustermesh/clustermesh/apiserver/api"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/report"
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

// TestStatusShowsTheDataPath beside the state of the control link.
func TestStatusShowsTheDataPath(t *testing.T) {
	v := newStatus(&api.StatusResponse{Clusters: []*api.Cluster{
		{Name: "east", Local: true, State: "synced"},
		{Name: "west", State: "synced", DataPath: "ok", RttSeconds: 0.0123, RttMinSeconds: 0.01},
		{Name: "north", State: "stale", DataPath: "failing", Dead: true, DeadSeconds: 3},
		{Name: "south", State: "synced", DataPath: "failing"},
		{Name: "far", State: "synced", DataPath: "unknown", NodePath: "ok", NodeRttSeconds: 0.2, DistanceSeconds: 0.21, Rank: 3},
		{Name: "gone", State: "stale", DataPath: "failing", Dead: true, NodePath: "failing", NodeRttSeconds: 0.2},
	}})
	for i, want := range []string{"-", "ok, 12.3ms", "dead", "failing", "unknown; nodes ok, 200.0ms; 3 by distance", "dead; nodes failing"} {
		if got := v.Clusters[i].path(); got != want {
			t.Errorf("%s is shown as %q, want %q", v.Clusters[i].Name, got, want)
		}
	}
	encoded, err := json.Marshal(v)
	if err != nil || !strings.Contains(string(encoded), `"dataPath":"failing","rttSeconds":0,"rttMinSeconds":0,"dead":true,"deadSeconds":3,"nodePath":"","nodeRTTSeconds":0,"distanceSeconds":0,"rank":0`) {
		t.Errorf("%s, %v", encoded, err)
	}
}

// TestServicesShowTheirPolicy: JSON holds every part of a decision, the wide
// table shows it, the plain one does not, and both tell what is wrong.
func TestServicesShowTheirPolicy(t *testing.T) {
	v := newServices(&api.ServicesResponse{Services: []*api.Service{{
		Namespace: "shop", Name: "cart", Affinity: "none", SessionAffinitySeconds: 60, Consistent: true, Problems: []string{"write it otherwise"}, Nearest: "north (2.0ms)", Ramping: true,
		Backends: []*api.Backend{
			{Address: "10.1.0.1", Port: 80, Protocol: "TCP", Cluster: "east", State: "active", Selected: true, Reason: "active", Weight: 3, Share: 75, Tier: 1},
			{Address: "10.3.0.1", Port: 80, Protocol: "TCP", Cluster: "north", State: "active", Reason: "excluded", Provisional: true},
		},
	}}})
	encoded, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"reason":"active","weight":3,"share":75,"tier":1,"provisional":false}`, `"sessionAffinitySeconds":60,"consistent":true,"nearest":"north (2.0ms)","ramping":true,"problems":["write it otherwise"]`} {
		if !strings.Contains(string(encoded), want) {
			t.Errorf("%s does not hold %s", encoded, want)
		}
	}
	var plain, wide strings.Builder
	v.table(&plain)
	v.wide(&wide)
	for _, want := range []string{"session affinity 60s  consistent hashing  ramping\n", "active\t1\t3\t75.00%\n", "excluded\t-\t-\t-\n", "  nearest: north (2.0ms)\n", "! write it otherwise"} {
		if !strings.Contains(wide.String(), want) {
			t.Errorf("%s does not show %q", wide.String(), want)
		}
	}
	for _, text := range []string{plain.String(), wide.String()} {
		if !strings.Contains(text, "north\tactive (provisional)\tno") || strings.Contains(text, "east\tactive (") {
			t.Errorf("the table does not tell which backend is provisional:\n%s", text)
		}
	}
	if strings.Contains(plain.String(), "75") || !strings.Contains(plain.String(), "! write it otherwise") {
		t.Errorf("plain table:\n%s", plain.String())
	}
}

// TestStatusTellsWhatIsProvisional: a cluster that was not heard since a restart
// counts nothing as said, and what is in use of it all the same.
func TestStatusTellsWhatIsProvisional(t *testing.T) {
	v := newStatus(&api.StatusResponse{Clusters: []*api.Cluster{
		{Name: "east", Local: true, State: "synced", Services: 1, Backends: 2},
		{Name: "west", State: "stale", ProvisionalServices: 1, ProvisionalBackends: 2},
	}})
	encoded, err := json.Marshal(v)
	if err != nil || !strings.Contains(string(encoded), `"provisionalServices":1,"provisionalBackends":2`) || !strings.Contains(string(encoded), `"provisionalServices":0,"provisionalBackends":0`) {
		t.Errorf("%s, %v", encoded, err)
	}
	var text strings.Builder
	v.table(&text)
	for _, want := range []string{"SERVICES\tBACKENDS\tPROVISIONAL\t", "west\t0\tstale\t0s\t-\t-\t-\t0\t0\t2\t0\t", "! west: 2 backends are provisional, of 1 service: in use as known before the agent's restart"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "! east") {
		t.Errorf("east has nothing provisional:\n%s", text.String())
	}
}

// TestCountsOfOne: whatever is counted, one of it is not several.
func TestCountsOfOne(t *testing.T) {
	var text strings.Builder
	one := &report.NodeReport{Node: "n1", Problems: 1, FailedServices: 1, Clusters: []*report.ClusterReport{{Name: "west", State: "stale", ProvisionalServices: 1, ProvisionalBackends: 1}}}
	all := func(string) bool { return true }
	for _, draw := range []func(io.Writer){
		newStatus(&api.StatusResponse{Datapath: &api.Datapath{Translated: 1, Refused: 1}, Clusters: []*api.Cluster{{Name: "west", State: "stale", ProvisionalServices: 1, ProvisionalBackends: 1, Rejections: []*api.Rejection{{Count: 1}}}}}).table,
		newClusterStatus(&apiserverapi.StatusResponse{Services: 1, Nodes: []*apiserverapi.NodeStatus{{Name: "n1", State: "reporting", Report: one}}}, all, all).table,
		waitedView{Nodes: 1}.table,
		releaseView{"west", 1}.table,
	} {
		draw(&text)
	}
	for _, err := range []error{
		verdict([]certs.Finding{{Broken: true}}, time.Now(), 0),
		verdict([]certs.Finding{{Broken: true}, {}}, time.Now(), time.Hour),
		verdict([]certs.Finding{{}}, time.Now(), time.Hour),
	} {
		text.WriteString(err.Error() + "\n")
	}
	if wrong := regexp.MustCompile(`(?m)(^|[^0-9.])1 [a-z]+s\b.*`).FindAllString(text.String(), -1); wrong != nil {
		t.Errorf("plural forms of one: %q", wrong)
	}
	for _, want := range []string{"1 connection translated", "1 service, 1 node:", "1 service does not fit", "1 problem;", "programmed on 1 node\n", "1 backend of cluster west", "1 backend is provisional, of 1 service:", "1 problem now and 1 more", "1 link or CA ends by"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
}
