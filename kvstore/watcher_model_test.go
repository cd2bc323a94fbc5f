package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/kvstore"
)

// script is a Reader that does, between and inside a watcher's calls, whatever
// rapid draws: it writes to the store, compacts it, breaks, starts another life.
// Everything happens in the watcher's own goroutine, so failures shrink.
type script struct {
	t       *rapid.T
	store   *kvstore.Memory
	calm    bool // no faults: deliver what there is and end
	budget  int  // faulty steps left in this session
	content map[string]string
	counter int

	atList   map[string]string // content when the listing under way began
	atWatch  map[string]string // content the last watch reply completes
	listing  bool
	lives    int // in this session
	answered bool
}

var errStop = errors.New("stop")

func (s *script) draw(label string, n int) int { return rapid.IntRange(0, n-1).Draw(s.t, label) }

// meddle does up to two random things to the store.
func (s *script) meddle() {
	if s.calm {
		return
	}
	for range s.draw("things", 3) {
		switch s.draw("thing", 12) {
		case 0:
			s.store.Compact(s.store.Revision() - int64(s.draw("back", 3)))
		case 1:
			if s.draw("really", 3) == 0 {
				s.newLife()
			}
		default:
			s.write()
		}
	}
}

func (s *script) newLife() {
	s.store.NewLife()
	s.content = map[string]string{}
	if s.answered {
		s.lives++
	}
}

func (s *script) write() {
	ops := map[string]kvstore.Op{}
	for range 1 + s.draw("ops", 4) {
		key := fmt.Sprintf("p/%d", s.draw("key", 8))
		s.counter++
		value := fmt.Sprint(s.counter)
		if s.draw("same", 3) == 0 {
			value = "same"
		}
		ops[key] = kvstore.Op{Key: key, Value: []byte(value), Delete: s.draw("delete", 3) == 0}
	}
	var list []kvstore.Op
	for key, op := range ops {
		list = append(list, op)
		if s.content[key] = string(op.Value); op.Delete {
			delete(s.content, key)
		}
	}
	list = append(list, kvstore.Op{Key: "q/other", Value: fmt.Append(nil, s.counter)})
	if err := s.store.Apply(context.Background(), list); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) Range(ctx context.Context, start, end string, limit, revision int64) (kvstore.Range, error) {
	s.meddle()
	if !s.calm && s.draw("range fault", 12) == 0 {
		return kvstore.Range{}, kvstore.ErrBroken
	}
	if !s.calm && limit > 1 && s.draw("too large", 8) == 0 {
		return kvstore.Range{}, kvstore.ErrReplyTooLarge
	}
	if revision == 0 {
		s.atList, s.listing = maps.Clone(s.content), true
	}
	if !s.calm {
		s.store.SetPageCap(int64(s.draw("page cap", 4)))
	}
	r, err := s.store.Range(ctx, start, end, limit, revision)
	s.answered = s.answered || err == nil
	return r, err
}

func (s *script) Watch(ctx context.Context, start, end string, revision int64, fn func(kvstore.Changes) error) error {
	s.listing = false
	for {
		s.meddle()
		if s.budget--; s.budget < 0 || s.calm && s.budget < 0 {
			return errStop
		}
		if !s.calm && s.draw("watch fault", 10) == 0 {
			return kvstore.ErrBroken
		}
		s.atWatch = maps.Clone(s.content)
		err := s.store.Watch(ctx, start, end, revision, func(c kvstore.Changes) error {
			revision = max(revision, c.Revision+1)
			if err := fn(c); err != nil {
				return err
			}
			return errStop
		})
		if !errors.Is(err, errStop) {
			return err
		}
	}
}

// oracle is a sink that holds the watcher to its promises.
type oracle struct {
	*script
	have   map[string]string
	syncs  int
	refuse bool // sink errors may be drawn
}

var errRefused = errors.New("sink refused")

func (o *oracle) sink(u kvstore.Update) error {
	if o.lives > 0 {
		o.t.Fatalf("an update came after another life had begun: %+v", u)
	}
	next := maps.Clone(o.have)
	for _, c := range u.Changes {
		old, had := next[c.Key]
		switch {
		case c.Deleted && o.listing && !u.Synced:
			o.t.Fatalf("%s was deleted before the listing was complete", c.Key)
		case c.Deleted && !had, !c.Deleted && had && old == string(c.Value):
			o.t.Fatalf("%+v is no difference to %q", c, old)
		case c.Deleted:
			delete(next, c.Key)
		default:
			next[c.Key] = string(c.Value)
		}
	}
	o.compare(u, next)
	if o.refuse && !o.calm && o.draw("sink fault", 8) == 0 {
		return errRefused
	}
	o.have = next
	if u.Synced {
		o.syncs++
	}
	return nil
}

func (o *oracle) compare(u kvstore.Update, next map[string]string) {
	switch {
	case u.Synced && !o.listing:
		o.t.Fatal("synced without a listing")
	case u.Synced && !maps.Equal(next, o.atList):
		o.t.Fatalf("synced with %v, the store had %v", next, o.atList)
	case !u.Synced && !o.listing && !maps.Equal(next, o.atWatch):
		o.t.Fatalf("at revision %d with %v, the store had %v", u.Revision, next, o.atWatch)
	}
}

func TestWatcherAgainstOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := &script{t: rt, store: kvstore.NewMemory(), content: map[string]string{}}
		o := &oracle{script: s, have: map[string]string{}, refuse: true}
		w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/", PageSize: 3, PageBytes: 12})
		for range rapid.IntRange(1, 6).Draw(rt, "sessions") {
			o.session(w, false, 12)
		}
		before := o.syncs
		o.session(w, true, 1)
		if o.syncs != before+1 || !maps.Equal(o.have, s.content) || w.Len() != len(o.have) {
			rt.Fatalf("at rest the sink has %v (%d known), the store %v", o.have, w.Len(), s.content)
		}
	})
}

func (o *oracle) session(w *kvstore.Watcher, calm bool, budget int) {
	o.calm, o.budget, o.lives, o.answered, o.listing = calm, budget, 0, false, false
	o.store.SetPageCap(0)
	err := w.Follow(context.Background(), o.script, o.sink)
	known := []error{errStop, errRefused, kvstore.ErrBroken, kvstore.ErrLifeChanged, kvstore.ErrCompacted}
	for _, k := range known {
		if errors.Is(err, k) {
			return
		}
	}
	o.t.Fatalf("session ended with %v", err)
}
