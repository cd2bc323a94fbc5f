package source

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// lostDirectory is how often a directory that vanished is looked for. There is
// no event to wait for.
const lostDirectory = time.Second

// Manifests follows a directory of Kubernetes manifests: its files that end in
// .yaml, .yml or .json, not those of sub-directories or with a leading dot.
//
// Every change of a file counts as soon as it is seen; so write a new file and
// rename it into place, as a mounted ConfigMap does. A file that cannot be
// read as a whole is a [Problem], and what it last said stays; so does that of
// a file that became empty, which is what one looks like that is being
// written. Remove a file to remove its objects.
//
// Nothing runs controllers here: a service's backends are what EndpointSlices
// say, and a namespace that is used but not written exists without annotations.
//
// Cilium's objects and ServiceExports are read if the directory has some at the
// start, or as [Wants] says.
type Manifests struct {
	dir   string
	keep  keep
	wants Wants
	asks  chan chan<- error // of CatchUp
}

// NewManifests returns a source that has not begun. In the directory keep it
// remembers the last good state of each file over restarts; if keep is empty,
// a file that is bad at the start has no objects.
func NewManifests(dir, keep string, wants Wants) *Manifests {
	return &Manifests{dir: filepath.Clean(dir), keep: newKeep(dir, keep), wants: wants, asks: make(chan chan<- error)}
}

// Run delivers batches until ctx ends, and then returns nil. The first holds
// all objects of the directory. It fails if the directory cannot be read at
// the start; later that is a Problem.
func (m *Manifests) Run(ctx context.Context, sink Sink) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifests: %w", err)
	}
	defer watcher.Close() //nolint:errcheck // nothing was written
	if err := watcher.Add(m.dir); err != nil {
		return fmt.Errorf("watch manifests in %q: %w; name a directory that exists", m.dir, err)
	}
	f := &folder{dir: m.dir, keep: m.keep, wants: m.wants, files: map[string]*file{}}
	if err := f.scan(); err != nil {
		return err
	}
	deliverFolder(f, sink, true)
	return m.follow(ctx, watcher, f, sink)
}

func deliverFolder(f *folder, sink Sink, first bool) {
	if b, news := f.batch(); news || first {
		sink(b)
	}
}

func (m *Manifests) follow(ctx context.Context, watcher *fsnotify.Watcher, f *folder, sink Sink) error {
	for {
		asked, err := m.await(ctx, watcher)
		if err != nil {
			return orderly(ctx, err)
		}
		err = m.look(watcher, f)
		if err == nil {
			deliverFolder(f, sink, false)
		}
		if asked != nil {
			asked <- err
		}
		if err == nil {
			continue
		}
		if err := m.recover(ctx, watcher, f, sink, err); err != nil {
			return orderly(ctx, err)
		}
		deliverFolder(f, sink, false)
	}
}

// CatchUp returns when the sink has taken what the directory's files say when it
// is called. It fails if the directory cannot be read, or with ctx.
func (m *Manifests) CatchUp(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case m.asks <- answer:
	case <-ctx.Done():
		return fmt.Errorf("read manifests again: %w", ctx.Err())
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("read manifests again: %w", ctx.Err())
	}
}

// await blocks until something happened in the directory or somebody asks, and
// then takes all events there are. What they say does not matter: a scan
// compares the content of files, so lost events and symbolic links are no
// special case.
func (m *Manifests) await(ctx context.Context, watcher *fsnotify.Watcher) (asked chan<- error, err error) {
	select {
	case asked = <-m.asks:
		return asked, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case _, ok := <-watcher.Events:
		err = closed(ok)
	case _, ok := <-watcher.Errors: // an overflow: the scan sees everything
		err = closed(ok)
	}
	for err == nil {
		select {
		case _, ok := <-watcher.Events:
			err = closed(ok)
		case _, ok := <-watcher.Errors:
			err = closed(ok)
		default:
			return nil, nil
		}
	}
	return nil, err
}

// look watches the directory that has the name now, which need not be the one
// that had it before, and scans it.
func (m *Manifests) look(watcher *fsnotify.Watcher, f *folder) error {
	if err := watcher.Add(m.dir); err != nil {
		return fmt.Errorf("watch manifests: %w", err)
	}
	return f.scan()
}

// recover reports that the directory is gone, keeps all objects, and waits
// until it is back.
func (m *Manifests) recover(ctx context.Context, watcher *fsnotify.Watcher, f *folder, sink Sink, err error) error {
	f.lost = err.Error()
	deliverFolder(f, sink, false)
	for ctx.Err() == nil {
		if m.look(watcher, f) == nil {
			return nil
		}
		select {
		case asked := <-m.asks:
			asked <- err
		case <-time.After(lostDirectory):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func orderly(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func closed(ok bool) error {
	if !ok {
		return fmt.Errorf("watch manifests: the watch ended: %w", os.ErrClosed)
	}
	return nil
}
