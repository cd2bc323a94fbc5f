package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/apiserver/api"
	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/kvstore/report"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

func node(name string, there bool) export.Record {
	r := export.Record{Kind: schema.KindNode, Key: schema.NodeKey("east", name)}
	if there {
		r.Value = []byte("{}")
	}
	return r
}

// states lists all nodes with their states.
func states(a *agents) string {
	var all []string
	for _, n := range a.status() {
		all = append(all, n.GetName()+" "+n.GetState())
	}
	return strings.Join(all, ", ")
}

// says is a report of a node that has acknowledged a stamp of east.
func says(name string, stamp int64, change ...func(*report.NodeReport)) *report.NodeReport {
	r := &report.NodeReport{Node: name, Clusters: []*report.ClusterReport{{Name: "east", State: "synced", Acknowledged: &report.Marker{Stamp: stamp, Incarnation: 1}}}}
	for _, c := range change {
		c(r)
	}
	return r
}

// TestNodesAreMissingReportingSilent: exported nodes are always listed, others
// until a while after they fell silent.
func TestNodesAreMissingReportingSilent(t *testing.T) {
	now := time.Now()
	a := newAgents("east", func() time.Time { return now })
	a.follow([]export.Record{node("n1", true), node("n2", true), {Kind: schema.KindService, Key: "x", Value: []byte("{}")}})
	expect := func(want string) {
		t.Helper()
		if got := states(a); got != want {
			t.Errorf("after %v: %s, want %s", now, got, want)
		}
	}
	expect("n1 missing, n2 missing")
	for _, name := range []string{"n1", "guest"} {
		if err := a.Report(says(name, 1), false); err != nil {
			t.Fatal(err)
		}
	}
	expect("guest reporting, n1 reporting, n2 missing")
	now = now.Add(silentAfter + time.Second)
	expect("guest silent, n1 silent, n2 missing")
	a.follow([]export.Record{node("n2", false)})
	now = now.Add(forgottenAfter)
	expect("n1 silent")
	a.follow([]export.Record{node("n1", false)})
	expect("")
	if a.bytes != 0 || a.strangers != 0 || a.strange != 0 {
		t.Errorf("%d bytes of nothing, %d of %d strangers", a.bytes, a.strange, a.strangers)
	}
}

