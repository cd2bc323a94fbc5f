package privilege

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// verify reads back from the kernel that no thread was left out.
func verify(keep Set) error {
	const dir = "/proc/self/task"
	threads, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the process's threads: %w", err)
	}
	for _, t := range threads {
		status, err := os.ReadFile(filepath.Join(dir, t.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended meanwhile
		}
		if err == nil {
			err = checkThread(string(status), keep)
		}
		if err != nil {
			return fmt.Errorf("look at thread %s: %w", t.Name(), err)
		}
	}
	return nil
}

// checkThread compares the text of a proc(5) status with what a thread must
// show. The bounding set is not compared: it may stay.
func checkThread(status string, keep Set) error {
	const filtered = 2 // the mode of seccomp
	for _, want := range []struct {
		field string
		base  int
		value uint64
	}{
		{"CapInh", 16, 0}, {"CapPrm", 16, uint64(keep)}, {"CapEff", 16, uint64(keep)}, {"CapAmb", 16, 0},
		{"NoNewPrivs", 10, 1}, {"Seccomp", 10, filtered},
	} {
		_, rest, found := strings.Cut(status, "\n"+want.field+":")
		line, _, _ := strings.Cut(rest, "\n")
		has, err := strconv.ParseUint(strings.TrimSpace(line), want.base, 64)
		if !found || err != nil {
			return fmt.Errorf("no field %s", want.field)
		}
		if has != want.value {
			return fmt.Errorf("%s is %#x, not %#x", want.field, has, want.value)
		}
	}
	return nil
}
