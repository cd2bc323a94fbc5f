package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/report"
)

// reporting is a connection whose store takes reports.
type reporting struct {
	*memoryConn
	refuse  error
	reports chan *report.NodeReport
}

func (c *reporting) Invoke(ctx context.Context, method string, request, _ any, _ ...grpc.CallOption) error {
	if c.refuse != nil {
		return c.refuse
	}
	if method != report.Reports_Report_FullMethodName {
		return status.Error(codes.Unimplemented, method)
	}
	select {
	case c.reports <- proto.Clone(request.(proto.Message)).(*report.NodeReport):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *reporting) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "streams")
}

// awaitReport takes reports until one is as wanted. All of them are such as an
// apiserver accepts.
func awaitReport(t *testing.T, reports <-chan *report.NodeReport, what string, ok func(map[string]*report.ClusterReport, *report.NodeReport) bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case r := <-reports:
			if err := report.Check(r); err != nil {
				t.Fatalf("%v: %v", r, err)
			}
			clusters := map[string]*report.ClusterReport{}
			for _, c := range r.GetClusters() {
				clusters[c.GetName()] = c
			}
			if ok(clusters, r) {
				return
			}
		case <-deadline:
			t.Fatal("no report says: " + what)
		}
	}
}

// TestReports: the own cluster's apiserver hears of every change of state, and of
// an acknowledgement that was asked for, without a regular report.
func TestReports(t *testing.T) {
	s := newSimulation(t)
	s.stop()
	reports := make(chan *report.NodeReport)
	s.replace("home", func(context.Context, string, clusterfile.File) (connection, error) {
		return &reporting{memoryConn: &memoryConn{fakeCluster: s.clusters["home"]}, reports: reports}, nil
	})
	s.tune = func(c *core) { c.reportEvery = time.Hour }
	s.start()
	s.say("home", "s1", "10.1.0.1:80")
	state := func(name, state string) func(map[string]*report.ClusterReport, *report.NodeReport) bool {
		return func(c map[string]*report.ClusterReport, _ *report.NodeReport) bool {
			return c[name].GetState() == state
		}
	}
	awaitReport(t, reports, "east is synced", state("east", "synced"))
	for range 5 {
		m := s.clusters["east"].mark(true)
		awaitReport(t, reports, "acknowledged", func(c map[string]*report.ClusterReport, _ *report.NodeReport) bool {
			return c["east"].GetAcknowledged().Schema().Covers(m.Stamp)
		})
	}
	s.clusters["east"].down.Store(true)
	s.clusters["east"].BreakWatches(nil)
	awaitReport(t, reports, "east is stale, why, and what to do", func(c map[string]*report.ClusterReport, _ *report.NodeReport) bool {
		return c["east"].GetState() == "stale" && c["east"].GetLastError() != "" && c["east"].GetRemedy() != ""
	})
	s.clusters["east"].down.Store(false)
	awaitReport(t, reports, "east is synced again", state("east", "synced"))
	s.unconfigure("east")
	awaitReport(t, reports, "east is removed", state("east", "removed"))
	s.configure("east")
	awaitReport(t, reports, "east is back", state("east", "synced"))
	if err := s.agent.core.do(t.Context(), func(c *core) { c.setFault("pins are gone") }); err != nil {
		t.Fatal(err)
	}
	awaitReport(t, reports, "the fault", func(_ map[string]*report.ClusterReport, r *report.NodeReport) bool {
		return r.GetFault() == "pins are gone"
	})
}

// TestClustersThatGo: draining while the file is missing, removed after that.
func TestClustersThatGo(t *testing.T) {
	s := newSimulation(t)
	s.awaitState("east", "synced", "")
	state := func(change func(*core)) (state string) {
		err := s.agent.core.do(t.Context(), func(c *core) {
			change(c)
			for _, one := range c.report().GetClusters() {
				if one.GetName() == "east" {
					state = one.GetState()
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	if got := state(func(c *core) { c.setLeaving([]string{"east", "home"}) }); got != "draining" {
		t.Errorf("its file is missing: %s", got)
	}
	if got := state(func(c *core) { c.setLeaving(nil) }); got != "synced" {
		t.Errorf("its file is back: %s", got)
	}
	s.unconfigure("east")
	s.awaitState("east", "removed", "")
	if got := state(func(c *core) { c.removed["east"] = c.removed["east"].Add(-removedShown) }); got != "" {
		t.Errorf("long after it was removed: %s", got)
	}
}

// TestReportsAreNotNeeded: an apiserver that takes none changes nothing else.
func TestReportsAreNotNeeded(t *testing.T) {
	s := newSimulation(t)
	s.stop()
	s.replace("home", func(context.Context, string, clusterfile.File) (connection, error) {
		return &reporting{memoryConn: &memoryConn{fakeCluster: s.clusters["home"]}, refuse: status.Error(codes.Unimplemented, "unknown service")}, nil
	})
	s.start()
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(s.want(all...))
	s.awaitState("home", "synced", "")
}

// TestReportsFit: however many clusters and however long their errors.
func TestReportsFit(t *testing.T) {
	r := &report.NodeReport{Node: "n1"}
	for i := range 600 {
		r.Clusters = append(r.Clusters, &report.ClusterReport{
			Name: fmt.Sprintf("cluster-%d", i), State: "stale", LastError: report.Text(strings.Repeat("x", 999)), Remedy: report.Text("do ü\n"),
			Acknowledged: &report.Marker{Stamp: time.Now().UnixMicro(), Incarnation: 1 << 63, Begun: 1}, AgeSeconds: 1, LagP50Seconds: 1, LagP99Seconds: 1, LagSamples: 256,
		})
	}
	r = fit(r)
	if err := report.Check(r); err != nil || len(r.GetClusters()) != report.MaxClusters || proto.Size(r) > report.MaxBytes {
		t.Errorf("%d clusters, %d bytes: %v", len(r.GetClusters()), proto.Size(r), err)
	}
}
