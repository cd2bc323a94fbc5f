// Package bpftest is what tests of eBPF programs need around them: namespaces
// that end with the test binary, a bpf file system, and cgroups.
package bpftest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Isolated runs this test binary again, with the same arguments and the variables
// besides its own, in a mount and a network namespace of its own, and returns its
// exit code. It ends with the caller.
func Isolated(variables ...string) int {
	runtime.LockOSThread() // Pdeathsig follows the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), variables...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:    unix.SIGKILL,
	}
	err := cmd.Run()
	var status *exec.ExitError
	if errors.As(err, &status) {
		return status.ExitCode()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "run tests in own namespaces: %v; these tests need root\n", err)
		return 1
	}
	return 0
}

// RaiseLoopback sets lo up in this process's network namespace.
func RaiseLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

// MountBPFFS mounts a bpf file system for the time of the test.
func MountBPFFS(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return dir
}

// NewCgroup makes a cgroup below root, the mount of cgroup2, for the time of the
// test; its name begins with prefix. What still runs in it then is killed.
func NewCgroup(t testing.TB, root, prefix string) string {
	t.Helper()
	dir, err := os.MkdirTemp(root, prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { RemoveCgroup(t, dir) })
	return dir
}

// RemoveCgroup ends whatever a failed test left in it, and waits for that.
func RemoveCgroup(t testing.TB, dir string) {
	t.Helper()
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) // since Linux 5.14
	Eventually(t, "cgroup removed", func() error {
		err := os.Remove(dir)
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
}

// Eventually polls for something that the kernel does in its own time, and fails
// the test if it is not done after half a minute.
func Eventually(t testing.TB, what string, done func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	err := done()
	for err != nil && time.Now().Before(deadline) {
		time.Sleep(2 * time.Millisecond)
		err = done()
	}
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}
