package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Prefixes of the names in the pin directory. Maps keep their own names, which
// begin with cm_.
const (
	programPrefix = "prog_"
	linkPrefix    = "link_"
	mapPrefix     = "cm_"
	// nextSuffix marks a pin that is about to be renamed over the current one.
	// A bpffs refuses names with a dot.
	nextSuffix = "_next"
)

// ErrBusy says that another process works on the pin directory.
var ErrBusy = errors.New("pin directory is in use by another process")

// preparePinDir makes the pin directory, on a bpffs, private to its owner.
func preparePinDir(opts Options) error {
	if err := ensureBPFFS(opts); err != nil {
		return err
	}
	if err := os.MkdirAll(opts.PinDir, 0o700); err != nil {
		return fmt.Errorf("create pin directory: %w", err)
	}
	if err := os.Chmod(opts.PinDir, 0o700); err != nil {
		return fmt.Errorf("make pin directory private: %w", err)
	}
	return nil
}

// ensureBPFFS returns an error unless PinDir is, or will be, on a bpffs.
func ensureBPFFS(opts Options) error {
	on, err := onBPFFS(opts.PinDir)
	if err != nil || on {
		return err
	}
	mountpoint := filepath.Dir(opts.PinDir)
	if !opts.MountBPFFS {
		return fmt.Errorf("use PinDir %q: not on a bpffs; run `mount -t bpf bpf %s` or set MountBPFFS", opts.PinDir, mountpoint)
	}
	if err := os.MkdirAll(mountpoint, 0o755); err != nil {
		return fmt.Errorf("create mount point of the bpffs: %w", err)
	}
	if err := unix.Mount("bpf", mountpoint, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %q: %w", mountpoint, err)
	}
	return nil
}

// onBPFFS says whether path, or the nearest parent that exists, is on a bpffs.
func onBPFFS(path string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	for errors.Is(err, unix.ENOENT) && path != filepath.Dir(path) {
		path = filepath.Dir(path)
		err = unix.Statfs(path, &st)
	}
	if err != nil {
		return false, fmt.Errorf("look at file system of %q: %w", path, err)
	}
	return int64(st.Type) == unix.BPF_FS_MAGIC, nil
}

// lockPinDir takes the pin directory for this process, until the returned file
// is unlocked or the process ends. Two writers would share one slab.
func lockPinDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %q: %w; stop the agent that runs on it first", dir, ErrBusy)
	}
	return nil, fmt.Errorf("lock %q: %w", dir, err)
}

// unlock gives the directory free at once. Closing alone would not while a child
// process, between its fork and its exec, shares the open file.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

// pinner is what ebpf.Program and link.Link have in common here.
type pinner interface{ Pin(string) error }

// replacePin pins p at path in one step, whatever was pinned there before.
func replacePin(p pinner, path string) error {
	next := path + nextSuffix
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove leftover pin: %w", err)
	}
	if err := p.Pin(next); err != nil {
		return fmt.Errorf("pin %q: %w", next, err)
	}
	if err := os.Rename(next, path); err != nil {
		return errors.Join(fmt.Errorf("replace pin: %w", err), os.Remove(next))
	}
	return nil
}
