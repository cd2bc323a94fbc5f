package join

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// Home is where the files of peers are: two directories that running agents and
// apiservers follow. Either may be empty and is then left out.
type Home struct {
	Clusters string // cluster files, which say how to read from a peer
	Peers    string // peers' files, which say how a peer may read here

	cut func(point string)
}

// Install puts a peer's files in place, each in one step. Those that admit the
// peer come first, the cluster file last, so whoever follows the directories
// finds what each names. A peer that is there already is an error unless it may
// be replaced. After an error, or if the process is killed, it can be repeated.
func (h Home) Install(p Peer) error {
	if err := errors.Join(h.Check(p.Cluster, p.Replace), h.sweep(p.Cluster)); err != nil {
		return err
	}
	if err := h.admit(p); err != nil {
		return err
	}
	return h.connect(p)
}

// Check refuses a cluster that is there already, unless it may be replaced.
func (h Home) Check(cluster string, replace bool) error {
	if replace {
		return nil
	}
	for _, path := range h.paths(cluster)[:2] {
		if path != "" && exists(path) {
			// Not the whole path: the other side may be told.
			return refuse(NameTaken, "cluster %q: its file %s is there already; allow it with --replace --for %s, or where it is invited with --for %s alone, or end that first: clustermesh disconnect %s", cluster, filepath.Base(path), cluster, cluster, cluster)
		}
	}
	return nil
}

// sweep removes what writers that were killed have left of a cluster: files
// under hidden names, which nobody reads.
func (h Home) sweep(cluster string) error {
	var errs []error
	for _, dir := range []string{h.Clusters, h.Peers} {
		if dir == "" {
			continue
		}
		left, err := filepath.Glob(filepath.Join(escapeGlob(dir), "."+cluster+".*"))
		errs = append(errs, err, disk.Remove(left...))
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// paths are the files of a cluster: the two that say it is a peer, and then
// those that they name; empty for a directory that is left out.
func (h Home) paths(cluster string) []string {
	ca, cert, key := names(cluster)
	out := make([]string, 2, 5)
	if h.Peers != "" {
		out[0] = filepath.Join(h.Peers, peerFile(cluster))
	}
	if h.Clusters != "" {
		for _, name := range []string{ca, cert, key} {
			out = append(out, filepath.Join(h.Clusters, name))
		}
		out[1] = filepath.Join(h.Clusters, cluster)
	}
	return out
}

// admit writes the peer's file.
func (h Home) admit(p Peer) error {
	if h.Peers == "" {
		return nil
	}
	if err := disk.Ensure(h.Peers); err != nil {
		return err
	}
	path := filepath.Join(h.Peers, peerFile(p.Cluster))
	members, err := kept(path, p)
	if err != nil {
		return err
	}
	if !p.Reads {
		return disk.Remove(path)
	}
	if err := h.alone(p); err != nil {
		return err
	}
	err = disk.Replace(path, disk.KeyMode, readerFile(p.known(), members, ownCA))
	h.reached("admitted")
	return err
}

// connect writes the cluster file and before it what it names.
func (h Home) connect(p Peer) error {
	if h.Clusters == "" {
		return nil
	}
	if err := disk.Ensure(h.Clusters); err != nil {
		return err
	}
	files := p.Files("")
	if len(files) == 0 {
		return h.remove(h.paths(p.Cluster)[1:])
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if name == p.Cluster {
			continue
		}
		if err := disk.Replace(filepath.Join(h.Clusters, name), modeOf(name), files[name]); err != nil {
			return err
		}
		h.reached("wrote " + filepath.Ext(name))
	}
	return disk.Replace(filepath.Join(h.Clusters, p.Cluster), disk.KeyMode, files[p.Cluster])
}

func modeOf(name string) fs.FileMode {
	if filepath.Ext(name) == ".crt" {
		return disk.CertMode
	}
	return disk.KeyMode
}

// Remove takes the peer's files away and reports whether there were any. What
// lets the peer read goes first. It can be repeated.
func (h Home) Remove(cluster string) (found bool, err error) {
	paths := h.paths(cluster)
	for _, path := range paths {
		found = found || path != "" && exists(path)
	}
	return found, errors.Join(h.remove(paths), h.sweep(cluster))
}

func (h Home) remove(paths []string) error {
	var errs []error
	for _, path := range paths {
		if path != "" {
			errs = append(errs, disk.Remove(path))
			h.reached("removed")
		}
	}
	return errors.Join(errs...)
}

func (h Home) reached(point string) {
	if h.cut != nil {
		h.cut(point)
	}
}
