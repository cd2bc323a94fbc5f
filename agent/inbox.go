package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
)

// inbox is what was read of a cluster and is not yet handed to the core. One
// goroutine puts, another one takes. What piles up while the cluster has to wait
// is handed over together, which costs less: so a cluster that steadily sends a
// little more than it may comes later by milliseconds, and not ever later.
type inbox struct {
	filled, emptied chan struct{} // tokens

	mu      sync.Mutex
	updates []kvstore.Update
	changes int // read since the last taking, and their size
	bytes   int
	closed  bool
}

// What may be read ahead, besides one update.
const (
	mostAhead      = 4 * mostPiece
	mostAheadBytes = 4 * pieceBytes
)

func newInbox() *inbox {
	return &inbox{filled: make(chan struct{}, 1), emptied: make(chan struct{}, 1)}
}

// put adds an update, of which it keeps no slice, when there is room.
func (b *inbox) put(ctx context.Context, u kvstore.Update) error {
	for !b.add(u) {
		select {
		case <-b.emptied:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	signal(b.filled)
	return nil
}

func (b *inbox) add(u kvstore.Update) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changes >= mostAhead || b.bytes >= mostAheadBytes {
		return false
	}
	b.changes += len(u.Changes)
	for _, c := range u.Changes {
		b.bytes += len(c.Key) + len(c.Value)
	}
	if n := len(b.updates); n > 0 && isLive(b.updates[n-1]) && isLive(u) {
		last := &b.updates[n-1]
		last.Changes, last.Revision = append(last.Changes, u.Changes...), u.Revision
		return true
	}
	u.Changes = slices.Clone(u.Changes)
	b.updates = append(b.updates, u)
	return true
}

// isLive tells whether an update is of a watch, and no part of a list.
func isLive(u kvstore.Update) bool { return u.Complete && !u.Synced }

// take waits for updates and returns all there are, with what reading them took.
// It returns none when the inbox is closed and empty, or ctx has ended.
func (b *inbox) take(ctx context.Context) (updates []kvstore.Update, took time.Duration) {
	for {
		updates, took, closed := b.empty()
		if len(updates) > 0 || closed {
			signal(b.emptied)
			return updates, took
		}
		select {
		case <-b.filled:
		case <-ctx.Done():
			return nil, 0
		}
	}
}

func (b *inbox) empty() (updates []kvstore.Update, took time.Duration, closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	updates, took = b.updates, readingCost(b.changes, b.bytes)
	b.updates, b.changes, b.bytes = nil, 0, 0
	return updates, took, b.closed
}

// close says that nothing more is put.
func (b *inbox) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	signal(b.filled)
}

// signal leaves a token, unless there is one.
func signal(tokens chan struct{}) {
	select {
	case tokens <- struct{}{}:
	default:
	}
}
