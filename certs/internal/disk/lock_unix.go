//go:build unix

package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Lock waits until it holds dir against every other caller of Lock, in this
// process or another, and returns what gives it back. It ends with the process.
// A lock file that is a link is refused.
func Lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, KeyMode)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("lock certificate directory: %w; it is a link, remove it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock certificate directory: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock certificate directory %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
