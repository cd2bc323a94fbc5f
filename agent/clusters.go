package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// removalGrace is how long a cluster file must be absent before its cluster
// counts as removed: editors and configuration tools replace files by deleting
// and creating them, and a drain is not something to do by accident.
const removalGrace = time.Second

// directory is what the clusters directory said when it was last read: the
// last good file per cluster, and what is wrong with the others.
type directory struct {
	path     string
	place    place
	files    map[string]knownFile
	problems map[string]string // by file name
	absent   absences          // known files that are missing, since when
}

type knownFile struct {
	file clusterfile.File
	raw  []byte
}

// directoryChange is what one reading of the directory changed.
type directoryChange struct {
	set     map[string]clusterfile.File // new or changed clusters
	removed []string
	leaving []string // missing for less than the grace
}

func newDirectory(path string) *directory {
	return &directory{path: path, files: map[string]knownFile{}, problems: map[string]string{}, absent: absences{}}
}

// expect names clusters of which the maps still hold something: without a file
// they are removed like any other.
func (d *directory) expect(names []string) {
	for _, name := range names {
		d.files[name] = knownFile{}
	}
}

// scan reads the directory once. A file that is unreadable or invalid keeps
// its last good state; only a file that is gone, and still gone after the
// grace, removes its cluster. recheck is when to scan again at the latest, or
// 0.
func (d *directory) scan(now time.Time) (c directoryChange, recheck time.Duration, err error) {
	entries, err := d.place.list(d.path)
	if err != nil {
		return c, 0, fmt.Errorf("read clusters directory %q: %w; create it or correct --clusters", d.path, err)
	}
	c.set = map[string]clusterfile.File{}
	d.problems = map[string]string{}
	present := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		info, err := os.Stat(filepath.Join(d.path, name))
		if strings.HasPrefix(name, ".") || err != nil || !info.Mode().IsRegular() {
			continue
		}
		present[name] = true
		if d.read(name) {
			c.set[name] = d.files[name].file
		}
	}
	c.removed, recheck = d.missing(present, now)
	c.leaving = slices.Sorted(maps.Keys(d.absent))
	return c, recheck, nil
}

// read takes in one file and tells whether it is new or changed.
func (d *directory) read(name string) bool {
	f, raw, err := clusterfile.Read(filepath.Join(d.path, name))
	old, known := d.files[name]
	switch {
	case errors.Is(err, clusterfile.ErrNotClusterFile) && !known:
		return false
	case err == nil:
		err = schema.ValidateClusterName(name)
	}
	if err != nil {
		d.problems[name] = fmt.Sprintf("%s: %v", filepath.Join(d.path, name), err)
		return false
	}
	if known && bytes.Equal(old.raw, raw) {
		return false
	}
	d.files[name] = knownFile{file: f, raw: raw}
	return true
}

func (d *directory) missing(present map[string]bool, now time.Time) (removed []string, recheck time.Duration) {
	removed, recheck = d.absent.over(maps.Keys(d.files), present, now)
	for _, name := range removed {
		delete(d.files, name)
	}
	return removed, recheck
}

// problemLines lists the problems, sorted by file.
func (d *directory) problemLines() []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(d.problems)) {
		lines = append(lines, d.problems[name])
	}
	return lines
}

// follow scans the directory now and after every change of it, and hands each
// result to fn, until ctx ends.
func (d *directory) follow(ctx context.Context, fn func(directoryChange, []string)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch clusters directory: %w", err)
	}
	defer w.Close()
	if err := w.Add(d.path); err != nil {
		return fmt.Errorf("watch clusters directory %q: %w; create it or correct --clusters", d.path, err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
		case <-w.Errors: // an overflow lost events: what counts is the directory as it is now
		case <-timer.C:
		}
		change, recheck, err := d.scan(time.Now())
		problems := d.problemLines()
		if err != nil {
			problems = append(problems, err.Error())
			recheck = removalGrace
		}
		timer.Reset(again(w, d.path, recheck))
		fn(change, problems)
	}
}

// place is which directory a path led to.
type place struct{ info os.FileInfo }

// list reads a directory. One that has taken the place of another and holds
// nothing at all is an error: it is what is left where something was unmounted,
// and nobody means by it that all is to go.
func (p *place) list(path string) ([]os.DirEntry, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 && p.info != nil && !os.SameFile(info, p.info) {
		return nil, errors.New("another directory, which is empty, has taken its place, so what was in it holds on")
	}
	p.info = info
	return entries, nil
}

// rescan is how often directories are read although no change was told of: their
// place may have been taken by others, and some file systems tell of nothing.
const rescan = 10 * time.Second

// again watches the directory that has the name now, since another may have
// taken the place of the one before, and returns when to read it at the latest:
// after recheck, unless that is 0.
func again(w *fsnotify.Watcher, path string, recheck time.Duration) time.Duration {
	if w.Add(path) != nil {
		return removalGrace
	}
	if recheck > 0 {
		return min(recheck, rescan)
	}
	return rescan
}
