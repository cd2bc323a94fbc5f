package certs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	dirMode  fs.FileMode = 0o700
	keyMode  fs.FileMode = 0o600
	certMode fs.FileMode = 0o644
)

// ensureDir creates dir for its owner alone. A directory that others may write
// to is refused: they could put their own CA in place.
func ensureDir(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("create certificate directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("examine certificate directory: %w", err)
	}
	if perm := st.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("use certificate directory %s: others may write to it (mode %04o); run chmod 0700 %s or choose another directory", dir, perm, dir)
	}
	return nil
}

// writeFile makes data the whole content of path in one step: a reader sees the
// old file or the new one.
func writeFile(path string, mode fs.FileMode, data []byte) error {
	return place(path, mode, data, os.Rename)
}

// createFile is writeFile for a path that must not exist yet. A hard link, and
// not a rename, because it fails when somebody else was faster.
func createFile(path string, mode fs.FileMode, data []byte) error {
	return place(path, mode, data, os.Link)
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
	return nil
}

func fill(f *os.File, mode fs.FileMode, data []byte) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}
