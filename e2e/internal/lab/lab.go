package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Lab owns the nodes and processes of one test run. Its methods are safe for
// concurrent use unless they say otherwise.
type Lab struct {
	Dir    string // scratch space; logs are in Dir/log
	cgroup string
	launch *launcher
	nodes  []*Node
	mounts []string
}

// New makes a lab inside the process that [Isolate] started. dir must exist.
func New(dir string) (*Lab, error) {
	if !Inside() {
		return nil, errors.New("the lab works only inside Isolate")
	}
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o755); err != nil {
		return nil, err
	}
	l := &Lab{Dir: dir, cgroup: os.Getenv(rootEnv), launch: newLauncher()}
	return l, addBridge()
}

// Cgroup makes (if needed) and returns the cgroup of that name below the lab's.
func (l *Lab) Cgroup(name string) (string, error) {
	dir := filepath.Join(l.cgroup, name)
	return dir, os.MkdirAll(dir, 0o755)
}

// MountBPF mounts a bpffs of its own at Dir/<name> and returns the path.
func (l *Lab) MountBPF(name string) (string, error) {
	dir := filepath.Join(l.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return "", fmt.Errorf("mount bpffs at %s: %w", dir, err)
	}
	l.mounts = append(l.mounts, dir)
	return dir, nil
}

// Running lists the processes that run in any of the lab's cgroups.
func (l *Lab) Running() ([]int, error) { return processesIn(l.cgroup) }

// Close ends what still runs and undoes everything; it reports what resists.
func (l *Lab) Close() error {
	errs := []error{killAll(l.cgroup)}
	for _, dir := range l.mounts {
		// A killed process leaves its cgroup a moment before it lets go of files.
		errs = append(errs, eventually(30*time.Second, func() error { return unix.Unmount(dir, 0) }))
	}
	for _, n := range l.nodes {
		errs = append(errs, n.close())
	}
	l.launch.close()
	// The next lab needs new ones: Linux 6.14 and later kill a process that is
	// started into a cgroup that cgroup.kill was used on since its parent's was.
	errs = append(errs, removeBelow(l.cgroup))
	return errors.Join(append(errs, removeBridge())...)
}

func killAll(root string) error {
	if err := os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0); err != nil {
		return err
	}
	return eventually(30*time.Second, func() error {
		left, err := processesIn(root)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("processes %v survive cgroup.kill", left)
		}
		return err
	})
}
