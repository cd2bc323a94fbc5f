package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/api"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/clustermesh/clustermesh/kvstore/report"
)

// clustersView is what apiservers say of their clusters.
type clustersView []clusterStatusView

type clusterStatusView struct {
	Cluster      string           `json:"cluster"`
	ClusterID    uint32           `json:"clusterID"`
	Version      string           `json:"version"`
	Ready        bool             `json:"ready"`
	Missing      []string         `json:"missing"`
	Problems     []string         `json:"problems"`
	Stamp        string           `json:"stamp"`
	StampSeconds float64          `json:"stampSeconds"`
	Services     uint32           `json:"services"`
	Nodes        []nodeStatusView `json:"nodes"`
}

type nodeStatusView struct {
	Name           string         `json:"name"`
	State          string         `json:"state"`
	Exported       bool           `json:"exported"`
	ReportSeconds  float64        `json:"reportSeconds"`
	Version        string         `json:"version"`
	Ready          bool           `json:"ready"`
	Frontends      uint32         `json:"frontends"`
	FailedServices uint32         `json:"failedServices"`
	Fault          string         `json:"fault"`
	Problems       uint32         `json:"problems"`
	Clusters       []reportedView `json:"clusters"`
}

type reportedView struct {
	Name          string  `json:"name"`
	ID            uint32  `json:"id"`
	Local         bool    `json:"local"`
	State         string  `json:"state"`
	Acknowledged  string  `json:"acknowledged"`
	AgeSeconds    float64 `json:"ageSeconds"`
	LagP50Seconds float64 `json:"lagP50Seconds"`
	LagP99Seconds float64 `json:"lagP99Seconds"`
	LagSamples    uint32  `json:"lagSamples"`
	Services      uint32  `json:"services"`
	Backends      uint32  `json:"backends"`
	Held          uint32  `json:"held"`
	Failures      uint64  `json:"failures"`
	LastError     string  `json:"lastError"`
	Remedy        string  `json:"remedy"`
	Dead          bool    `json:"dead"`
	provisionalView
}

func newClusterStatus(r *api.StatusResponse, shows, concerns func(string) bool) clusterStatusView {
	v := clusterStatusView{
		Cluster: r.GetCluster(), ClusterID: r.GetClusterId(), Version: r.GetVersion(), Ready: r.GetReady(),
		Missing: append([]string{}, r.GetMissing()...), Problems: append([]string{}, r.GetProblems()...),
		Stamp: r.GetStamp(), StampSeconds: r.GetStampSeconds(), Services: r.GetServices(), Nodes: []nodeStatusView{},
	}
	for _, n := range r.GetNodes() {
		if shows(n.GetName()) {
			v.Nodes = append(v.Nodes, newNodeStatus(n, concerns))
		}
	}
	return v
}

func newNodeStatus(n *api.NodeStatus, concerns func(string) bool) nodeStatusView {
	r := n.GetReport()
	v := nodeStatusView{
		Name: n.GetName(), State: n.GetState(), Exported: n.GetExported(), ReportSeconds: n.GetReportSeconds(),
		Version: r.GetVersion(), Ready: r.GetReady(), Frontends: r.GetFrontends(), FailedServices: r.GetFailedServices(),
		Fault: r.GetFault(), Problems: r.GetProblems(), Clusters: []reportedView{},
	}
	for _, c := range r.GetClusters() {
		if concerns(c.GetName()) {
			v.Clusters = append(v.Clusters, newReported(c, n.GetReportSeconds()))
		}
	}
	return v
}

// newReported is a cluster as a node reported it some seconds ago.
func newReported(c *report.ClusterReport, ago float64) reportedView {
	v := reportedView{
		Name: c.GetName(), ID: c.GetId(), Local: c.GetLocal(), State: c.GetState(),
		LagP50Seconds: c.GetLagP50Seconds(), LagP99Seconds: c.GetLagP99Seconds(), LagSamples: c.GetLagSamples(),
		Services: c.GetServices(), Backends: c.GetBackends(), Held: c.GetHeld(), Failures: c.GetFailures(),
		LastError: c.GetLastError(), Remedy: c.GetRemedy(), Dead: c.GetDead(),
		provisionalView: provisionalView{c.GetProvisionalServices(), c.GetProvisionalBackends()},
	}
	if m := c.GetAcknowledged(); m != nil {
		v.Acknowledged, v.AgeSeconds = m.Schema().Stamp.String(), c.GetAgeSeconds()+ago
	}
	return v
}

func (v clustersView) table(w io.Writer) {
	for i, c := range v {
		if i > 0 {
			fmt.Fprintln(w)
		}
		c.table(w)
	}
}

func (v clusterStatusView) table(w io.Writer) {
	ready := "ready"
	if !v.Ready {
		ready = "not ready: " + strings.Join(v.Missing, ", ")
	}
	fmt.Fprintf(w, "cluster %s (id %d): %s; %s, %s\n", v.Cluster, v.ClusterID, ready, cli.Count(v.Services, "service", ""), v.nodesLine())
	if v.Stamp != "" {
		fmt.Fprintf(w, "stamp %s, %s ago\n", v.Stamp, seconds(v.StampSeconds))
	}
	fmt.Fprintln(w, "\nNODE\tCLUSTER\tSTATE\tAGE\tLAG\tSERVICES\tBACKENDS\tPROVISIONAL\tFAILURES")
	for _, n := range v.Nodes {
		n.rows(w)
	}
	for _, line := range v.faults() {
		fmt.Fprintf(w, "! %s\n", line)
	}
}

