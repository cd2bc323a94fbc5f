package bpf

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
)

// roleVariable tells a process of this binary what it is: the one that go test
// started, the one in private namespaces that runs the tests, or a program that
// a test started.
const roleVariable = "CLUSTERMESH_BPF_TEST_ROLE"

// TestMain runs the tests in a mount and a network namespace of their own: even
// after a kill no mount, pin or address is left behind.
func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(bpftest.Isolated(roleVariable + "=suite"))
	case "client":
		exit(serveClient(os.Stdin, os.Stdout))
	case "bench client":
		exit(errors.Join(prepareBenchClient(os.Args[1]), serveClient(os.Stdin, os.Stdout)))
	case "repairer":
		exit(runRepairer(os.Args[1], os.Args[2], os.Stdin, os.Stdout))
	case "successor":
		exit(runSuccessor(os.Args[1], os.Stdin))
	case "holder":
		exit(runHolder(os.Args[1], os.Stdin, os.Stdout))
	case "echo":
		exit(runEcho(os.Args[1], os.Stdin, os.Stdout))
	case "loader":
		exit(runLoader(os.Args[1], os.Args[2]))
	case "storm":
		changes, _ := strconv.Atoi(os.Args[3])
		exit(runStorm(os.Args[1], os.Args[2], changes))
	case "roller":
		exit(runRoller(os.Args[1], os.Args[2], os.Args[3], os.Stdin, os.Stdout))
	case "roll reader":
		exit(runRollReader(os.Args[1], os.Stdin, os.Stdout))
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
