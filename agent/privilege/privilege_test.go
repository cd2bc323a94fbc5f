package privilege

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// buildChild builds testdata/child as the agent is built. What is to be tested
// cannot be undone, so it happens in a process of its own; and the test's own
// binary may have cgo.
func buildChild(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "privilege") // unlike t.TempDir, to be opened to other users
	if err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "child")
	cmd := exec.Command("go", "build", "-o", path, "./testdata/child")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build child: %v: %s", err, out)
	}
	return path
}

// child is a running one.
type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	input  io.WriteCloser
	output *bufio.Scanner
}

func start(t *testing.T, path, work string, as *syscall.SysProcAttr) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(path, work)}
	c.cmd.SysProcAttr, c.cmd.Stderr = as, os.Stderr
	var err error
	if c.input, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	output, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.output = bufio.NewScanner(output)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.input.Close() // its end, unless it has ended
		_ = c.cmd.Wait()
	})
	return c
}

// line is the next line of output.
func (c *child) line() string {
	c.t.Helper()
	if !c.output.Scan() {
		c.t.Fatalf("the child has ended: %v", c.output.Err())
	}
	return c.output.Text()
}

func (c *child) do(deed string) string {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.input, deed); err != nil {
		c.t.Fatal(err)
	}
	return c.line()
}

// requireOnEveryThread reads fields of all threads' statuses.
func (c *child) requireOnEveryThread(want map[string]string) {
	c.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.cmd.Process.Pid))
	if err != nil || len(files) < 16 {
		c.t.Fatalf("%d threads, want the 16 that the child made: %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		for field, value := range want {
			line := regexp.MustCompile(`(?m)^` + field + `:\s*(\S+)$`).FindStringSubmatch(string(text))
			if line == nil || line[1] != value {
				c.t.Errorf("%s: %s is %v, want %s", file, field, line, value)
			}
		}
	}
}

const (
	no      = "0000000000000000"
	onlyBPF = "0000008000000000"
)

func cleared(eff string) map[string]string {
	return map[string]string{"CapEff": eff, "CapPrm": eff, "CapInh": no, "CapAmb": no, "NoNewPrivs": "1", "Seccomp": "2"}
}

func requireRoot(t *testing.T) {
	t.Helper()
	if held, err := Held(); err != nil || os.Geteuid() != 0 || held&BPF == 0 || held&SetPCap == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("needs root with CAP_BPF and CAP_SETPCAP; held: %s %v", held, err)
		}
		t.Skipf("needs root with CAP_BPF and CAP_SETPCAP, to have something to drop; held: %s %v", held, err)
	}
}

func TestDrop(t *testing.T) {
	requireRoot(t)
	path := buildChild(t)
	t.Run("all of root", func(t *testing.T) {
		c := start(t, path, "free", nil)
		if got := c.line(); got != "kept: none" {
			t.Fatal(got)
		}
		want := cleared(no)
		want["CapBnd"] = no
		c.requireOnEveryThread(want)
		c.requireDeeds()
		c.requireOnEveryThread(want)
	})
	t.Run("ambient of another user", func(t *testing.T) {
		c := start(t, path, "free", nobody())
		if got := c.line(); got != "kept: none" {
			t.Fatal(got)
		}
		c.requireOnEveryThread(cleared(no))
		c.requireDeeds()
	})
	t.Run("all but CAP_BPF on an old kernel", func(t *testing.T) {
		c := start(t, path, "needs CAP_BPF", nobody())
		if got := c.line(); got != "kept: CAP_BPF" {
			t.Fatal(got)
		}
		c.requireOnEveryThread(cleared(onlyBPF))
		c.requireDeeds()
	})
	for work, reason := range map[string]string{"broken": "disk on fire", "refused for ever": "update map"} {
		t.Run("failing, "+work, func(t *testing.T) {
			c := start(t, path, work, nil)
			if got := c.line(); !strings.HasPrefix(got, "failed: ") || !strings.Contains(got, reason) {
				t.Fatalf("%q, want a failure with %q", got, reason)
			}
		})
	}
}

