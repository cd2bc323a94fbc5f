package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/kernel"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

// cycles is how often a part is put through what could leak.
const cycles = 10

// checkGrowth: clusters that come and go and services that are made and
// deleted leave no file descriptor and no goroutine behind.
func checkGrowth(t *testing.T, w *world) {
	c := w.clusters[1]
	n, far := c.nodes[0], w.clusters[0]
	w.settle(t, now)
	w.awaitSynced(t)
	churn := func() {
		n.agent.removeCluster(t, far.name)
		n.agent.awaitForgotten(t, far.name)
		n.agent.setCluster(t, far.name, w.clusterFile(c, far))
		w.awaitSynced(t)
		_, pods := w.makeGlobal(t, "churn", 1)
		w.undo(t, "churn", pods)
		w.settle(t, both(gone(c, "churn"), gone(far, "churn")))
	}
	churn()
	files, goroutines := openFiles(t, n.agent.Process), readMetric(t, far.export.http, "go_goroutines")
	for range cycles {
		churn()
	}
	requireNoMore(t, "open files of the agent", float64(files), func() float64 { return float64(openFiles(t, n.agent.Process)) })
	requireNoMore(t, "goroutines of the apiserver", goroutines, func() float64 { return readMetric(t, far.export.http, "go_goroutines") })
}

func openFiles(t *testing.T, p *lab.Process) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	must(t, err)
	return len(entries)
}

// requireNoMore waits until a count is back at what it was, give or take less
// than one for each cycle.
func requireNoMore(t *testing.T, what string, before float64, count func() float64) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for {
		after := count()
		if after < before+cycles {
			t.Logf("%s: %v before and %v after %d cycles", what, before, after, cycles)
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s grew from %v to %v in %d cycles", what, before, after, cycles)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// checkNothingLeft ends the product everywhere: no process, pin, eBPF object or
// cgroup of it remains.
func checkNothingLeft(t *testing.T, w *world) {
	var objects []kernel.Object
	for _, n := range w.nodes() {
		requireStop(t, n.agent.Process)
		pinned, err := kernel.Pinned(n.agent.pins)
		must(t, err)
		objects = append(objects, pinned...)
		must(t, n.maps.Close())
		n.maps = nil
		if code := n.agent.cleanup(t); code != 0 {
			t.Errorf("cleanup on %s ends with exit code %d", n.name, code)
		}
		requireEmpty(t, n.agent.bpffs)
	}
	for _, c := range w.clusters {
		requireStop(t, c.export.Process)
	}
	requireFreed(t, objects)
	for _, pid := range running(t, w) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone meanwhile: as wanted
		if strings.Contains(string(text), "clustermesh-a") {
			t.Errorf("process %d still runs: %s", pid, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
}

func running(t *testing.T, w *world) []int {
	t.Helper()
	pids, err := w.lab.Running()
	must(t, err)
	return pids
}

// requireEmpty demands that a bpffs holds nothing but what the kernel itself
// puts there.
func requireEmpty(t *testing.T, bpffs string) {
	t.Helper()
	entries, err := os.ReadDir(bpffs)
	must(t, err)
	for _, e := range entries {
		if e.Name() != "maps.debug" && e.Name() != "progs.debug" {
			t.Errorf("%s is left in %s", e.Name(), bpffs)
		}
	}
}

// checkDemo runs the demo as a user would. It must say that it is done, and
// leave the machine as it was.
func checkDemo(t *testing.T, w *world) {
	before := traces(t)
	base, err := lab.CgroupMount()
	must(t, err)
	tmp := filepath.Join(w.dir, "demo")
	must(t, os.Mkdir(tmp, 0o700))
	var out bytes.Buffer
	demo := exec.Command(binary("clustermesh"), "demo", "--bin-dir", filepath.Dir(binary("clustermesh")))
	demo.Env = append(os.Environ(), "TMPDIR="+tmp)
	demo.Stdout, demo.Stderr = &out, &out
	begin := time.Now()
	if err := demo.Run(); err != nil {
		t.Fatalf("demo: %v\n%s", err, out.String())
	}
	t.Logf("the demo took %v", time.Since(begin))
	if !strings.HasSuffix(strings.TrimSpace(out.String()), "everything is removed.") {
		t.Errorf("the demo ends with other words:\n%s", out.String())
	}
	for trace := range traces(t) {
		if !before[trace] {
			t.Errorf("the demo left %s", trace)
		}
	}
	left, err := filepath.Glob(filepath.Join(tmp, "*"))
	must(t, err)
	own, err := filepath.Glob(fmt.Sprintf("%s/*demo-%d", base, demo.Process.Pid))
	must(t, err)
	if left = append(left, own...); len(left) > 0 {
		t.Errorf("the demo left %v", left)
	}
}

// traces lists what a demo could leave in our namespaces: processes, mounts,
// interfaces.
func traces(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		all["mount "+line] = true
	}
	links, err := filepath.Glob("/sys/class/net/*")
	must(t, err)
	for _, link := range links {
		all[link] = true
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	for _, dir := range processes {
		// An ended process whose parent has ended as well has no command line.
		if text, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(text) > 0 {
			all[dir] = true
		}
	}
	return all
}
