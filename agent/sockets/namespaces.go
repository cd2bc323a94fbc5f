package sockets

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf"
)

// namespaces opens every network namespace that can be seen, each once: those of
// the processes below proc, this one's first, and those that are mounted in dirs,
// where container runtimes keep them. What comes and goes meanwhile, or may not
// be opened, is left out.
func namespaces(proc string, dirs []string) []bpf.Namespace {
	paths := []string{filepath.Join(proc, "self/ns/net")}
	for _, pattern := range append([]string{filepath.Join(proc, "[0-9]*/ns/net")}, inside(dirs)...) {
		found, _ := filepath.Glob(pattern) // the patterns are well-formed
		paths = append(paths, found...)
	}
	seen := map[fileID]bool{}
	var out []bpf.Namespace
	for _, path := range paths {
		if f := openNamespace(path, seen); f != nil {
			out = append(out, bpf.Namespace{Name: path, File: f})
		}
	}
	return out
}

func inside(dirs []string) []string {
	var out []string
	for _, dir := range dirs {
		out = append(out, filepath.Join(dir, "*"))
	}
	return out
}

// fileID tells namespaces apart.
type fileID struct{ dev, inode uint64 }

// openNamespace returns nil for what is not a network namespace, or was seen.
func openNamespace(path string, seen map[fileID]bool) *os.File {
	var st unix.Stat_t
	var fs unix.Statfs_t
	err := errors.Join(unix.Stat(path, &st), unix.Statfs(path, &fs))
	id := fileID{st.Dev, st.Ino}
	if err != nil || int64(fs.Type) != unix.NSFS_MAGIC || seen[id] {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		_ = f.Close() // it was only looked at
		return nil
	}
	seen[id] = true
	return f
}

func closeAll(in []bpf.Namespace) {
	for _, ns := range in {
		_ = ns.File.Close() // read only
	}
}
