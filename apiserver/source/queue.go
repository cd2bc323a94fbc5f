package source

import (
	"context"
	"slices"
	"sync"

	"github.com/clustermesh/clustermesh/apiserver/export"
)

// queue collects changes by object until they are taken, so that it never
// holds more than one change of each object. It is safe for concurrent use.
type queue struct {
	mu       sync.Mutex
	changes  map[key]export.Change
	problems map[string]string
	missing  map[string]struct{} // resources not listed yet
	reads    *Reads              // nil until known
	told     bool                // whether Synced was delivered
	news     bool                // whether problems or reads changed
	wake     chan struct{}
	waiting  []chan<- struct{} // closed when what is here now has been delivered
	moved    chan struct{}     // closed at the next update, if anybody waits for it
}

func newQueue(resources ...string) *queue {
	q := &queue{
		changes: map[key]export.Change{}, problems: map[string]string{},
		missing: map[string]struct{}{}, wake: make(chan struct{}, 1),
	}
	for _, r := range resources {
		q.missing[r] = struct{}{}
	}
	return q
}

// update runs fn with the queue locked and wakes the taker.
func (q *queue) update(fn func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	fn()
	if q.moved != nil {
		close(q.moved)
		q.moved = nil
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// await returns when ready, which runs with the queue locked, says so.
func (q *queue) await(ctx context.Context, ready func() bool) error {
	for {
		q.mu.Lock()
		done := ready()
		if !done && q.moved == nil {
			q.moved = make(chan struct{})
		}
		moved := q.moved
		q.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

// flush returns when everything that is in the queue has been delivered.
func (q *queue) flush(ctx context.Context) error {
	delivered := make(chan struct{})
	q.update(func() { q.waiting = append(q.waiting, delivered) })
	select {
	case <-delivered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// decide says which kinds are read, and which resources that adds to those
// that have to be listed.
func (q *queue) decide(r Reads, more []string) {
	q.update(func() {
		q.reads, q.news = &r, true
		delete(q.missing, kindsOrigin)
		for _, name := range more {
			q.missing[name] = struct{}{}
		}
	})
}

// problem sets or, with an empty message, clears what is wrong at an origin.
func (q *queue) problem(origin, message string) {
	q.mu.Lock()
	same := q.problems[origin] == message
	q.mu.Unlock()
	if same {
		return
	}
	q.update(func() {
		q.news = true
		q.problems[origin] = message
		if message == "" {
			delete(q.problems, origin)
		}
	})
}

// take blocks until there is something to deliver or ctx ends.
func (q *queue) take(ctx context.Context) (Batch, error) {
	for {
		if b, ok := q.drain(); ok {
			return b, nil
		}
		select {
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		case <-q.wake:
		}
	}
}

// drain takes everything there is. Until all resources are listed it holds the
// changes back, so that the first batch with changes is complete.
func (q *queue) drain() (Batch, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := Batch{Reads: q.reads, Synced: len(q.missing) == 0, Problems: sortedProblems(q.problems)}
	due := q.news || b.Synced && (!q.told || len(q.changes) > 0 || len(q.waiting) > 0)
	if b.Synced {
		b.Changes, b.waiting = q.takeChanges(), q.waiting
		q.told, q.waiting = true, nil
	}
	q.news = false
	return b, due
}

func (q *queue) takeChanges() []export.Change {
	keys := make([]key, 0, len(q.changes))
	for k := range q.changes {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	changes := make([]export.Change, 0, len(keys))
	for _, k := range keys {
		changes = append(changes, q.changes[k])
	}
	clear(q.changes)
	return changes
}
