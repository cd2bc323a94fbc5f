// Package disk puts files of certificates and keys in place so that a reader
// sees the old file or the new one and never half of either, and so that what
// was reported as done is there after a power failure.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Modes of what a certificate directory holds.
const (
	DirMode  fs.FileMode = 0o700
	KeyMode  fs.FileMode = 0o600
	CertMode fs.FileMode = 0o644
)

// Ensure creates dir for its owner alone. A directory that others may write to,
// or that belongs to another user than this one and root, is refused: they could
// put their own CA in place.
func Ensure(dir string) error {
	if err := os.MkdirAll(dir, DirMode); err != nil {
		return fmt.Errorf("create certificate directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("examine certificate directory: %w", err)
	}
	if perm := st.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("use certificate directory %s: others may write to it (mode %04o); run chmod 0700 %s or choose another directory", dir, perm, dir)
	}
	if uid, known := ownerOf(st); known && foreign(uid, os.Geteuid(), os.Getenv("SUDO_UID")) {
		// No chown: it would take the directory from a service that lives in it.
		return fmt.Errorf("use certificate directory %s: it belongs to user %d, who may change it at any time; run this as that user, with sudo -u '#%d' clustermesh and what follows, or choose another directory", dir, uid, uid)
	}
	return nil
}

// foreign reports whether a directory of owner is none that user may rely on:
// its own, or root's, who can change every file anyway. Root may rely on that of
// the user who became root by sudo, too: that one's word is what is carried out.
func foreign(owner, user int, sudo string) bool {
	return owner != user && owner != 0 && (user != 0 || sudo != strconv.Itoa(owner))
}

// Replace makes data the whole content of path in one step: a reader sees the
// old file or the new one.
func Replace(path string, mode fs.FileMode, data []byte) error {
	return place(path, mode, data, os.Rename)
}

// Create is [Replace] for a path that must not exist yet; if it does, the error
// wraps [fs.ErrExist] and nothing changes. A hard link, and not a rename,
// because it fails when somebody else was faster.
func Create(path string, mode fs.FileMode, data []byte) error {
	return place(path, mode, data, os.Link)
}

// Remove removes the files; one that does not exist is no error.
func Remove(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func place(path string, mode fs.FileMode, data []byte, into func(from, to string) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name())
	if err := fill(tmp, mode, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := into(tmp.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return settle(filepath.Dir(path))
}

func fill(f *os.File, mode fs.FileMode, data []byte) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// settle makes the directory's new entry survive a power failure.
func settle(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write directory %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("write directory %s: %w", dir, err)
	}
	return nil
}
