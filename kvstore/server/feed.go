package server

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// source is the part of etcd's store that the feeder reads.
type source interface {
	Rev() int64
	NewWatchStream() mvcc.WatchStream
}

// feeder fills the ring from one watch on all keys.
type feeder struct {
	store source
	ring  *ring
	log   *slog.Logger
}

// run feeds until ctx ends (nil) or an event cannot be taken. A watch that etcd
// ends, because it fell behind a compaction, is opened again with an empty ring
// at the current revision: a gap is shown to subscribers, never hidden.
func (f *feeder) run(ctx context.Context) error {
	_, _, head := f.ring.stats()
	for ctx.Err() == nil {
		if err := f.follow(ctx, head+1); err != nil {
			return fmt.Errorf("follow embedded etcd: %w", err)
		}
		if ctx.Err() == nil {
			head = f.store.Rev()
			f.ring.reset(head)
			f.log.Warn("watch on the embedded etcd broke, all readers list again", "rev", head)
		}
	}
	return nil
}

// follow appends everything from the given revision on until the watch ends.
func (f *feeder) follow(ctx context.Context, from int64) error {
	ws := f.store.NewWatchStream()
	defer ws.Close()
	// An empty, not nil, end means all keys from the first on.
	if _, err := ws.Watch(ctx, 0, []byte{0}, []byte{}, from); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case reply, ok := <-ws.Chan():
			if !ok || reply.CompactRevision != 0 {
				return nil
			}
			mvcc.ReportEventReceived(len(reply.Events))
			if err := f.take(ctx, reply.Events); err != nil {
				return err
			}
		}
	}
}

// awaitVisible returns once listings show the revision. etcd tells watches of a
// change an instant before it does; a reader that listed right after an event
// would miss what it was just told of. It is a matter of microseconds, unless
// etcd dies in between with its lock held: asking then never returns, so
// somebody else asks.
func (f *feeder) awaitVisible(ctx context.Context, rev int64) {
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		for f.store.Rev() < rev && ctx.Err() == nil {
			runtime.Gosched()
		}
	}()
	select {
	case <-seen:
	case <-ctx.Done():
	}
}

// take splits events into revisions. etcd never splits a revision over two
// replies.
func (f *feeder) take(ctx context.Context, evs []*mvccpb.Event) error {
	for len(evs) > 0 {
		rev, n := evs[0].Kv.ModRevision, 1
		for n < len(evs) && evs[n].Kv.ModRevision == rev {
			n++
		}
		r, err := encodeRevision(rev, evs[:n])
		if err != nil {
			return fmt.Errorf("encode revision %d: %w", rev, err)
		}
		f.awaitVisible(ctx, rev)
		f.ring.append(r)
		evs = evs[n:]
	}
	return nil
}
