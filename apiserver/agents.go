package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/clustermesh/clustermesh/apiserver/api"
	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/kvstore/report"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

const (
	// silentAfter is how long a node may say nothing before it counts as silent;
	// agents report every 5 s.
	silentAfter = 12 * time.Second
	// forgottenAfter is how long a silent node is listed that the cluster does not
	// export.
	forgottenAfter = time.Minute
	// maxStrangers is how many nodes that the cluster does not export may report,
	// maxStrangerBytes what their reports together may take, and maxReportBytes
	// what those of all nodes may.
	maxStrangers     = 5000
	maxStrangerBytes = 32 << 20
	maxReportBytes   = 256 << 20
	// reportBytes and clusterBytes are what a report and a cluster in it take in
	// memory beside their content: on the wire a cluster can be 14 bytes.
	reportBytes  = 500
	clusterBytes = 300
	// otherClusters is the label of the clusters beyond those that have their own.
	otherClusters = "other"
)

// The states of a node, as status spells them.
const (
	nodeReporting = "reporting"
	nodeSilent    = "silent"
	nodeMissing   = "missing"
	nodeDisputed  = "disputed"
)

// agents is what is known of the cluster's nodes: which there are, and what
// their agents said last. It is in memory only and safe for concurrent use.
type agents struct {
	now    func() time.Time
	own    string // this cluster
	prefix string // of the keys of exported nodes
	count  *prometheus.Desc
	mark   *prometheus.Desc

	mu        sync.Mutex
	nodes     map[string]*agentNode
	bytes     int           // of all reports
	strangers int           // nodes that are not exported
	strange   int           // bytes of their reports
	changed   chan struct{} // closed at the next report or change of nodes
}

// agentNode is one node. A node that is neither exported nor reports is not kept.
type agentNode struct {
	exported bool
	report   *report.NodeReport // nil before the first
	at       time.Time
	size     int       // in memory, about
	disputed time.Time // when one of two connections that speak for it last did; zero if never
}

func newAgents(cluster string, now func() time.Time) *agents {
	return &agents{
		now: now, own: cluster, prefix: schema.WatchPrefix(schema.KindNode, cluster, false), nodes: map[string]*agentNode{}, changed: make(chan struct{}),
		count: prometheus.NewDesc("clustermesh_agents", "Nodes of the cluster by what their agents do: reporting, silent (reported before), missing (exported, never reported), disputed (two connections report for it).", []string{"state"}, nil),
		mark:  prometheus.NewDesc("clustermesh_agents_behind", "Reporting nodes that see a cluster in a state other than synced, by cluster.", []string{"cluster"}, nil),
	}
}

// follow takes in which nodes the cluster exports.
func (a *agents) follow(records []export.Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := false
	for _, r := range records {
		name, ok := strings.CutPrefix(r.Key, a.prefix)
		if r.Kind != schema.KindNode || !ok {
			continue
		}
		changed = true
		n := a.nodes[name]
		switch {
		case r.Value != nil && n == nil:
			a.change(name, agentNode{exported: true})
		case n != nil:
			now := *n
			now.exported = r.Value != nil
			a.change(name, now)
			a.drop(name, !now.exported && now.report == nil)
		}
	}
	if changed {
		a.wake()
	}
}

func (a *agents) wake() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// change replaces what is known of a node, and drop forgets it.
func (a *agents) change(name string, n agentNode) {
	if was := a.nodes[name]; was != nil {
		a.account(was, -1)
	}
	a.nodes[name] = &n
	a.account(&n, 1)
}

func (a *agents) drop(name string, when bool) {
	if n := a.nodes[name]; when && n != nil {
		a.account(n, -1)
		delete(a.nodes, name)
	}
}

func (a *agents) account(n *agentNode, sign int) {
	a.bytes += sign * n.size
	if !n.exported {
		a.strangers += sign
		a.strange += sign * n.size
	}
}

// errTooMany refuses reports beyond what is kept.
var errTooMany = errors.New("too many nodes report that this cluster does not export, or reports are too large; check --node-name of the agents")

