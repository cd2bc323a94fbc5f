package demo

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupPrefix begins the name of the demo's cgroup; its pid follows.
const cgroupPrefix = "clustermesh-demo-"

// cgroupRoot finds where the cgroup2 hierarchy is mounted: not everywhere the
// same place.
func cgroupRoot() (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		// ... <mount point> <options> [<tags>] - <type> <source> <options>
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return unescape(fields[4]), nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted; mount one: mount -t cgroup2 none /mnt")
}

// unescape reverses the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cgroup is a directory of the cgroup2 hierarchy, open for starting processes
// in it.
type cgroup struct {
	path string
	dir  *os.File
}

func newCgroup(path string) (*cgroup, error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("create cgroup: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", errors.Join(err, os.Remove(path)))
	}
	return &cgroup{path: path, dir: dir}, nil
}

// removeStale removes what earlier demos left behind when they were killed:
// their cgroups, once nothing runs in them.
func removeStale(root string) {
	dirs, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix))
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			removeTree(dir)
		}
	}
}

// remove kills what still runs in the cgroup and below and removes it.
func (c *cgroup) remove() error {
	c.dir.Close()
	// A kernel before 5.14 has no such file; then the processes have been
	// killed one by one already.
	_ = os.WriteFile(filepath.Join(c.path, "cgroup.kill"), []byte("1"), 0)
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := removeTree(c.path)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		// The kernel says EBUSY until the last process is reaped.
		time.Sleep(pollInterval)
	}
}

// removeTree removes cgroup directories bottom-up; the files in them are not
// removable and go with the directory.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
	}
	return errors.Join(errs...)
}
