package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain makes the test binary a pod, a client, or a whole mesh without
// product when it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "demo" {
		os.Exit(child(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func child(args []string) int {
	var err error
	switch args[0] {
	case "backend": // --listen ADDR --name NAME
		err = Backend(context.Background(), args[2], args[4])
	case "get": // URL --count N
		n, _ := strconv.Atoi(args[3])
		err = Get(context.Background(), os.Stdout, args[1], n)
	case "mesh":
		err = meshUntilKilled()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// meshUntilKilled builds everything but the product, prints the pids of the
// pods and waits.
func meshUntilKilled() error {
	s, err := newTestStory(context.Background())
	if err != nil {
		return err
	}
	for _, c := range s.clusters() {
		for _, p := range c.backends {
			fmt.Println(p.cmd.Process.Pid)
		}
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func newTestStory(ctx context.Context) (*story, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	cfg := Config{Self: self, Out: io.Discard}
	s := &story{mesh: mesh{cfg: cfg, found: machine{cgroups: root}}, screen: screen{w: io.Discard}}
	if err := s.prepare(); err != nil {
		return s, err
	}
	if err := s.build(); err != nil {
		return s, err
	}
	for _, c := range s.clusters() {
		if err := c.startPods(self, s.logs()); err != nil {
			return s, err
		}
	}
	for _, c := range s.clusters() {
		if err := s.await(ctx, "pods are up", c.podsUp, c.backends...); err != nil {
			return s, err
		}
	}
	return s, nil
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and cgroups")
	}
}

// TestNodesReachEachOthersPodsButNoService shows that the ground the demo is
// played on proves something: pods are reachable across clusters by their own
// address, and the service's address leads nowhere without an agent.
func TestNodesReachEachOthersPodsButNoService(t *testing.T) {
	needRoot(t)
	s, err := newTestStory(t.Context())
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
		wantNothingLeft(t, os.Getpid(), s.dir)
	}()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.clusters() {
		for _, target := range append(s.east.service.pods, s.west.service.pods...) {
			replies, err := s.request(t.Context(), c, "http://"+target.addr.String()+"/")
			if err != nil || len(replies) != requests || !strings.HasSuffix(strings.TrimSpace(replies[0].Body), target.name) {
				t.Errorf("from %s to %s: %v, %v", c.name, target.addr, replies, err)
			}
		}
		replies, err := s.request(t.Context(), c, c.service.url())
		if err != nil {
			t.Fatal(err)
		}
		if step := count("", c.name, replies); step.Failed != requests {
			t.Errorf("the service's address answers without an agent: %+v", step)
		}
	}
}

// TestKilledDemoTakesItsProcessesAlong kills the demo where it cannot clean up.
func TestKilledDemoTakesItsProcessesAlong(t *testing.T) {
	needRoot(t)
	tmp := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "demo", "mesh")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pids := readPids(t, stdout)
	if len(pids) != 4 {
		t.Errorf("%d pods run, want 4", len(pids))
	}
	cmd.Process.Kill()
	cmd.Wait()
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("pod %d is gone", pid), func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	}
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stale cgroup can be removed", func() bool {
		removeStale(root)
		_, err := os.Stat(cgroupOf(root, cmd.Process.Pid))
		return os.IsNotExist(err)
	})
}

func cgroupOf(root string, pid int) string {
	return filepath.Join(root, cgroupPrefix+strconv.Itoa(pid))
}

func readPids(t *testing.T, r io.Reader) []int {
	t.Helper()
	var pids []int
	for {
		var word string
		if _, err := fmt.Fscan(r, &word); err != nil {
			t.Fatalf("read pids: %v", err)
		}
		pid, err := strconv.Atoi(word)
		if err != nil {
			return pids
		}
		pids = append(pids, pid)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	err := await(t.Context(), 20*time.Second, what, nil, func(context.Context) error {
		if cond() {
			return nil
		}
		return fmt.Errorf("not yet")
	})
	if err != nil {
		t.Error(err)
	}
}

func wantNothingLeft(t *testing.T, pid int, dir string) {
	t.Helper()
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, cgroupOf(root, pid)} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left behind (%v)", path, err)
		}
	}
}

func TestAwaitNamesTheProcessThatEnded(t *testing.T) {
	needRoot(t)
	s, err := newTestStory(t.Context())
	defer s.close()
	if err != nil {
		t.Fatal(err)
	}
	dead, err := spawn(s.east.node, s.east.system, s.logs(), "doomed", "/bin/sh", "-c", "echo last words; exit 7")
	if err != nil {
		t.Fatal(err)
	}
	err = s.await(t.Context(), "it is up", func(context.Context) error { return fmt.Errorf("not up") }, dead)
	for _, want := range []string{"it is up", "doomed of east", "exit status 7", "last words"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}

func TestCheckKnowsWhoShouldAnswer(t *testing.T) {
	c := &cluster{name: "east"}
	s := &story{}
	cases := map[string]struct {
		step Step
		want map[string]int
		ok   bool
	}{
		"both":     {Step{Answers: map[string]int{"east": 4, "west": 6}}, map[string]int{"east": 2, "west": 2}, true},
		"one":      {Step{Answers: map[string]int{"west": 10}}, map[string]int{"west": 2}, true},
		"stranger": {Step{Answers: map[string]int{"west": 9, "east": 1}}, map[string]int{"west": 2}, false},
		"failure":  {Step{Answers: map[string]int{"east": 4, "west": 5}, Failed: 1}, map[string]int{"east": 2, "west": 2}, false},
	}
	for name, tc := range cases {
		if err := s.check(t.Context(), c, tc.step, tc.want); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
