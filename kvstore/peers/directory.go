package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// maxFileBytes bounds a peer's file and a CA file.
	maxFileBytes = 1 << 20
	// maxPeers bounds the directory, and with it every list and label made of
	// peers.
	maxPeers = 512
	// removalGrace is how long a file must be gone before its peer is removed:
	// some editors and copy tools replace a file in two steps.
	removalGrace = 500 * time.Millisecond
	// rescan is for file systems that do not tell of changes.
	rescan = 10 * time.Second
)

// Directory follows a directory of peers: every file NAME.yaml is the peer
// NAME, other files (CAs, for instance) are ignored.
//
//	ca: own                     # our own CA signs its certificates, as for those who join;
//	                            # or the PEM text of its CA, or in place of ca:
//	# ca-file: west-ca.crt      # PEM, relative to the directory
//	identity:
//	  uri: spiffe://west.example/clustermesh   # or dns: a name, or common-name: remote-west
//	sees: all                   # or:
//	# sees:
//	#   namespaces: [shop]
//	#   services: [web/api]
//	#   nodes: all              # nodes, identities, addresses: all or none (default)
//	expires: 2030-01-31T00:00:00Z                # optional
//	revoked: false                               # optional
//	revoked-certificates: []                     # optional: SHA-256 sums in hex
//	shares-ca-with: []                           # optional: peers that may have the same CA
//	accepts: {cluster-id: 2}                     # optional: what agents take from the peer; ours ignores it
//
// Its methods are safe for concurrent use.
type Directory struct {
	path string
	own  Own
	log  *slog.Logger
	set  *Set

	mu       sync.Mutex
	files    map[string]*entry // by peer
	problems map[string]string // by file
}

// entry is what is known of one peer's file.
type entry struct {
	content string // of the file and its CA file, as last read
	peer    *Peer  // what content says; nil if that is bad
	inForce *Peer  // the last good one that does not conflict; nil if none
	gone    time.Time
	caDir   string
}

// NewDirectory returns a directory that has not been read. own is what ca: own
// stands for; with nil such a file is refused. A nil log is discarded.
func NewDirectory(path string, own Own, log *slog.Logger) *Directory {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Directory{path: filepath.Clean(path), own: own, log: log, set: NewSet(), files: map[string]*entry{}, problems: map[string]string{}}
}

// Set returns the set that holds the directory's peers.
func (d *Directory) Set() *Set { return d.set }

// Problems lists what is wrong now, each with file, field, value and remedy,
// sorted.
func (d *Directory) Problems() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var lines []string
	for _, file := range slices.Sorted(maps.Keys(d.problems)) {
		lines = append(lines, d.problems[file])
	}
	return lines
}

// Load reads the directory once. Bad files are problems; the error is that the
// directory itself cannot be read, and then nothing changes.
func (d *Directory) Load() error {
	_, err := d.scan(time.Now())
	return err
}

// Run keeps the set equal to the directory until ctx ends, and then returns
// nil. It fails only if the directory cannot be read at the start; later that
// is a problem, and all peers stay.
func (d *Directory) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch peers: %w", err)
	}
	defer w.Close() //nolint:errcheck // nothing was written
	if err := d.look(w); err != nil {
		return err
	}
	if err := d.Load(); err != nil {
		return err
	}
	d.follow(ctx, w)
	return nil
}

// look watches the directory that has the name now, and those of CA files.
func (d *Directory) look(w *fsnotify.Watcher) error {
	if err := w.Add(d.path); err != nil {
		return fmt.Errorf("watch peers directory %q: %w; create it or correct the setting", d.path, err)
	}
	for _, dir := range d.caDirs() {
		if err := w.Add(dir); err != nil {
			d.log.Debug("failed to watch directory of a CA file, it is read every few seconds", "path", dir, "err", err)
		}
	}
	return nil
}

func (d *Directory) caDirs() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	dirs := map[string]bool{}
	for _, e := range d.files {
		if e.caDir != "" && e.caDir != d.path {
			dirs[e.caDir] = true
		}
	}
	return slices.Sorted(maps.Keys(dirs))
}

func (d *Directory) follow(ctx context.Context, w *fsnotify.Watcher) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Events:
		case <-w.Errors: // an overflow: what counts is the directory as it is now
		case <-timer.C:
		}
		recheck, err := d.scan(time.Now())
		if err != nil || d.look(w) != nil {
			recheck = removalGrace
		}
		timer.Reset(recheck)
	}
}

