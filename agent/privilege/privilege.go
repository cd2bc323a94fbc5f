// Package privilege lets the agent give up what it needed to start: after
// [Drop] no thread of the process holds a capability, none can ever regain one,
// and a seccomp filter refuses the system calls by which a process that was
// taken over would reach further.
//
// The order is the point. Loading, attaching, pinning and mapping eBPF objects
// needs capabilities; storing to mapped memory needs none, and neither, since
// Linux 5.19, do changes of maps by their file descriptors. So everything that
// needs a capability is done first and the first byte from the network is read
// after Drop.
package privilege

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Drop gives up all capabilities of the whole process for good, forbids it to
// gain any by executing a program, and installs the seccomp filter. It returns
// the capabilities that remain, which are none or CAP_BPF alone.
//
// work is what the process has to do afterwards. Drop first tries it on one
// thread without capabilities; if the kernel refuses, as those before Linux 5.19
// do, CAP_BPF stays. At the end work runs once more in the process as it then
// is. work must stay on the calling thread and be harmless to repeat.
//
// After an error the process may have lost some privileges and not others: it
// has to end. The one exception is [ErrCgo], before which nothing was changed.
// Drop reads /proc. It must not run twice.
func Drop(work func() error) (kept Set, err error) {
	keep, err := needed(work)
	if err != nil {
		return 0, fmt.Errorf("drop privileges: %w", err)
	}
	for _, step := range []func(Set) error{forbidGains, emptyBoundingSet, setCapabilities, installFilter, verify} {
		if err := step(keep); err != nil {
			return 0, fmt.Errorf("drop privileges: %w", err)
		}
	}
	if err := work(); err != nil {
		return keep, fmt.Errorf("work without privileges: %w", err)
	}
	return keep, nil
}

// ErrCgo says that nothing was dropped, because the binary was built with cgo and
// the Go runtime may not know all its threads. Such a binary is for development.
var ErrCgo = errors.New("this binary has cgo, so not all of its threads are known; build it with CGO_ENABLED=0")

// forbidGains sets no_new_privs, which unlike the rest is never undone by
// executing something, and empties the ambient set.
func forbidGains(Set) error {
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := onAllThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return fmt.Errorf("empty the ambient set: %w", err)
	}
	return nil
}

// onAllThreads makes a system call on every thread of the process.
func onAllThreads(call, a1, a2, a3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall(call, a1, a2, a3)
	if errno == syscall.ENOTSUP {
		return ErrCgo
	}
	if errno != 0 {
		return errno
	}
	return nil
}
