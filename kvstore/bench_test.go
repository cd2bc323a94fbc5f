package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore"
)

// feed is a Reader that lists n keys and then delivers events, batch at a time.
type feed struct {
	keys   []string
	value  []byte
	events int
	batch  int
}

func newFeed(n, events, batch int) *feed {
	f := &feed{value: make([]byte, 512), events: events, batch: batch}
	for i := range n {
		f.keys = append(f.keys, fmt.Sprintf("cilium/state/services/v1/cluster1/namespace/%07d", i))
	}
	return f
}

func (f *feed) Range(_ context.Context, start, _ string, limit, _ int64) (kvstore.Range, error) {
	first := 0
	if len(start) > len(f.keys[0]) {
		fmt.Sscanf(start[len(f.keys[0])-7:], "%d", &first)
		first++
	}
	last := min(first+int(limit), len(f.keys))
	r := kvstore.Range{Revision: 1, Life: 1, More: last < len(f.keys)}
	for _, key := range f.keys[first:last] {
		r.KVs = append(r.KVs, kvstore.KV{Key: key, Value: f.value, ModRevision: 1})
	}
	return r, nil
}

func (f *feed) Watch(_ context.Context, _, _ string, from int64, fn func(kvstore.Changes) error) error {
	c := kvstore.Changes{Life: 1, Changes: make([]kvstore.Change, f.batch)}
	for n := 0; n < f.events; n += f.batch {
		for i := range c.Changes {
			f.value[n%256]++ // a new value every time
			c.Changes[i] = kvstore.Change{KV: kvstore.KV{Key: f.keys[(n+i)*7919%len(f.keys)], Value: f.value, ModRevision: from}}
		}
		c.Revision = from
		from++
		if err := fn(c); err != nil {
			return err
		}
	}
	return errStop
}

func nothing(kvstore.Update) error { return nil }

func BenchmarkWatcherLive(b *testing.B) {
	for _, batch := range []int{1, 16} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "cilium/state/services/v1/cluster1/"})
			f := newFeed(10_000, b.N, batch)
			b.ReportAllocs()
			b.ResetTimer()
			if err := w.Follow(b.Context(), f, nothing); !errors.Is(err, errStop) {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkWatcherList(b *testing.B) {
	const keys = 100_000
	f := newFeed(keys, 0, 1)
	for _, again := range []bool{false, true} {
		b.Run(fmt.Sprintf("known=%t", again), func(b *testing.B) {
			w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "cilium/state/services/v1/cluster1/"})
			w.Follow(b.Context(), f, nothing)
			for b.Loop() {
				if !again {
					w = kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "cilium/state/services/v1/cluster1/"})
				}
				w.Follow(b.Context(), f, nothing)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/keys, "ns/key")
		})
	}
}

// BenchmarkWatcherMemory reports what a known key weighs.
func BenchmarkWatcherMemory(b *testing.B) {
	const keys = 100_000
	f := newFeed(keys, 0, 1)
	for b.Loop() {
		before := heap()
		w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "cilium/state/services/v1/cluster1/"})
		w.Follow(b.Context(), f, nothing)
		b.ReportMetric(float64(heap()-before)/keys, "B/key")
		runtime.KeepAlive(w)
	}
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// BenchmarkPublisher measures a key's way from Put to the acknowledged
// transaction, the store being a Memory (whose part is measured apart).
func BenchmarkPublisher(b *testing.B) {
	f := newFeed(100_000, 0, 1)
	m := kvstore.NewMemory()
	p := kvstore.NewPublisher(m, kvstore.PublisherConfig{Prefix: "cilium/"})
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		p.Put(f.keys[i%len(f.keys)], fmt.Append(nil, i))
	}
	p.Synced()
	go func() { ended <- p.Run(ctx) }()
	<-p.Done()
	b.StopTimer()
	cancel()
	<-ended
}

func BenchmarkPublisherUnchanged(b *testing.B) {
	f := newFeed(10_000, 0, 1)
	p := kvstore.NewPublisher(kvstore.NewMemory(), kvstore.PublisherConfig{Prefix: "cilium/"})
	for _, key := range f.keys {
		p.Put(key, f.value)
	}
	b.ReportAllocs()
	for i := range b.N {
		p.Put(f.keys[i%len(f.keys)], f.value)
	}
}

func BenchmarkMemoryApply(b *testing.B) {
	f, m := newFeed(100_000, 0, 1), kvstore.NewMemory()
	ops := make([]kvstore.Op, 128)
	for n := 0; n < b.N; n += len(ops) {
		for i := range ops {
			ops[i] = kvstore.Op{Key: f.keys[(n+i)%len(f.keys)], Value: f.value}
		}
		if err := m.Apply(b.Context(), ops); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkConnWatch is one event from a store through gRPC on loopback into a
// watcher's sink.
func BenchmarkConnWatch(b *testing.B) {
	m := kvstore.NewMemory()
	conn := dialMemory(b, &etcdServer{store: m})
	w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/"})
	got := make(chan struct{})
	ctx, cancel := context.WithCancel(b.Context())
	go w.Follow(ctx, conn, func(u kvstore.Update) error {
		if u.Synced || len(u.Changes) > 0 {
			got <- struct{}{}
		}
		return nil
	})
	<-got
	b.ResetTimer()
	for i := range b.N {
		if err := m.Apply(ctx, []kvstore.Op{{Key: "p/a", Value: fmt.Append(nil, i)}}); err != nil {
			b.Fatal(err)
		}
		<-got
	}
	cancel()
}
