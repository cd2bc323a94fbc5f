package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cgroupPrefix names the lab's cgroups; the rest is the outer process's id.
const cgroupPrefix = "clustermesh-e2e-"

// CgroupMount finds where cgroup v2 is mounted on this machine: hybrid hosts
// have it below /sys/fs/cgroup/unified.
func CgroupMount() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		mount, kind, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if ok && len(fields) > 4 && strings.HasPrefix(kind, "cgroup2 ") {
			return fields[4], nil
		}
	}
	return "", errors.Join(errors.New("no cgroup2 mount on this machine"), lines.Err())
}

// newCgroupRoot makes this run's cgroup and removes those of dead runs.
func newCgroupRoot(base string) (string, error) {
	stale, err := filepath.Glob(filepath.Join(base, cgroupPrefix+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range stale {
		if !ownerAlive(dir) && !populated(dir) {
			_ = removeCgroups(dir) // of another run: not this run's failure
		}
	}
	root := filepath.Join(base, cgroupPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", fmt.Errorf("make cgroup: %w", err)
	}
	return root, nil
}

func ownerAlive(dir string) bool {
	pid := strings.TrimPrefix(filepath.Base(dir), cgroupPrefix)
	if pid == strconv.Itoa(os.Getpid()) {
		return false // that was another process with our number
	}
	_, err := os.Stat(filepath.Join("/proc", pid))
	return err == nil
}

// populated tells whether processes live in a cgroup or below it. A run's
// processes end with it, so these belong to a run that this one cannot see:
// that of another container on this machine.
func populated(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains(string(text), "populated 1")
}

// removeCgroups kills what still runs below root and removes the whole tree.
func removeCgroups(root string) error {
	_ = os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0)
	return eventually(30*time.Second, func() error { return removeTree(root) })
}

func removeTree(root string) error {
	dirs, err := cgroupTree(root)
	if err != nil {
		return err
	}
	var failed []error
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// removeBelow removes all cgroups below root, whose processes have ended.
func removeBelow(root string) error {
	return eventually(30*time.Second, func() error {
		entries, err := os.ReadDir(root)
		if err != nil {
			return err
		}
		var failed []error
		for _, e := range entries {
			if e.IsDir() {
				failed = append(failed, removeTree(filepath.Join(root, e.Name())))
			}
		}
		return errors.Join(failed...)
	})
}

// cgroupTree lists root and all cgroups below it, parents first.
func cgroupTree(root string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	return dirs, err
}

// processesIn lists the processes in root and all cgroups below it.
func processesIn(root string) ([]int, error) {
	dirs, err := cgroupTree(root)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// eventually repeats check until it succeeds or the deadline passes, and
// returns its last error.
func eventually(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
