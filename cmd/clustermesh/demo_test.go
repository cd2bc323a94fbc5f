package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/cmd/clustermesh/demo"
)

// TestDemo runs the demo with the real programs.
func TestDemo(t *testing.T) {
	bin := buildAll(t)
	t.Run("whole", func(t *testing.T) { runDemo(t, bin) })
	t.Run("interrupted", func(t *testing.T) { interruptDemo(t, bin) })
	t.Run("broken program", func(t *testing.T) { breakDemo(t, bin) })
}

// runDemo holds the report against what each step promises.
func runDemo(t *testing.T, bin string) {
	var stdout, stderr bytes.Buffer
	cmd := demoCommand(t, bin, "-o", "json")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var report demo.Report
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, stdout.String())
	}
	want := map[string][]string{
		"both": {"east", "west"}, "west control plane dead": {"east", "west"}, "east withdrawn": {"west"}, "recovered": {"east", "west"},
	}
	if len(report.Steps) != 2*len(want) {
		t.Errorf("%d series of requests, want one from each side in each of %d steps", len(report.Steps), len(want))
	}
	for _, step := range report.Steps {
		if step.Failed != 0 || len(step.Answers) != len(want[step.Name]) {
			t.Errorf("%+v, want answers from %v", step, want[step.Name])
		}
		for _, cluster := range want[step.Name] {
			if step.Answers[cluster] == 0 {
				t.Errorf("%s, client in %s: no answer from %s", step.Name, step.Client, cluster)
			}
		}
	}
	if !strings.Contains(stderr.String(), "clustermesh services") {
		t.Error("the story does not show the table of services")
	}
	t.Logf("took %.1f s", report.Seconds)
	wantCleanTemp(t, cmd)
}

// breakDemo has an agent that fails: the demo must fail with its last words.
func breakDemo(t *testing.T, bin string) {
	broken := t.TempDir()
	if err := os.Symlink(filepath.Join(bin, "clustermesh-apiserver"), filepath.Join(broken, "clustermesh-apiserver")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "clustermesh-agent"), []byte("#!/bin/sh\necho out of luck; exit 9\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := demoCommand(t, bin, "--bin-dir", broken)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ended with %v, want exit code 1", err)
	}
	for _, want := range []string{"agent of east ended: exit status 9", "out of luck"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output does not mention %q:\n%s", want, out)
		}
	}
	wantCleanTemp(t, cmd)
}

// interruptDemo ends the demo with the signal of Ctrl-C while the mesh is up.
func interruptDemo(t *testing.T, bin string) {
	cmd := demoCommand(t, bin)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, stdout, "Ten requests")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var rest bytes.Buffer
	if _, err := rest.ReadFrom(stdout); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("interrupted demo ended with %v, want exit code 1", err)
	}
	wantCleanTemp(t, cmd)
}

// buildAll builds the three programs. The go command's cache makes it cheap
// after the first time.
func buildAll(t *testing.T) string {
	t.Helper()
	switch {
	case os.Geteuid() != 0:
		t.Skip("needs root: makes namespaces, cgroups and loads eBPF programs")
	case testing.Short():
		t.Skip("builds and runs all programs: not with -short")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, ".", "../clustermesh-agent", "../clustermesh-apiserver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // an agent with C in it refuses to start
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// demoCommand has a temporary directory of its own, short because of the
// sockets in it.
func demoCommand(t *testing.T, bin string, args ...string) *exec.Cmd {
	t.Helper()
	tmp, err := os.MkdirTemp("", "cm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	cmd := exec.Command(filepath.Join(bin, "clustermesh"), append([]string{"demo", "--timeout", "2m"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.WaitDelay = 3 * time.Minute
	return cmd
}

func wantCleanTemp(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	for _, kv := range cmd.Env {
		if dir, ok := strings.CutPrefix(kv, "TMPDIR="); ok {
			left, err := os.ReadDir(dir)
			if err != nil || len(left) > 0 {
				t.Errorf("left behind in the temporary directory: %v (%v)", left, err)
			}
		}
	}
}

// until reads until text has been seen.
func until(t *testing.T, r interface{ Read([]byte) (int, error) }, text string) {
	t.Helper()
	var seen []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(seen, []byte(text)) {
		n, err := r.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil {
			t.Fatalf("%q not seen: %v\n%s", text, err, seen)
		}
	}
}