// nodesLine counts nodes by state.
func (v clusterStatusView) nodesLine() string {
	states := map[string]int{}
	for _, n := range v.Nodes {
		states[n.State]++
	}
	line := fmt.Sprintf("%s: %d reporting", cli.Count(len(v.Nodes), "node", ""), states["reporting"])
	for _, state := range []string{"silent", "missing", "disputed"} {
		if states[state] > 0 {
			line += fmt.Sprintf(", %d %s", states[state], state)
		}
	}
	return line
}

func (n nodeStatusView) rows(w io.Writer) {
	if n.State != "reporting" {
		fmt.Fprintf(w, "%s\t-\t%s\t-\t-\t-\t-\t-\t-\n", n.Name, n.State)
		return
	}
	for _, c := range n.Clusters {
		name := c.Name
		if c.Local {
			name += " (own)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\n", n.Name, name, c.State, age(c.Acknowledged, c.AgeSeconds),
			lag(c.LagSamples, c.LagP50Seconds, c.LagP99Seconds), c.Services, c.Backends, c.ProvisionalBackends, c.Failures)
	}
}

// faults lists everything that an operator should look at.
func (v clusterStatusView) faults() (lines []string) {
	lines = append(lines, v.Problems...)
	for _, n := range v.Nodes {
		note := func(format string, args ...any) { lines = append(lines, n.Name+": "+fmt.Sprintf(format, args...)) }
		switch n.State {
		case "silent":
			note("silent for %s; check that clustermesh-agent runs there and reaches this apiserver", seconds(n.ReportSeconds))
			continue
		case "missing":
			note("no agent has reported; check that clustermesh-agent runs there and reaches this apiserver")
			continue
		case "disputed":
			note("two connections report for it; see the apiserver's log for their addresses, and whether two agents run there or one's certificate was stolen")
		}
		if n.Fault != "" {
			note("data path: %s", n.Fault)
		}
		if n.FailedServices > 0 {
			note("%s not fit into the maps; raise --max-frontends and --max-records", cli.Count(n.FailedServices, "service does", "services do"))
		}
		for _, c := range n.Clusters {
			if c.LastError != "" && c.State != "synced" {
				note("%s: %s", c.Name, withRemedy(c.LastError, c.Remedy))
			}
			for _, line := range c.provisionalView.lines(c.Name) {
				note("%s", line)
			}
		}
		if n.Problems > 0 {
			note("%s; see clustermesh status on the node", cli.Count(n.Problems, "problem", ""))
		}
	}
	return lines
}

// withRemedy adds what to do, unless the error says so itself.
func withRemedy(text, remedy string) string {
	if remedy == "" || strings.HasSuffix(text, remedy) {
		return text
	}
	return text + "; " + remedy
}

// seconds is a duration as people read it.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Second && d > -time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// age is the time since an acknowledged stamp, "-" before the first.
func age(acknowledged string, s float64) string {
	if acknowledged == "" {
		return "-"
	}
	return seconds(s)
}

// lag is the median and the 99th percentile of samples, "-" without.
func lag(samples uint32, p50, p99 float64) string {
	if samples == 0 {
		return "-"
	}
	return seconds(p50) + "/" + seconds(p99)
}

// waitedView is the outcome of --wait.
type waitedView struct {
	Done   bool          `json:"done"`
	Nodes  uint32        `json:"nodes"`
	Stamps []waitedStamp `json:"stamps"`
	Behind []behindView  `json:"behind"`
}

type waitedStamp struct {
	Cluster string `json:"cluster"`
	Stamp   string `json:"stamp"`
}

type behindView struct {
	In      string `json:"in"` // the cluster that the node is of, "" for this node
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	Reason  string `json:"reason"`
}

func newWaited(done bool) waitedView {
	return waitedView{Done: done, Stamps: []waitedStamp{}, Behind: []behindView{}}
}

// add takes the answer of a cluster, nil if none of its nodes was asked.
func (v *waitedView) add(cluster string, r *api.WaitResponse) {
	if r == nil {
		return
	}
	v.Done = v.Done && r.GetDone()
	v.Nodes += r.GetNodes()
	for _, b := range r.GetBehind() {
		v.Behind = append(v.Behind, behindView{In: cluster, Node: b.GetNode(), Cluster: b.GetCluster(), Reason: b.GetReason()})
	}
}

func (v waitedView) table(w io.Writer) {
	fmt.Fprintf(w, "programmed on %s\n", cli.Count(v.Nodes, "node", ""))
	for _, s := range v.Stamps {
		fmt.Fprintf(w, "%s=%s\n", s.Cluster, s.Stamp)
	}
	for _, line := range v.lines() {
		fmt.Fprintf(w, "! %s\n", line)
	}
}

// lines say what is missing.
func (v waitedView) lines() (lines []string) {
	for _, b := range v.Behind {
		where := cmp.Or(b.Node, b.In, "this node")
		if b.Cluster != "" {
			where += ": " + b.Cluster
		}
		lines = append(lines, where+": "+b.Reason)
	}
	return lines
}
