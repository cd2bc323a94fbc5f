package sockets

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleVariable tells a process of this binary what it is: the one that go test
// started, the one in private namespaces that runs the tests, or a program that
// a test started.
const roleVariable = "CLUSTERMESH_SOCKETS_TEST_ROLE"

// TestMain runs the tests in a mount and a network namespace of their own: even
// after a kill no mount, pin or address is left behind.
func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(runIsolated())
	case "client":
		exit(serveClient(os.Stdin, os.Stdout))
	case "sockets":
		exit(runSockets(os.Args[1], os.Args[2]))
	case "suite":
		if err := raiseLoopback(); err != nil {
			exit(err)
		}
		goleak.VerifyTestMain(m)
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runIsolated() int {
	runtime.LockOSThread() // Pdeathsig follows the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleVariable+"=suite")
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

func raiseLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

// signalled ends with the signal that asks a process to.
func signalled() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), unix.SIGTERM)
}
