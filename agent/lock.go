package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockFile is the file of the lock in the state directory.
const lockFile = "lock"

// lockState takes the lock that keeps a second agent off the same pins. It is
// released when the file is closed or the process ends, however it ends.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--state-dir %q: %w", dir, err)
	}
	for {
		f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("--state-dir %q: %w", dir, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("--state-dir %q: another agent holds the lock (%w); stop it or give this one a directory and --bpffs of its own", dir, err)
		}
		if isAt(f, filepath.Join(dir, lockFile)) {
			return f, nil
		}
		f.Close() // a cleanup removed it meanwhile: the next one locks another file
	}
}

// isAt tells whether path leads to the open file.
func isAt(f *os.File, path string) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(ours, there)
}
