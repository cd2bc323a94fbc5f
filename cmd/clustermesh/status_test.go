package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	agentapi "github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/apiserver/api"
	"github.com/clustermesh/clustermesh/kvstore/report"
)

// standIn is an apiserver's local API that answers as told.
type standIn struct {
	api.UnimplementedApiserverServer
	name   string
	nodes  []*api.NodeStatus
	behind []*api.Behind
	refuse error
	waited *api.WaitRequest
}

func (s *standIn) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	return &api.StatusResponse{Cluster: s.name, ClusterId: 1, Ready: true, Stamp: "5-a", StampSeconds: 1.25, Services: 2, Nodes: s.nodes, Problems: []string{"source: web.yaml is bad"}}, nil
}

func (s *standIn) Stamp(context.Context, *api.StampRequest) (*api.StampResponse, error) {
	return &api.StampResponse{Cluster: s.name, Stamp: "7-" + s.name[:1]}, s.refuse
}

func (s *standIn) Wait(_ context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	s.waited = r
	return &api.WaitResponse{Done: len(s.behind) == 0, Nodes: 3, Behind: s.behind}, nil
}

// listenAt serves on a new socket for the length of the test.
func listenAt(t *testing.T, register func(*grpc.Server)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	register(server)
	go server.Serve(l) //nolint:errcheck // it ends with the test
	t.Cleanup(server.Stop)
	return path
}

func (s *standIn) listen(t *testing.T) string {
	return listenAt(t, func(g *grpc.Server) { api.RegisterApiserverServer(g, s) })
}

// ran is what a command line did.
type ran struct {
	code        int
	out, errors string
}

func runLine(t *testing.T, args ...string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code := run(ctx, args, strings.NewReader(""), &out, &errs)
	return ran{code, out.String(), errs.String()}
}

var eastNodes = []*api.NodeStatus{
	{Name: "n1", State: "reporting", ReportSeconds: 2, Exported: true, Report: &report.NodeReport{Node: "n1", Problems: 1, FailedServices: 4, Clusters: []*report.ClusterReport{
		{Name: "east", Local: true, State: "synced", Acknowledged: &report.Marker{Stamp: 5, Incarnation: 10}, AgeSeconds: 1, LagP50Seconds: 0.0031, LagP99Seconds: 0.25, LagSamples: 9, Services: 2, Backends: 6},
		{Name: "west", State: "stale", LastError: "dial: refused", Remedy: "open the port", Failures: 3, ProvisionalServices: 1, ProvisionalBackends: 2},
	}}},
	{Name: "n2", State: "silent", ReportSeconds: 40, Report: &report.NodeReport{Node: "n2"}},
	{Name: "n3", State: "missing", Exported: true},
}

// TestStatusOfClusters: every node of every cluster asked, what is wrong with each,
// and what to do.
func TestStatusOfClusters(t *testing.T) {
	east, west := &standIn{name: "east", nodes: eastNodes}, &standIn{name: "west"}
	sockets := []string{"--apiserver-socket", east.listen(t), "--apiserver-socket", west.listen(t)}
	got := runLine(t, append([]string{"status"}, sockets...)...)
	for _, want := range []string{
		"cluster east (id 1): ready; 2 services, 3 nodes: 1 reporting, 1 silent, 1 missing", "stamp 5-a, 1.3s ago", "cluster west", "! source: web.yaml is bad",
		"! n1: west: dial: refused; open the port", "! n1: 4 services do not fit", "! n2: silent for 40s; check", "! n3: no agent has reported; check", "! n1: 1 problem; see",
		"! n1: west: 2 backends are provisional, of 1 service: in use as known before",
	} {
		if !strings.Contains(got.out, want) {
			t.Errorf("%q is missing in\n%s%s", want, got.out, got.errors)
		}
	}
	row := map[string]string{}
	for _, line := range strings.Split(strings.ReplaceAll(got.out, " (own)", ""), "\n") {
		if f := strings.Fields(line); len(f) > 4 {
			row[f[0]+" "+f[1]] = strings.Join(f[2:], " ")
		}
	}
	for key, want := range map[string]string{"n1 east": "synced 3s 3.1ms/250ms 2 6 0 0", "n1 west": "stale - - 0 0 2 3", "n2 -": "silent - - - - - -"} {
		if row[key] != want {
			t.Errorf("%s: %q, want %q", key, row[key], want)
		}
	}
	got = runLine(t, append([]string{"status", "-o", "json", "--node", "east/n1", "--cluster", "west"}, sockets...)...)
	var views []clusterStatusView
	if err := json.Unmarshal([]byte(got.out), &views); err != nil || len(views) != 2 {
		t.Fatalf("%v: %s%s", err, got.out, got.errors)
	}
	if n := views[0].Nodes; len(n) != 1 || len(n[0].Clusters) != 1 || n[0].Clusters[0].Remedy != "open the port" || n[0].Clusters[0].provisionalView != (provisionalView{1, 2}) || len(views[1].Nodes) != 0 {
		t.Errorf("narrowed to one node and cluster: %+v", views)
	}
}

// TestStatusOfALargeCluster: 3,000 nodes, each with errors of ten clusters.
func TestStatusOfALargeCluster(t *testing.T) {
	east := &standIn{name: "east"}
	for i := range 3000 {
		n := &api.NodeStatus{Name: fmt.Sprintf("n%d", i), State: "reporting", Report: &report.NodeReport{Node: fmt.Sprintf("n%d", i)}}
		for j := range 10 {
			n.Report.Clusters = append(n.Report.Clusters, &report.ClusterReport{Name: fmt.Sprintf("c%d", j), State: "stale", LastError: strings.Repeat("x", report.MaxText)})
		}
		east.nodes = append(east.nodes, n)
	}
	got := runLine(t, "status", "--apiserver-socket", east.listen(t))
	if got.code != 0 || !strings.Contains(got.out, "3000 nodes: 3000 reporting") {
		t.Errorf("exit %d: %s", got.code, got.errors)
	}
}

