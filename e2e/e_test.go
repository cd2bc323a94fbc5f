package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/kernel"
	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
)

// drainLimit is how long the removal of a cluster's file may take to show, on a busy
// machine; a second of it is waited on purpose.
const drainLimit = giveUp

// checkDrain removes the file of the other cluster on one node of each
// cluster: there, and only there, its backends go.
func checkDrain(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 2)
	tr := w.begin(t, ips)
	for _, c := range w.clusters {
		n, far := c.nodes[0], w.other(c)
		others := w.tables(t)
		delete(others, n.name)
		begin := time.Now()
		n.agent.removeCluster(t, far.name)
		alone := oracle.Expect(c.name, n.name, []kube.Objects{c.view.Objects()})
		took := awaitTable(t, n, alone)
		t.Logf("%s left %s after %v", far.name, n.name, took.Sub(begin))
		if took.Sub(begin) > drainLimit {
			t.Errorf("draining took %v, %v is the limit", took.Sub(begin), drainLimit)
		}
		requireShares(t, n, loads(ips[c])[0], pods[c])
		for name, table := range w.tables(t) {
			if was, ok := others[name]; ok && !table.Equal(was) {
				t.Errorf("the maps of %s changed:\n%s", name, table.Diff(was))
			}
		}
		n.agent.setCluster(t, far.name, w.clusterFile(c, far))
		w.settle(t, now)
		tr.check(t, "drain of "+far.name)
	}
	tr.end(t)
}

func (w *world) tables(t *testing.T) map[string]oracle.Table {
	t.Helper()
	all := map[string]oracle.Table{}
	for _, n := range w.nodes() {
		table, err := n.maps.Table()
		must(t, err)
		all[n.name] = table
	}
	return all
}

// awaitTable waits until a node's maps are want and returns when they were.
func awaitTable(t *testing.T, n *node, want oracle.Table) time.Time {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for {
		has, err := n.maps.Table()
		if err == nil && has.Equal(want) {
			return time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatalf("maps of %s after %v: %v\n%s\n%s", n.name, giveUp, err, has.Diff(want), logTail(n.agent.Process))
		}
		time.Sleep(time.Millisecond)
	}
}

// checkStop: stopping agents and apiservers in order ends each in time with
// exit code 0 and moves nothing.
func checkStop(t *testing.T, w *world) {
	ips, _ := w.rebelBase(t, 2)
	tr := w.begin(t, ips)
	samplers := w.watchSets(t, ips)
	w.requireUntouched(t, func() {
		for _, n := range w.nodes() {
			requireStop(t, n.agent.Process)
		}
		for _, c := range w.clusters {
			requireStop(t, c.export.Process)
		}
		tr.survive(t, "everything stopped")
	})
	for _, c := range w.clusters {
		c.export.up(t)
	}
	for _, n := range w.nodes() {
		n.agent.restart(t)
	}
	w.settle(t, now)
	requireConstant(t, samplers)
	tr.end(t)
}

// requireStop demands that SIGTERM ends a process in time with exit code 0.
func requireStop(t *testing.T, p *lab.Process) {
	t.Helper()
	code, took, err := p.Terminate(stopLimit)
	if err != nil || code != 0 {
		t.Errorf("SIGTERM ended %s with exit code %d after %v: %v\n%s", p.Name, code, took, err, logTail(p))
	}
}

// checkCleanup: the cleanup command of a stopped agent takes every pin,
// program, link and map away, and the node is as it was before the agent.
func checkCleanup(t *testing.T, w *world) {
	ips, _ := w.rebelBase(t, 1)
	n := w.clusters[1].nodes[1]
	if code := n.agent.cleanup(t); code == 0 {
		t.Error("cleanup succeeds while the agent runs")
	}
	w.settle(t, now)
	requireStop(t, n.agent.Process)
	objects, err := kernel.Pinned(n.agent.pins)
	must(t, err)
	if len(objects) < 10 {
		t.Fatalf("only %d objects are pinned: %v", len(objects), objects)
	}
	must(t, n.maps.Close())
	n.maps = nil
	for range 2 { // it is idempotent
		if code := n.agent.cleanup(t); code != 0 {
			t.Fatalf("cleanup ends with exit code %d:\n%s", code, readFile(filepath.Join(w.dir, "log", "cleanup-"+n.name+".log")))
		}
	}
	if _, err := os.Stat(n.agent.pins); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", n.agent.pins, err)
	}
	requireFreed(t, objects)
	for _, l := range loads(ips[n.cluster]) {
		requireNothing(t, n, l)
	}
	n.agent.up(t)
	w.settle(t, now)
	requireWorks(t, n, ips)
}

// requireFreed waits until the kernel has freed objects, which it does a grace
// period after their last reference.
func requireFreed(t *testing.T, objects []kernel.Object) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for {
		left := kernel.Existing(objects)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still in the kernel: %v", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
