package kvstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
)

// Memory is a store in memory with etcd's semantics: revisions that begin at 1,
// reads and watches at old revisions, compaction, transactions. It is the store
// of tests and simulations, so it also has the faults that a server can show
// ([Memory.SetFault], [Memory.BreakWatches], [Memory.NewLife],
// [Memory.SetPageCap]). History is kept until [Memory.Compact]. Its methods are
// safe for concurrent use.
type Memory struct {
	mu        sync.Mutex
	life      uint64
	revision  int64
	compacted int64
	versions  map[string][]version
	keys      []string // every key of versions, sorted unless unsorted is set
	unsorted  bool
	log       []Change // every change since compacted, in revision order

	changed  chan struct{} // closed and replaced at every new revision
	broken   chan struct{} // closed and replaced when watches are broken
	breakErr error
	fault    func(Fault) error
	pageCap  int64
	progress string // prefix of ReportProgress
}

// version is what a key became at a revision.
type version struct {
	value    []byte
	revision int64
	deleted  bool
}

// NewMemory returns an empty store at revision 1 in a life of its own.
func NewMemory() *Memory {
	m := &Memory{changed: make(chan struct{}), broken: make(chan struct{})}
	m.clear()
	return m
}

func (m *Memory) clear() {
	m.life = rand.Uint64() | 1
	m.revision, m.compacted = 1, 0
	m.versions = make(map[string][]version)
	m.keys, m.unsorted, m.log = nil, false, nil
}

// Range implements Reader.
func (m *Memory) Range(ctx context.Context, start, end string, limit, revision int64) (Range, error) {
	if err := m.enter(ctx, Fault{Op: FaultRange, Key: start}); err != nil {
		return Range{}, fmt.Errorf("range %q: %w", start, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	at, err := m.readable(revision)
	if err != nil {
		return Range{}, fmt.Errorf("range %q at revision %d: %w", start, revision, err)
	}
	if m.pageCap > 0 && (limit == 0 || limit > m.pageCap) {
		limit = m.pageCap
	}
	kvs, more := m.read(span{start, end}, limit, at)
	return Range{KVs: kvs, Revision: m.revision, Life: m.life, More: more}, nil
}

func (m *Memory) readable(revision int64) (int64, error) {
	switch {
	case revision <= 0:
		return m.revision, nil
	case revision < m.compacted:
		return 0, ErrCompacted
	case revision > m.revision:
		return 0, fmt.Errorf("the store is at revision %d: %w", m.revision, ErrLifeChanged)
	}
	return revision, nil
}

func (m *Memory) read(in span, limit, at int64) (kvs []KV, more bool) {
	keys := m.sorted()
	for _, key := range keys[sort.SearchStrings(keys, in.start):] {
		if !in.contains(key) {
			break
		}
		v, ok := versionAt(m.versions[key], at)
		if !ok {
			continue
		}
		if limit > 0 && int64(len(kvs)) == limit {
			return kvs, true
		}
		kvs = append(kvs, KV{Key: key, Value: v.value, ModRevision: v.revision})
	}
	return kvs, false
}

func (m *Memory) sorted() []string {
	if m.unsorted {
		slices.Sort(m.keys)
		m.unsorted = false
	}
	return m.keys
}

func versionAt(versions []version, at int64) (version, bool) {
	for _, v := range slices.Backward(versions) {
		if v.revision <= at {
			return v, !v.deleted
		}
	}
	return version{}, false
}

// Apply implements Writer. As in etcd, deleting an absent key is no change, and
// ops without any change make no revision.
func (m *Memory) Apply(ctx context.Context, ops []Op) error {
	if err := m.enter(ctx, Fault{Op: FaultApply, Ops: ops}); err != nil {
		return fmt.Errorf("apply %d operations: %w", len(ops), err)
	}
	if err := checkOps(ops); err != nil {
		return err
	}
	m.commit(ops)
	if err := m.enter(ctx, Fault{Op: FaultApplied, Ops: ops}); err != nil {
		return fmt.Errorf("apply %d operations: %w", len(ops), err)
	}
	return nil
}

func checkOps(ops []Op) error {
	seen := make(map[string]struct{}, len(ops))
	for _, op := range ops {
		if op.Key == "" {
			return errors.New("apply operations: an operation has no key")
		}
		seen[op.Key] = struct{}{}
	}
	if len(seen) != len(ops) {
		return errors.New("apply operations: a key occurs twice")
	}
	return nil
}

func (m *Memory) commit(ops []Op) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.log)
	for _, op := range ops {
		m.write(op, m.revision+1)
	}
	if len(m.log) > before {
		m.revision++
		m.announce()
	}
}