// TestStatusWaitsForClusters: all are stamped, the nodes of all wait for all
// stamps, and what is missing is the error.
func TestStatusWaitsForClusters(t *testing.T) {
	east, west := &standIn{name: "east"}, &standIn{name: "west"}
	sockets := []string{"--apiserver-socket", east.listen(t), "--apiserver-socket", west.listen(t)}
	got := runLine(t, append([]string{"status", "--wait", "--for", "north=9-c"}, sockets...)...)
	if want := "programmed on 6 nodes\neast=7-e\nwest=7-w\nnorth=9-c\n"; got.code != 0 || got.out != want {
		t.Errorf("exit %d: %q, want %q %s", got.code, got.out, want, got.errors)
	}
	for _, s := range []*standIn{east, west} {
		if len(s.waited.GetTargets()) != 3 || len(s.waited.GetNodes()) != 0 || s.waited.GetTimeoutSeconds() < 50 {
			t.Errorf("%s is asked %v", s.name, s.waited)
		}
		s.waited = nil
	}
	got = runLine(t, append([]string{"status", "--wait", "--node", "east/n1,east/n2", "--cluster", "west"}, sockets...)...)
	if got.code != 0 || west.waited != nil || len(east.waited.GetNodes()) != 2 || len(east.waited.GetTargets()) != 1 || east.waited.GetTargets()[0].GetCluster() != "west" {
		t.Errorf("exit %d, east is asked %v, west %v %s", got.code, east.waited, west.waited, got.errors)
	}
	west.behind = []*api.Behind{{Node: "n7", Cluster: "east", Reason: "stale: dial: refused"}, {Reason: "no node is exported"}}
	got = runLine(t, append([]string{"status", "--wait", "--timeout", "1s"}, sockets...)...)
	if got.code != 1 || got.out != "" || !strings.Contains(got.errors, "n7: east: stale: dial: refused") || !strings.Contains(got.errors, "west: no node") {
		t.Errorf("exit %d: %s%s", got.code, got.out, got.errors)
	}
	got = runLine(t, append([]string{"status", "--wait", "-o", "json"}, sockets...)...)
	var v waitedView
	if err := json.Unmarshal([]byte(got.out), &v); err != nil || got.code != 1 || v.Done || len(v.Behind) != 2 || v.Behind[0].In != "west" {
		t.Errorf("exit %d, %v: %+v", got.code, err, v)
	}
	east.refuse = grpcstatus.Error(codes.Unavailable, "list services: refused")
	got = runLine(t, append([]string{"status", "--wait"}, sockets...)...)
	if got.code != 1 || !strings.Contains(got.errors, "list services: refused") || !strings.Contains(got.errors, "clustermesh-apiserver runs here") {
		t.Errorf("exit %d: %s", got.code, got.errors)
	}
}

// agentStandIn is an agent's local API that is done with what it is asked, or not.
type agentStandIn struct {
	agentapi.UnimplementedAgentServer
	behind []*agentapi.Behind
	waited *agentapi.WaitRequest
}

func (s *agentStandIn) Wait(_ context.Context, r *agentapi.WaitRequest) (*agentapi.WaitResponse, error) {
	s.waited = r
	return &agentapi.WaitResponse{Done: len(s.behind) == 0, Targets: []*agentapi.Target{{Cluster: "east", Stamp: "7-e"}}, Behind: s.behind}, nil
}

func TestStatusWaitsForANode(t *testing.T) {
	a := &agentStandIn{}
	socket := listenAt(t, func(g *grpc.Server) { agentapi.RegisterAgentServer(g, a) })
	got := runLine(t, "status", "--wait", "--api-socket", socket, "--cluster", "east", "--for", "west=8-b", "--timeout", "5s")
	if got.code != 0 || got.out != "programmed on 1 node\neast=7-e\n" || a.waited.GetTimeoutSeconds() != 5 || len(a.waited.GetClusters()) != 1 || a.waited.GetTargets()[0].GetStamp() != "8-b" {
		t.Errorf("exit %d: %s%s, asked %v", got.code, got.out, got.errors, a.waited)
	}
	a.behind = []*agentapi.Behind{{Cluster: "east", Reason: "stale: refused"}}
	if got := runLine(t, "status", "--wait", "--api-socket", socket); got.code != 1 || !strings.Contains(got.errors, "this node: east: stale: refused") {
		t.Errorf("exit %d: %s", got.code, got.errors)
	}
}

func TestStatusIsUsedWrongly(t *testing.T) {
	for want, args := range map[string][]string{
		"--timeout": {"--wait", "--timeout", "0s"}, "only its own node": {"--node", "n1"}, "only --wait": {"--for", "a=1-1"},
		"CLUSTER=STAMP": {"--wait", "--for", "east"}, "CLUSTER/NODE": {"--apiserver-socket", "a", "--apiserver-socket", "b", "--node", "n1"},
	} {
		if got := runLine(t, append([]string{"status"}, args...)...); got.code != 2 || !strings.Contains(got.errors, want) {
			t.Errorf("%v: exit %d: %s", args, got.code, got.errors)
		}
	}
}