// nobody is a user with exactly the capabilities that an agent needs.
func nobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON},
	}
}

// requireDeeds has the child do what an agent does, and try what it must not.
func (c *child) requireDeeds() {
	c.t.Helper()
	for _, deed := range []string{"read a file", "listen and dial", "start threads", "signal itself", "map memory"} {
		if got := c.do(deed); got != "done" {
			c.t.Errorf("%s: %s, want done", deed, got)
		}
	}
	for deed, want := range map[string]string{"update a map": "EBADF", "look at an object": "EBADFD", "attach again": "EBADF"} {
		if got := c.do(deed); got != want { // past every check of who asks
			c.t.Errorf("%s that is none: %s, want %s", deed, got, want)
		}
	}
	for deed, want := range map[string]string{
		"execute": "EPERM", "execute in place": "EPERM", "fork": "EPERM", "clone3": "ENOSYS", "new user ns": "EPERM",
		"signal parent": "EPERM", "tgkill parent": "EPERM", "trace parent": "EPERM", "mount": "EPERM", "map code": "EPERM",
		"raw socket": "EPERM", "kernel keyring": "EPERM", "io_uring": "EPERM", "make a map": "EPERM", "open a pin": "EPERM", "load a program": "EPERM", "number of a map": "EPERM",
		"detach a link": "EPERM", "raise": "EPERM", "raise ambient": "EPERM", "become root": "EPERM", "undo no_new_privs": "EINVAL",
	} {
		if got := c.do(deed); got != want {
			c.t.Errorf("%s: %s, want %s", deed, got, want)
		}
	}
}

func TestMustKeep(t *testing.T) {
	for _, c := range []struct {
		refused          bool
		setting, release string
		want             bool
	}{
		{false, "2", "6.18.44", false},
		{false, "1", "5.19.0-rc1", false},
		{false, "0", "5.19.0", false},
		{false, "0", "5.18.19-generic", true}, // a later change of the setting would stop the work
		{false, "2", "5.14.0-503.el9", false}, // a distribution's kernel that has the change
		{true, "2", "5.15.0-91-generic", true},
		{true, "2", "6.18.44", true},
		{false, "0", "", true},
		{false, "", "6.1.0", false},
	} {
		if got := mustKeep(c.refused, c.setting, c.release); got != c.want {
			t.Errorf("refused %v, setting %q, release %q: %v, want %v", c.refused, c.setting, c.release, got, c.want)
		}
	}
}

func TestSetString(t *testing.T) {
	for set, want := range map[Set]string{0: "none", BPF: "CAP_BPF", NetAdmin | BPF | 1: "CAP_0,CAP_NET_ADMIN,CAP_BPF"} {
		if got := set.String(); got != want {
			t.Errorf("%#x: %q, want %q", uint64(set), got, want)
		}
	}
}

func TestCheckThread(t *testing.T) {
	good := "Name:\tagent\nCapInh:\t" + no + "\nCapPrm:\t" + onlyBPF + "\nCapEff:\t" + onlyBPF + "\nCapBnd:\tff\nCapAmb:\t" + no + "\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"
	if err := checkThread(good, BPF); err != nil {
		t.Error(err)
	}
	for from, to := range map[string]string{
		"NoNewPrivs:\t1": "NoNewPrivs:\t0", "Seccomp:\t2": "Seccomp:\t0", "CapEff:\t" + onlyBPF: "CapEff:\t" + no,
		"CapInh:\t" + no: "CapInh:\t" + onlyBPF, "CapPrm:": "CapXXX:",
	} {
		if checkThread(strings.Replace(good, from, to, 1), BPF) == nil {
			t.Errorf("accepted with %q", to)
		}
	}
}
