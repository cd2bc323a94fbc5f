package kvstoretest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/clustermesh/clustermesh/kvstore"
)

// consumer applies updates and lets tests wait for a state.
type consumer struct {
	mu      sync.Mutex
	have    set
	synced  int
	updates int
	deleted int
	news    chan struct{}
}

func newConsumer() *consumer { return &consumer{have: set{}, news: make(chan struct{}, 1)} }

func (c *consumer) take(u kvstore.Update) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.have.apply(u.Changes)
	c.updates += len(u.Changes)
	for _, change := range u.Changes {
		if change.Deleted {
			c.deleted++
		}
	}
	if u.Synced {
		c.synced++
	}
	select {
	case c.news <- struct{}{}:
	default:
	}
	return nil
}

// until waits for a state of the consumer.
func (f fixture) until(what string, c *consumer, reached func() bool) {
	f.t.Helper()
	for {
		c.mu.Lock()
		ok := reached()
		c.mu.Unlock()
		if ok {
			return
		}
		f.await(what, c.news)
	}
}

// start runs a function until the returned stop, or the end of the test.
func (f fixture) start(run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(f.ctx)
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	f.t.Cleanup(func() { stop() })
	return stop
}

func (f fixture) publisher() *kvstore.Publisher {
	return kvstore.NewPublisher(f.Store, kvstore.PublisherConfig{
		Prefix: f.Prefix + "set/", Canary: f.Prefix + "synced", MaxOps: 16, PageSize: 7,
	})
}

func testPublisherToWatcher(f fixture) {
	p, c, want := f.publisher(), newConsumer(), set{}
	f.start(p.Run)
	watcher := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: f.Prefix + "set/", PageSize: 5})
	f.start(func(ctx context.Context) error { return watcher.Follow(ctx, f.Reader, c.take) })
	for i := range 200 {
		key, value := fmt.Sprintf("%sset/%d", f.Prefix, i%60), fmt.Sprint(i)
		p.Put(key, []byte(value))
		want[key] = value
		if i%7 == 0 {
			p.Delete(key)
			delete(want, key)
		}
	}
	p.Synced()
	f.await("publisher done", p.Done())
	f.until("watcher has it all", c, func() bool { return maps.Equal(c.have, want) })
	stored := f.content()
	if stored[f.Prefix+"synced"] == "" {
		f.t.Fatal("no canary was written")
	}
	delete(stored, f.Prefix+"synced")
	f.same("store", stored, want)
}

func testTakeOver(f fixture) {
	f.apply(put("set/kept", "1"), put("set/changed", "1"), put("set/gone", "1"), put("synced", "former"))
	p := f.publisher()
	stop := f.start(p.Run)
	p.Put(f.Prefix+"set/kept", []byte("1"))
	p.Put(f.Prefix+"set/changed", []byte("2"))
	p.Put(f.Prefix+"set/new", []byte("1"))
	from := f.page("", 0, 0).Revision
	f.watch(from, func([]kvstore.Change) bool {
		now := f.content()
		return now[f.Prefix+"set/new"] == "1" && now[f.Prefix+"set/changed"] == "2"
	})
	if now := f.content(); now[f.Prefix+"set/gone"] != "1" || now[f.Prefix+"synced"] != "" {
		f.t.Fatalf("before the set is complete: %v", now)
	}
	p.Synced()
	f.await("publisher done", p.Done())
	got := f.content()
	delete(got, f.Prefix+"synced")
	f.same("store", got, set{f.Prefix + "set/kept": "1", f.Prefix + "set/changed": "2", f.Prefix + "set/new": "1"})
	if s := p.Stats(); s.Puts != 2 || s.Deletes != 1 {
		f.t.Fatalf("repaired with %d puts and %d deletions, want 2 and 1", s.Puts, s.Deletes)
	}
	if err := stop(); err != nil {
		f.t.Fatal(err)
	}
}

func testReconnect(f fixture) {
	f.apply(put("a", "1"), put("b", "1"), put("c", "1"))
	watcher, c := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: f.Prefix, PageSize: 2}), newConsumer()
	follow := func(ctx context.Context) error { return watcher.Follow(ctx, f.Reader, c.take) }
	stop := f.start(follow)
	f.until("first sync", c, func() bool { return c.synced == 1 })
	if err := stop(); !errors.Is(err, context.Canceled) {
		f.t.Fatalf("session ended with %v", err)
	}
	f.apply(del("a"), put("b", "2"), put("d", "1"))
	f.start(follow)
	f.until("second sync", c, func() bool { return c.synced == 2 })
	f.same("consumer", c.have, f.content())
	if c.updates != 3+3 || c.deleted != 1 {
		f.t.Fatalf("the second session brought %d changes with %d deletions, want 3 with 1", c.updates-3, c.deleted)
	}
}
