package agent

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/kvstore/report"
)

const (
	// reportInterval is how often the own cluster's apiserver is told how this node
	// stands although nothing changed, and reportGap the least time between two.
	reportInterval = 5 * time.Second
	reportGap      = 20 * time.Millisecond
	reportLimit    = 5 * time.Second
	// reportRetry is how soon an apiserver is asked again that takes no reports.
	reportRetry = time.Minute
)

// sendReports tells the own cluster's apiserver how this node stands, over the
// connection that the cluster is read by. Nothing depends on it, so it ends no
// connection; one that takes no reports is asked again from time to time.
func (r *remote) sendReports(ctx context.Context, conn connection) error {
	caller, ok := conn.(grpc.ClientConnInterface)
	if !ok {
		<-ctx.Done()
		return ctx.Err()
	}
	client := report.NewReportsClient(caller)
	for ctx.Err() == nil {
		wanted, pause := r.core.reportWanted, r.core.reportEvery
		if err := r.sendReport(ctx, client); refusesReports(err) {
			wanted, pause = nil, reportRetry
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reportGap):
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		case <-wanted:
		}
	}
	return ctx.Err()
}

func refusesReports(err error) bool {
	code := status.Code(err)
	return code == codes.Unimplemented || code == codes.PermissionDenied
}

func (r *remote) sendReport(ctx context.Context, client report.ReportsClient) error {
	ctx, cancel := context.WithTimeout(ctx, reportLimit)
	defer cancel()
	var now *report.NodeReport
	if err := r.core.do(ctx, func(c *core) { now = c.report() }); err != nil {
		return err
	}
	_, err := client.Report(ctx, now)
	if err != nil && ctx.Err() == nil {
		r.log().Debug("own apiserver takes no report", "cluster", r.name, "err", err)
	}
	return err
}

// report says how this node stands. It runs on the core's goroutine.
func (c *core) report() *report.NodeReport {
	s := c.status()
	out := &report.NodeReport{
		Node: s.GetNode(), Version: report.Text(s.GetVersion()), Ready: s.GetReady(), Frontends: s.GetDatapath().GetFrontends(),
		FailedServices: uint32(len(c.failed)), Fault: report.Text(c.fault), Problems: uint32(len(s.GetProblems())),
	}
	for _, one := range s.GetClusters() {
		out.Clusters = append(out.Clusters, c.clusterReport(one))
	}
	return fit(out)
}

func (c *core) clusterReport(s *api.Cluster) *report.ClusterReport {
	out := &report.ClusterReport{
		Name: s.GetName(), Id: s.GetId(), Local: s.GetLocal(), State: s.GetState(), AgeSeconds: s.GetAgeSeconds(),
		LagP50Seconds: s.GetLagP50Seconds(), LagP99Seconds: s.GetLagP99Seconds(), LagSamples: s.GetLagSamples(),
		Services: s.GetServices(), Backends: s.GetBackends(), Held: s.GetHeld(), Failures: s.GetFailures(),
		LastError: report.Text(s.GetLastError()), Remedy: report.Text(s.GetRemedy()), Dead: s.GetDead(),
		ProvisionalServices: s.GetProvisionalServices(), ProvisionalBackends: s.GetProvisionalBackends(),
	}
	if l := c.links[s.GetName()]; l != nil && l.progress.marker.Micros > 0 {
		out.Acknowledged = report.Mark(l.progress.marker)
	}
	return out
}

// fit leaves out texts of a report that would be too large: what state each
// cluster is in matters more.
func fit(r *report.NodeReport) *report.NodeReport {
	if n := len(r.GetClusters()); n > report.MaxClusters {
		r.Clusters = r.Clusters[:report.MaxClusters]
	}
	for _, c := range r.GetClusters() {
		if proto.Size(r) <= report.MaxBytes {
			return r
		}
		c.LastError, c.Remedy = "", ""
	}
	return r
}