// scan reads all files, puts the peers in force, and returns when to scan again
// at the latest.
func (d *Directory) scan(now time.Time) (time.Duration, error) {
	names, err := d.list()
	d.mu.Lock()
	defer d.mu.Unlock()
	before := maps.Clone(d.problems)
	clear(d.problems)
	if err != nil {
		d.problem(d.path, err)
		d.report(before)
		return removalGrace, err
	}
	for name, path := range names {
		d.read(name, path)
	}
	removed, recheck := d.missing(names, now)
	d.settle(removed)
	d.report(before)
	return recheck, nil
}

// list returns the peers' files by name.
func (d *Directory) list() (map[string]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("read peers directory: %w; create it or correct the setting", err)
	}
	names := map[string]string{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".yaml")
		if ok && !strings.HasPrefix(name, ".") {
			names[name] = filepath.Join(d.path, e.Name())
		}
	}
	if len(names) > maxPeers {
		return nil, fmt.Errorf("read peers directory %q: %d files; at most %d peers are allowed", d.path, len(names), maxPeers)
	}
	return names, nil
}

// read looks at one file.
func (d *Directory) read(name, path string) {
	e := d.files[name]
	if e == nil {
		e = new(entry)
		d.files[name] = e
	}
	e.gone = time.Time{}
	f, ca, content, err := d.load(path, e)
	if err == nil && (content != e.content || e.peer == nil) {
		e.peer, err = f.peer(name, ca, d.own)
		e.content = content
	}
	if err != nil {
		e.peer, e.content = nil, ""
		d.problem(path, err)
	}
}

// load reads a peer's file and its CA file.
func (d *Directory) load(path string, e *entry) (f *file, ca []byte, content string, err error) {
	raw, err := readBounded(path)
	if err != nil {
		return nil, nil, "", err
	}
	if f, err = parseFile(raw); err != nil {
		return nil, nil, "", err
	}
	if f.CAFile != "" {
		at := f.CAFile
		if !filepath.IsAbs(at) {
			at = filepath.Join(d.path, at)
		}
		e.caDir = filepath.Dir(at)
		if ca, err = readBounded(at); err != nil {
			return nil, nil, "", fmt.Errorf("ca-file %q: %w", f.CAFile, err)
		}
	}
	return f, ca, string(raw) + "\x00" + string(ca), nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w; create it, or make it readable for user %d", err, os.Getuid())
	}
	switch {
	case !info.Mode().IsRegular() || info.Size() > maxFileBytes:
		return nil, fmt.Errorf("not a regular file of at most %d bytes; replace it", maxFileBytes)
	case info.Mode().Perm()&0o002 != 0:
		return nil, fmt.Errorf("mode %04o lets everybody change who may read this cluster; chmod o-w", info.Mode().Perm())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w; make it readable for user %d", err, os.Getuid())
	}
	defer f.Close() //nolint:errcheck // nothing was written
	raw, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(raw) > maxFileBytes {
		err = errors.New("larger than allowed")
	}
	return bytes.Clone(raw), err
}

// missing forgets the files that are gone for long enough.
func (d *Directory) missing(present map[string]string, now time.Time) (removed bool, recheck time.Duration) {
	recheck = rescan
	for name, e := range d.files {
		if _, ok := present[name]; ok {
			continue
		}
		if e.gone.IsZero() {
			e.gone = now
		}
		if left := removalGrace - now.Sub(e.gone); left > 0 {
			recheck = min(recheck, left)
			continue
		}
		delete(d.files, name)
		removed = true
	}
	return removed, recheck
}

func (d *Directory) problem(path string, err error) {
	d.problems[path] = strings.ReplaceAll(fmt.Sprintf("%s: %v", path, err), "\n", "; ")
}

// report logs problems that are new, and those that are over.
func (d *Directory) report(before map[string]string) {
	for path, text := range d.problems {
		if before[path] != text {
			d.log.Warn("peer file is not usable, its last good state stays", "err", text)
		}
	}
	for path := range before {
		if d.problems[path] == "" {
			d.log.Info("peer file is good again", "path", path)
		}
	}
}
