package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
		if err := a.Report(says(name, 1)); err != nil {
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
	if a.bytes != 0 {
		t.Errorf("%d bytes of nothing", a.bytes)
	}
}

// TestStrangersAreBounded: nodes that nobody exports cannot fill the table, and
// exported ones still report.
func TestStrangersAreBounded(t *testing.T) {
	a := newAgents("east", time.Now)
	a.follow([]export.Record{node("n1", true)})
	for i := range maxStrangers {
		if err := a.Report(says(fmt.Sprintf("guest-%d", i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Report(says("one-more", 1)); !errors.Is(err, errTooMany) {
		t.Errorf("one more: %v", err)
	}
	if err := errors.Join(a.Report(says("n1", 1)), a.Report(says("guest-7", 2))); err != nil {
		t.Error(err)
	}
	a.bytes = maxReportBytes
	if err := a.Report(says("n1", 1, func(r *report.NodeReport) { r.Fault = strings.Repeat("x", 200) })); !errors.Is(err, errTooMany) {
		t.Errorf("more bytes: %v", err)
	}
	if err := a.Report(&report.NodeReport{Node: "../n1"}); err == nil {
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
		if err := a.Report(r); err != nil {
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
			if err := a.Report(r); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		select {
		case behind := <-done:
			t.Fatalf("done while n2 is behind: %v", behind)
		default:
		}
		if err := a.Report(says("n2", 10)); err != nil {
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

func TestAgentsAreCounted(t *testing.T) {
	a := newAgents("east", time.Now)
	a.follow([]export.Record{node("n1", true), node("n2", true), node("n3", true)})
	stale := func(r *report.NodeReport) { r.Clusters[0].State = "stale" }
	if err := errors.Join(a.Report(says("n1", 1)), a.Report(says("n2", 1, stale))); err != nil {
		t.Fatal(err)
	}
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
	want := map[string]float64{"clustermesh_agents missing": 1, "clustermesh_agents reporting": 2, "clustermesh_agents silent": 0, "clustermesh_agents_behind east": 1}
	if !maps.Equal(got, want) {
		t.Errorf("metrics %v, want %v", got, want)
	}
}
