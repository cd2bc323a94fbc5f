package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rootEnv carries the lab's cgroup into the inner process; its presence is how
// the inner process knows itself.
const rootEnv = "CLUSTERMESH_E2E_CGROUP"

// Inside tells whether this process was started by [Isolate].
func Inside() bool { return os.Getenv(rootEnv) != "" }

// Isolate runs this program again with the same arguments as process 1 of new
// PID, mount and network namespaces, waits for it and returns its exit code.
// Whatever way the inner process ends, the kernel then ends all its children,
// mounts and interfaces; Isolate removes the cgroups itself and reports what it
// could not remove as an error.
func Isolate() (int, error) {
	base, err := CgroupMount()
	if err != nil {
		return 1, err
	}
	root, err := newCgroupRoot(base)
	if err != nil {
		return 1, err
	}
	code, err := runInner(root)
	return code, errors.Join(err, removeCgroups(root))
}

func runInner(root string) (int, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), rootEnv+"="+root)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("start the isolated test process: %w", err)
	}
	stop := relaySignals(cmd.Process)
	defer stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, fmt.Errorf("wait for the isolated test process: %w", err)
	}
	return exitCode(cmd.ProcessState), nil
}

// relaySignals hands the signals of an interrupted test run to the inner
// process. As process 1 it would ignore those it has no handler for, so the
// last word is SIGKILL.
func relaySignals(p *os.Process) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			if s == syscall.SIGQUIT {
				_ = p.Signal(s) // its stack dump is wanted
				continue
			}
			_ = p.Kill()
		}
	}()
	return func() { signal.Stop(signals); close(signals) }
}

func exitCode(s *os.ProcessState) int {
	if code := s.ExitCode(); code >= 0 {
		return code
	}
	return 1
}

// Settle prepares the inner process's namespaces: no mount leaks out, /proc
// shows the new PID namespace, loopback is up.
func Settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}