// TestStrangersAreBounded: nodes that nobody exports cannot fill the table, and
// exported ones still report.
func TestStrangersAreBounded(t *testing.T) {
	a := newAgents("east", time.Now)
	a.follow([]export.Record{node("n1", true)})
	for i := range maxStrangers {
		if err := a.Report(says(fmt.Sprintf("guest-%d", i), 1), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Report(says("one-more", 1), false); !errors.Is(err, errTooMany) {
		t.Errorf("one more: %v", err)
	}
	if err := errors.Join(a.Report(says("n1", 1), false), a.Report(says("guest-7", 2), false)); err != nil {
		t.Error(err)
	}
	a.bytes += maxReportBytes // as if of exported nodes
	if err := a.Report(says("n1", 1, func(r *report.NodeReport) { r.Fault = strings.Repeat("x", 200) }), false); !errors.Is(err, errTooMany) {
		t.Errorf("more bytes: %v", err)
	}
	if err := a.Report(&report.NodeReport{Node: "../n1"}, false); err == nil {
		t.Error("a bad name is taken")
	}
}

// TestWhatNodesLack: every reason for which a node is not done.
func TestWhatNodesLack(t *testing.T) {
	now := time.Now()
	a := newAgents("east", func() time.Time { return now })
	targets := []target{{"east", schema.Stamp{Micros: 10, Incarnation: 1}}}
	if asked, behind := a.behind(targets, nil); asked != 0 || len(behind) != 1 {
		t.Errorf("without any node: %d asked, %v", asked, behind)
	}
	a.follow([]export.Record{node("n0", true)})
	for _, r := range []*report.NodeReport{
		says("n1", 10), says("n2", 9),
		says("n3", 11, func(r *report.NodeReport) { r.FailedServices = 2 }),
		says("n4", 11, func(r *report.NodeReport) { r.Fault = "pins are gone" }),
		says("n5", 11, func(r *report.NodeReport) { r.Clusters = nil }),
		says("n6", 0, func(r *report.NodeReport) {
			r.Clusters[0] = &report.ClusterReport{Name: "east", State: "stale", LastError: "dial: refused", Remedy: "open the port"}
		}),
		says("n7", 99, func(r *report.NodeReport) { r.Clusters[0].Acknowledged.Incarnation = 2 }),
		says("n8", 99, func(r *report.NodeReport) {
			r.Clusters[0].Acknowledged.Incarnation, r.Clusters[0].Acknowledged.Begun = 2, 11
		}),
	} {
		if err := a.Report(r, false); err != nil {
			t.Fatal(err)
		}
	}
	asked, behind := a.behind(targets, nil)
	got := map[string]string{}
	for _, b := range behind {
		got[b.GetNode()] = b.GetCluster() + ": " + b.GetReason()
	}
	want := map[string]string{
		"n0": "no agent has reported", "n2": "east: synced: its changes are not all", "n3": "2 services do not fit", "n4": "pins are gone",
		"n5": "not configured", "n6": "east: stale: dial: refused; open the port", "n7": "east: synced",
	}
	for name, reason := range want {
		if !strings.Contains(got[name], reason) {
			t.Errorf("%s: %q, want %q", name, got[name], reason)
		}
	}
	if asked != 9 || len(got) != len(want) {
		t.Errorf("%d asked, behind %v", asked, got)
	}
	if _, behind = a.behind(targets, []string{"n1", "n8"}); len(behind) != 0 {
		t.Errorf("two nodes that are done: %v", behind)
	}
	now = now.Add(silentAfter + time.Second)
	if _, behind = a.behind(targets, []string{"n1"}); len(behind) != 1 || !strings.Contains(behind[0].GetReason(), "silent") {
		t.Errorf("a silent node: %v", behind)
	}
}

// TestAwait: it returns at the report that completes what is asked for, and with
// what is missing at the end of the time.
func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgents("east", time.Now)
		a.follow([]export.Record{node("n1", true), node("n2", true)})
		targets := []target{{"east", schema.Stamp{Micros: 10, Incarnation: 1}}}
		done := make(chan []*api.Behind, 1)
		go func() {
			_, behind := a.await(t.Context(), targets, nil)
			done <- behind
		}()
		for _, r := range []*report.NodeReport{says("n1", 10), says("n2", 9)} {
			if err := a.Report(r, false); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		select {
		case behind := <-done:
			t.Fatalf("done while n2 is behind: %v", behind)
		default:
		}
		if err := a.Report(says("n2", 10), false); err != nil {
			t.Fatal(err)
		}
		if behind := <-done; len(behind) != 0 {
			t.Errorf("behind: %v", behind)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if _, behind := a.await(ctx, []target{{"east", schema.Stamp{Micros: 11, Incarnation: 1}}}, []string{"n2"}); len(behind) != 1 || time.Since(began) != time.Minute {
			t.Errorf("behind %v after %v", behind, time.Since(began))
		}
	})
}

// TestDisputedNodes: while two connections speak for a node it is not known which
// of them is its agent, and nothing waits for what either says.
func TestDisputedNodes(t *testing.T) {
	now := time.Now()
	a := newAgents("east", func() time.Time { return now })
	targets := []target{{"east", schema.Stamp{Micros: 10, Incarnation: 1}}}
	say := func(disputed bool) {
		t.Helper()
		if err := a.Report(says("n1", 10), disputed); err != nil {
			t.Fatal(err)
		}
	}
	say(true)
	say(false)
	now = now.Add(silentAfter)
	say(false)
	if got := states(a); got != "n1 disputed" || gauges(t, a)["clustermesh_agents disputed"] != 1 {
		t.Errorf("%s, %v", got, gauges(t, a))
	}
	if _, behind := a.behind(targets, nil); len(behind) != 1 || !strings.Contains(behind[0].GetReason(), "two connections report for it") {
		t.Errorf("behind: %v", behind)
	}
	now = now.Add(time.Second)
	if _, behind := a.behind(targets, nil); len(behind) != 0 || states(a) != "n1 reporting" {
		t.Errorf("afterwards: %s, %v", states(a), behind)
	}
	now = now.Add(silentAfter)
	if got := states(a); got != "n1 silent" {
		t.Errorf("later: %s", got)
	}
}

// gauges are what is scraped, by name and label.
func gauges(t *testing.T, a *agents) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(a)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[f.GetName()+" "+m.Label[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return got
}

func TestAgentsAreCounted(t *testing.T) {
	a := newAgents("east", time.Now)
	a.follow([]export.Record{node("n1", true), node("n2", true), node("n3", true)})
	stale := func(r *report.NodeReport) { r.Clusters[0].State = "stale" }
	if err := errors.Join(a.Report(says("n1", 1), false), a.Report(says("n2", 1, stale), false)); err != nil {
		t.Fatal(err)
	}
	got := gauges(t, a)
	want := map[string]float64{"clustermesh_agents missing": 1, "clustermesh_agents reporting": 2, "clustermesh_agents silent": 0, "clustermesh_agents disputed": 0, "clustermesh_agents_behind east": 1}
	if !maps.Equal(got, want) {
		t.Errorf("metrics %v, want %v", got, want)
	}
}

// TestStrangersTakeLittle: whoever holds an agent's certificate reports for as
// many nodes and clusters as he can make up. What is kept of that is small, it
// makes no labels, and exported nodes report all the same.
func TestStrangersTakeLittle(t *testing.T) {
	if testing.Short() {
		t.Skip("millions of reports of clusters")
	}
	a := newAgents("east", time.Now)
	a.follow([]export.Record{node("n1", true), node("n2", true)})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(a.Report(says("n1", 1, func(r *report.NodeReport) { r.Clusters[0].Name, r.Clusters[0].State = "west", "stale" }), false))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var asked, refused int
	for i := range maxStrangers {
		r := &report.NodeReport{Node: fmt.Sprintf("guest-%d", i)}
		for j := range report.MaxClusters {
			r.Clusters = append(r.Clusters, &report.ClusterReport{Name: fmt.Sprintf("x%d-%d", i, j), State: "stale"})
		}
		asked++
		if err := a.Report(r, false); errors.Is(err, errTooMany) {
			refused++
		} else {
			must(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int(after.HeapAlloc) - int(before.HeapAlloc); grown > 2*maxStrangerBytes {
		t.Errorf("%d MiB after %d reports, %d of them refused", grown>>20, asked, refused)
	}
	if series := len(gauges(t, a)); series > 10 {
		t.Errorf("%d series", series)
	}
	must(a.Report(says("n2", 1), false))
	if got := a.nodes["n2"].state(time.Now()); got != nodeReporting {
		t.Errorf("n2 is %s", got)
	}
	runtime.KeepAlive(a)
}

// TestStrangersGiveWayToNodes: reports of exported nodes take the place of those
// of others, the oldest first.
func TestStrangersGiveWayToNodes(t *testing.T) {
	now := time.Now()
	a := newAgents("east", func() time.Time { now = now.Add(time.Millisecond); return now })
	a.follow([]export.Record{node("n1", true), node("n2", true)})
	for _, r := range []*report.NodeReport{says("n1", 1), says("old", 1), says("new", 1)} {
		if err := a.Report(r, false); err != nil {
			t.Fatal(err)
		}
	}
	a.bytes = maxReportBytes // as if n1 had said a lot
	if err := a.Report(says("new", 1, func(r *report.NodeReport) { r.Fault = "more" }), false); !errors.Is(err, errTooMany) {
		t.Errorf("a stranger: %v", err)
	}
	if err := a.Report(says("n2", 1), false); err != nil {
		t.Errorf("an exported node: %v", err)
	}
	if got := states(a); got != "n1 reporting, n2 reporting, new reporting" {
		t.Errorf("left are %s", got)
	}
}

// TestLabelsOfClustersAreBounded: they are those that most exported nodes speak
// of; without exported nodes, those that most speak of.
func TestLabelsOfClustersAreBounded(t *testing.T) {
	for _, exported := range []bool{true, false} {
		a := newAgents("east", time.Now)
		if exported {
			a.follow([]export.Record{node("n1", true), node("n2", true), node("n3", true)})
		}
		for i, name := range []string{"n1", "n2", "n3"} {
			r := &report.NodeReport{Node: name, Clusters: []*report.ClusterReport{{Name: "west", State: "stale"}}}
			for j := range report.MaxClusters - 1 {
				r.Clusters = append(r.Clusters, &report.ClusterReport{Name: fmt.Sprintf("a%d-%d", i, j), State: "stale"})
			}
			if err := a.Report(r, false); err != nil {
				t.Fatal(err)
			}
		}
		got := gauges(t, a)
		if len(got) != report.MaxClusters+2+4 || got["clustermesh_agents_behind west"] != 3 || got["clustermesh_agents_behind east"] != 0 || got["clustermesh_agents_behind other"] != 2*(report.MaxClusters-1) {
			t.Errorf("exported %v: %d series, west %v, others %v", exported, len(got), got["clustermesh_agents_behind west"], got["clustermesh_agents_behind other"])
		}
	}
}
