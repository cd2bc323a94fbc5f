package kvstoretest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
)

// errEnough ends a watch that has seen what it waited for.
var errEnough = errors.New("enough")

// watch follows the prefix from a revision until enough says so, and returns
// all changes.
func (f fixture) watch(revision int64, enough func([]kvstore.Change) bool) []kvstore.Change {
	f.t.Helper()
	return f.watchRange(f.Prefix, kvstore.PrefixEnd(f.Prefix), revision, nil, enough)
}

func (f fixture) watchRange(start, end string, revision int64, begun func(), enough func([]kvstore.Change) bool) []kvstore.Change {
	f.t.Helper()
	var all []kvstore.Change
	complete := int64(0)
	err := f.Reader.Watch(f.ctx, start, end, revision, func(c kvstore.Changes) error {
		if begun != nil {
			begun()
			begun = nil
		}
		if c.Revision < complete {
			return fmt.Errorf("complete up to %d after %d", c.Revision, complete)
		}
		for _, change := range c.Changes {
			if change.ModRevision <= complete || change.ModRevision < revision {
				return fmt.Errorf("change of %q at revision %d came late: watched from %d, complete up to %d", change.Key, change.ModRevision, revision, complete)
			}
		}
		complete = c.Revision
		all = append(all, c.Changes...)
		if enough(all) {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		f.t.Fatalf("watch %q from revision %d after %d changes: %v", start, revision, len(all), err)
	}
	return all
}

func count(n int) func([]kvstore.Change) bool {
	return func(all []kvstore.Change) bool { return len(all) >= n }
}

func testWatchFrom(f fixture) {
	f.apply(put("a", "1"))
	from := f.page("", 0, 0).Revision + 1
	f.apply(put("a", "2"), put("b", "1"))
	f.apply(del("b"))
	f.apply(put("a", "3"))
	got := f.watch(from, count(4))
	f.equal("history", f.changes(got), []string{"a=2", "b=1", "-b", "a=3"})
	if got[0].ModRevision != from || got[1].ModRevision != from || got[3].ModRevision != from+2 {
		f.t.Fatalf("revisions from %d on: %d, %d, %d", from, got[0].ModRevision, got[1].ModRevision, got[3].ModRevision)
	}
	f.equal("from its middle", f.changes(f.watch(from+1, count(2))), []string{"-b", "a=3"})
}

func testWatchLive(f fixture) {
	from := f.page("", 0, 0).Revision + 1
	written := make(chan error, 1)
	begun := func() {
		go func() {
			var err error
			for i := range 50 {
				err = errors.Join(err, f.Store.Apply(f.ctx, []kvstore.Op{{Key: f.Prefix + "k", Value: fmt.Append(nil, i)}}))
			}
			written <- err
		}()
	}
	got := f.watchRange(f.Prefix, kvstore.PrefixEnd(f.Prefix), from, begun, count(50))
	if err := <-written; err != nil {
		f.t.Fatal(err)
	}
	for i, change := range got {
		if string(change.Value) != fmt.Sprint(i) {
			f.t.Fatalf("change %d has value %s", i, change.Value)
		}
	}
}

func testWatchSingle(f fixture) {
	from := f.page("", 0, 0).Revision + 1
	f.apply(put("a", "1"))
	f.apply(put("a/b", "1"), put("a\x00", "1"))
	f.apply(put("a", "2"))
	got := f.watchRange(f.Prefix+"a", "", from, nil, count(2))
	f.equal("changes of one key", f.changes(got), []string{"a=1", "a=2"})
}

func testWatchEnds(f fixture) {
	from := f.page("", 0, 0).Revision + 1
	ctx, cancel := context.WithCancel(f.ctx)
	ended := make(chan error, 1)
	begun := make(chan struct{}, 1)
	go func() {
		ended <- f.Reader.Watch(ctx, f.Prefix, kvstore.PrefixEnd(f.Prefix), from, func(kvstore.Changes) error {
			select {
			case begun <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	f.await("watch in place", begun)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		f.t.Fatalf("canceled watch ended with %v", err)
	}
}

// await waits for an event, with a deadline only a broken store misses.
func (f fixture) await(what string, event <-chan struct{}) {
	f.t.Helper()
	select {
	case <-event:
	case <-time.After(30 * time.Second):
		f.t.Fatalf("%s: did not happen", what)
	}
}