// Report takes an agent's report of its node. What it refuses changes nothing
// but that nodes which are not exported make room for those which are. disputed
// says that another connection reports for the node too.
func (a *agents) Report(r *report.NodeReport, disputed bool) error {
	if err := report.Check(r); err != nil {
		return fmt.Errorf("report refused: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := agentNode{report: r, at: a.now(), size: proto.Size(r) + reportBytes + clusterBytes*len(r.GetClusters())}
	was := agentNode{}
	if n := a.nodes[r.GetNode()]; n != nil {
		was = *n
	} else {
		a.sweep()
	}
	next.exported, next.disputed = was.exported, was.disputed
	if disputed {
		next.disputed = next.at
	}
	if !a.room(was, next) {
		return errTooMany
	}
	a.change(r.GetNode(), next)
	a.wake()
	return nil
}

// room reports whether a node's state can be replaced by a larger one, and makes
// room for that of an exported node.
func (a *agents) room(was, next agentNode) bool {
	more := next.size - was.size
	if next.exported {
		a.evict(a.bytes + more - maxReportBytes)
	} else if was.report == nil && a.strangers >= maxStrangers || a.strange+more > maxStrangerBytes {
		return false
	}
	return a.bytes+more <= maxReportBytes
}

// evict forgets nodes that are not exported, the longest silent first, until so
// many bytes are free.
func (a *agents) evict(bytes int) {
	if bytes <= 0 {
		return
	}
	var names []string
	for name, n := range a.nodes {
		if !n.exported {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(x, y string) int { return a.nodes[x].at.Compare(a.nodes[y].at) })
	for _, name := range names {
		if bytes > 0 {
			bytes -= a.nodes[name].size
			a.drop(name, true)
		}
	}
}

// sweep forgets nodes that are gone.
func (a *agents) sweep() {
	now := a.now()
	for name, n := range a.nodes {
		a.drop(name, !n.exported && now.Sub(n.at) > forgottenAfter)
	}
}

func (n *agentNode) state(now time.Time) string {
	switch {
	case n == nil || n.report == nil:
		return nodeMissing
	case now.Sub(n.at) > silentAfter:
		return nodeSilent
	case now.Sub(n.disputed) <= silentAfter:
		return nodeDisputed
	}
	return nodeReporting
}

// status lists all nodes by name.
func (a *agents) status() []*api.NodeStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sweep()
	now := a.now()
	var out []*api.NodeStatus
	for _, name := range slices.Sorted(maps.Keys(a.nodes)) {
		n := a.nodes[name]
		s := &api.NodeStatus{Name: name, State: n.state(now), Report: n.report, Exported: n.exported}
		if n.report != nil {
			s.ReportSeconds = now.Sub(n.at).Seconds()
		}
		out = append(out, s)
	}
	return out
}

// target is a stamp that nodes are to reach.
type target struct {
	cluster string
	stamp   schema.Stamp
}

// await returns when no node is behind, or with what is when ctx ends. nodes are
// those that are asked for; none means all there are.
func (a *agents) await(ctx context.Context, targets []target, nodes []string) (asked int, behind []*api.Behind) {
	look := time.NewTicker(time.Second) // silence comes without an event
	defer look.Stop()
	for {
		a.mu.Lock()
		asked, behind = a.behind(targets, nodes)
		changed := a.changed
		a.mu.Unlock()
		if len(behind) == 0 {
			return asked, nil
		}
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			return asked, behind
		}
	}
}

// behind lists what nodes lack of the targets.
func (a *agents) behind(targets []target, nodes []string) (asked int, out []*api.Behind) {
	if len(nodes) == 0 {
		nodes = slices.Sorted(maps.Keys(a.nodes))
	}
	now := a.now()
	for _, name := range nodes {
		n := a.nodes[name]
		for _, b := range n.lacks(targets, now) {
			b.Node = name
			out = append(out, b)
		}
	}
	if len(nodes) == 0 {
		out = append(out, &api.Behind{Reason: "the cluster exports no node and no agent has reported; check that clustermesh-agent runs and reaches this apiserver"})
	}
	return len(nodes), out
}

// lacks says what keeps a node from having the targets.
func (n *agentNode) lacks(targets []target, now time.Time) (out []*api.Behind) {
	lack := func(cluster, format string, args ...any) {
		out = append(out, &api.Behind{Cluster: cluster, Reason: fmt.Sprintf(format, args...)})
	}
	switch n.state(now) {
	case nodeMissing:
		lack("", "no agent has reported; check that clustermesh-agent runs there and reaches this apiserver, or leave the node out by --node")
		return out
	case nodeSilent:
		lack("", "silent for %s; check that clustermesh-agent runs there and reaches this apiserver", now.Sub(n.at).Round(time.Second))
		return out
	}
	if n.state(now) == nodeDisputed {
		lack("", "two connections report for it, so either could be wrong; see the apiserver's log for their addresses, and whether two agents run there or one's certificate was stolen")
		return out
	}
	if fault := n.report.GetFault(); fault != "" {
		lack("", "data path: %s", fault)
	}
	if failed := n.report.GetFailedServices(); failed > 0 {
		lack("", "%d %s not fit into the maps; see clustermesh status on the node", failed, english.PluralWord(int(failed), "service does", "services do"))
	}
	for _, t := range targets {
		if reason := lacksTarget(n.report, t); reason != "" {
			lack(t.cluster, "%s", reason)
		}
	}
	return out
}

// lacksTarget says why a node that reports does not have a target, or "".
func lacksTarget(r *report.NodeReport, t target) string {
	i := slices.IndexFunc(r.GetClusters(), func(c *report.ClusterReport) bool { return c.GetName() == t.cluster })
	if i < 0 {
		return "the cluster is not configured on the node; add its file to --clusters"
	}
	c := r.GetClusters()[i]
	if c.GetAcknowledged().Schema().Covers(t.stamp) {
		return ""
	}
	why := cmp.Or(c.GetLastError(), "its changes are not all in the maps yet")
	if c.GetRemedy() != "" {
		why += "; " + c.GetRemedy()
	}
	return c.GetState() + ": " + why
}

// Describe sends the descriptions of the metrics.
func (a *agents) Describe(out chan<- *prometheus.Desc) {
	out <- a.count
	out <- a.mark
}

// Collect sends the present values.
func (a *agents) Collect(out chan<- prometheus.Metric) {
	nodes := a.status()
	states := map[string]int{nodeReporting: 0, nodeSilent: 0, nodeMissing: 0, nodeDisputed: 0}
	for _, n := range nodes {
		states[n.GetState()]++
	}
	for state, count := range states {
		gauge(out, a.count, count, state)
	}
	for cluster, count := range a.lagging(nodes) {
		gauge(out, a.mark, count, cluster)
	}
}

// lagging counts, by cluster, the reporting nodes that see it in a state other
// than synced. Clusters without a label of their own are counted together.
func (a *agents) lagging(nodes []*api.NodeStatus) map[string]int {
	behind := map[string]int{a.own: 0}
	for _, name := range labels(nodes) {
		behind[name] = 0
	}
	for _, n := range nodes {
		for _, c := range n.GetReport().GetClusters() {
			if n.GetState() != nodeReporting || c.GetState() == "synced" {
				continue
			}
			name := c.GetName()
			if _, known := behind[name]; !known {
				name = otherClusters
			}
			behind[name]++
		}
	}
	return behind
}

// labels are the clusters that have a label of their own. Whoever holds an agent's
// certificate can report for nodes that he makes up, of clusters that he makes up:
// names come from exported nodes as long as there are any, and no more of them
// than a mesh can have, those first that most nodes speak of.
func labels(nodes []*api.NodeStatus) []string {
	speakers := slices.Clone(nodes)
	if slices.ContainsFunc(nodes, (*api.NodeStatus).GetExported) {
		speakers = slices.DeleteFunc(speakers, func(n *api.NodeStatus) bool { return !n.GetExported() })
	}
	spoken := map[string]int{}
	for _, n := range speakers {
		for _, c := range n.GetReport().GetClusters() {
			spoken[c.GetName()]++
		}
	}
	names := slices.SortedFunc(maps.Keys(spoken), func(x, y string) int {
		return cmp.Or(cmp.Compare(spoken[y], spoken[x]), cmp.Compare(x, y))
	})
	return names[:min(len(names), report.MaxClusters)]
}
