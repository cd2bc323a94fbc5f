package privilege

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// needed says which capabilities the process has to keep for its work.
func needed(work func() error) (Set, error) {
	held, err := Held()
	if err != nil {
		return 0, err
	}
	refused, err := tryWithout(work)
	if err != nil {
		return 0, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return 0, fmt.Errorf("read the kernel's release: %w", err)
	}
	setting, _ := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled") // absent: such a kernel has no such switch
	if mustKeep(refused, strings.TrimSpace(string(setting)), unix.ByteSliceToString(name.Release[:])) {
		return held & BPF, nil
	}
	return 0, nil
}

// mustKeep decides whether CAP_BPF stays. Before Linux 5.19 a kernel refuses
// every bpf(2) call of an unprivileged process while the sysctl
// kernel.unprivileged_bpf_disabled is not 0; since then it refuses only to make
// maps and to load programs (commit c8644cd0efe7). On an old kernel with the
// setting 0 the work succeeds today and would fail from the day on that an
// administrator changes it.
func mustKeep(refused bool, setting, release string) bool {
	return refused || setting == "0" && olderThan519(release)
}

// olderThan519 compares a release such as "5.15.0-91-generic". One that it
// cannot read counts as old.
func olderThan519(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major < 5 || major == 5 && minor < 19
}

// tryWithout runs work on a thread that has no effective capability and says
// whether the kernel refused it. Other threads keep theirs.
func tryWithout(work func() error) (refused bool, err error) {
	done := make(chan struct{})
	var outcome error
	go func() {
		defer close(done)
		err = onBareThread(func() { outcome = work() })
	}()
	<-done
	if refused = errors.Is(outcome, unix.EPERM); refused {
		outcome = nil
	}
	return refused, errors.Join(outcome, err)
}

func onBareThread(fn func()) error {
	runtime.LockOSThread()
	before, err := current()
	if err != nil {
		return err
	}
	bare := before
	bare.effective = 0
	if err := bare.setOnThread(); err != nil {
		return fmt.Errorf("put capabilities aside: %w", err)
	}
	fn()
	if err := before.setOnThread(); err != nil {
		return fmt.Errorf("take capabilities back: %w", err) // still locked: the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return nil
}
