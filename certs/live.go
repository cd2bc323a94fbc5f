package certs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// live is a value parsed from files that is parsed again after they changed.
// get may be called from several goroutines.
type live[T any] struct {
	paths []string
	parse func(contents [][]byte) (T, error)
	log   *slog.Logger
	// gone has a file that is gone later read as one with nothing in it.
	gone bool

	mu       sync.Mutex
	value    T
	contents [][]byte // what value was parsed from
	version  uint64   // counts the values
	seen     []sighting
	problem  string // the last one logged; empty when the files are good
}

// settleTime is how long a file must have been unchanged before its metadata is
// trusted. File systems stamp writes with a coarse clock: two writes of equal
// length within one tick cannot be told apart by their metadata.
const settleTime = 2 * time.Second

// sighting is what a file looked like just before it was read.
type sighting struct {
	info    fs.FileInfo
	settled bool
}

// newLive parses the files for the first time. The value it returns later is
// never older than that.
func newLive[T any](paths []string, log *slog.Logger, parse func([][]byte) (T, error)) (*live[T], error) {
	l := &live[T]{paths: paths, parse: parse, log: log}
	err := l.reload()
	return l, err
}

// get returns the value of the files as they are now. When they cannot be read
// or do not make sense, perhaps because somebody is just writing them, it
// returns the last value that did, logs the reason once, and looks again next
// time.
func (l *live[T]) get() T {
	value, _ := l.current()
	return value
}

// current is get with a number that changes with the value.
func (l *live[T]) current() (T, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.follow()
	return l.value, l.version
}

func (l *live[T]) follow() {
	if l.unchanged() {
		return
	}
	before := l.contents
	if err := l.reload(); err != nil {
		l.complain(err)
		return
	}
	if l.problem != "" || !slices.EqualFunc(before, l.contents, bytes.Equal) {
		l.problem = ""
		l.log.Info("reloaded certificate files", "files", strings.Join(l.paths, " "))
	}
}

func (l *live[T]) complain(err error) {
	l.seen = nil
	if err.Error() == l.problem {
		return
	}
	l.problem = err.Error()
	l.log.Warn("kept the previous certificate because the new files are not usable", "err", err)
}

func (l *live[T]) unchanged() bool {
	for i, path := range l.paths {
		if i >= len(l.seen) || !l.seen[i].settled {
			return false
		}
		info, err := os.Stat(path)
		if err != nil || !sameFile(info, l.seen[i].info) {
			return false
		}
	}
	return true
}

func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func (l *live[T]) reload() error {
	seen, contents, err := readAll(l.paths, l.gone && l.contents != nil)
	if err != nil {
		return err
	}
	if l.contents != nil && slices.EqualFunc(contents, l.contents, bytes.Equal) {
		l.seen = seen
		return nil
	}
	value, err := l.parse(contents)
	if err != nil {
		return err
	}
	l.value, l.seen, l.contents = value, seen, contents
	l.version++
	return nil
}

func readAll(paths []string, gone bool) ([]sighting, [][]byte, error) {
	var seen []sighting
	var contents [][]byte
	for _, path := range paths {
		s, data, err := read(path)
		if err != nil && !(gone && errors.Is(err, fs.ErrNotExist)) {
			return nil, nil, err
		}
		seen, contents = append(seen, s), append(contents, data)
	}
	return seen, contents, nil
}

// maxFile bounds what is read: a CA bundle of a thousand entries fits.
const maxFile = 2 << 20

func read(path string) (sighting, []byte, error) {
	now := time.Now()
	info, err := os.Stat(path)
	if err != nil {
		return sighting{}, nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return sighting{}, nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, maxFile)
	}
	data, err := os.ReadFile(path)
	return sighting{info: info, settled: now.Sub(info.ModTime()) > settleTime}, data, err
}