func (m *Memory) write(op Op, revision int64) {
	old, known := m.versions[op.Key]
	if op.Delete && (!known || old[len(old)-1].deleted) {
		return
	}
	if !known {
		m.unsorted = m.unsorted || len(m.keys) > 0 && m.keys[len(m.keys)-1] > op.Key
		m.keys = append(m.keys, op.Key)
	}
	value := op.Value
	if op.Delete {
		value = nil
	}
	m.versions[op.Key] = append(old, version{value, revision, op.Delete})
	m.log = append(m.log, Change{KV{op.Key, value, revision}, op.Delete})
}

func (m *Memory) announce() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Watch implements Reader. Revision 0 means from now on.
func (m *Memory) Watch(ctx context.Context, start, end string, revision int64, fn func(Changes) error) error {
	if err := m.enter(ctx, Fault{Op: FaultWatch, Key: start}); err != nil {
		return fmt.Errorf("watch %q: %w", start, err)
	}
	w := m.open(span{start, end}, revision)
	for first := true; ; first = false {
		batch, passed, changed, err := m.collect(&w)
		if err != nil {
			return fmt.Errorf("watch %q from revision %d: %w", start, revision, err)
		}
		if first || passed || len(batch.Changes) > 0 {
			if err := fn(batch); err != nil {
				return err
			}
		}
		if err := m.wait(ctx, changed, w.broken); err != nil {
			return fmt.Errorf("watch %q: %w", start, err)
		}
	}
}

// watch is the place of one watcher in the log.
type watch struct {
	span
	next   int64
	broken <-chan struct{}
}

func (m *Memory) open(in span, revision int64) watch {
	m.mu.Lock()
	defer m.mu.Unlock()
	if revision <= 0 {
		revision = m.revision + 1
	}
	return watch{span: in, next: revision, broken: m.broken}
}

// collect returns what a watch has not got yet, and whether it passes a key of
// whose changes all watches are told.
func (m *Memory) collect(w *watch) (_ Changes, passed bool, _ <-chan struct{}, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.next < m.compacted {
		return Changes{}, false, nil, ErrCompacted
	}
	batch := Changes{Revision: m.revision, Life: m.life}
	first := sort.Search(len(m.log), func(i int) bool { return m.log[i].ModRevision >= w.next })
	for _, change := range m.log[first:] {
		passed = passed || m.progress != "" && strings.HasPrefix(change.Key, m.progress)
		if w.contains(change.Key) {
			batch.Changes = append(batch.Changes, change)
		}
	}
	w.next = max(w.next, m.revision+1)
	return batch, passed, m.changed, nil
}

// ReportProgress makes all watches report progress when a key with the prefix
// is written, as kvstore/server does for markers.
func (m *Memory) ReportProgress(prefix string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress = prefix
}

func (m *Memory) wait(ctx context.Context, changed, broken <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-broken:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.breakErr
	case <-changed:
		return nil
	}
}

// Revision returns the current revision.
func (m *Memory) Revision() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision
}

// Compact forgets what was before revision: reads at and watches from an older
// one fail with ErrCompacted from now on.
func (m *Memory) Compact(revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.compacted = max(m.compacted, min(revision, m.revision))
	keep := sort.Search(len(m.log), func(i int) bool { return m.log[i].ModRevision >= m.compacted })
	m.log = slices.Clone(m.log[keep:])
	for key, versions := range m.versions {
		if rest := compactVersions(versions, m.compacted); len(rest) > 0 {
			m.versions[key] = rest
		} else {
			delete(m.versions, key)
		}
	}
	m.keys = slices.DeleteFunc(m.keys, func(key string) bool { return m.versions[key] == nil })
}

// compactVersions drops what no read at or after the revision can see.
func compactVersions(versions []version, at int64) []version {
	for len(versions) > 1 && versions[1].revision <= at {
		versions = versions[1:]
	}
	if versions[0].deleted && versions[0].revision <= at {
		versions = versions[1:]
	}
	return slices.Clone(versions)
}

// span is a range of keys as etcd understands it.
type span struct{ start, end string }

func (s span) contains(key string) bool {
	if s.end == "" {
		return key == s.start
	}
	return key >= s.start && (s.end == noEnd || key < s.end)
}
