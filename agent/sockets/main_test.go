package sockets

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
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
		os.Exit(bpftest.Isolated(roleVariable + "=suite"))
	case "client":
		exit(serveClient(os.Stdin, os.Stdout))
	case "sockets":
		exit(runSockets(os.Args[1], os.Args[2]))
	case "suite":
		if err := bpftest.RaiseLoopback(); err != nil {
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

// signalled ends with the signal that asks a process to.
func signalled() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), unix.SIGTERM)
}
