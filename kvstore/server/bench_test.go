package server

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// subscribe opens n watches of cilium/state/, each on a connection of its own,
// and calls each of them with the number of new events.
func subscribe(b *testing.B, w *world, name string, n int, got func(events int)) {
	for range n {
		s, err := pb.NewWatchClient(w.dial(name)).Watch(context.Background(), grpc.MaxCallRecvMsgSize(64<<20))
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("cilium/state/"), RangeEnd: []byte("cilium/state0")})); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			b.Fatal(err)
		}
		go func() {
			for {
				r, err := s.Recv()
				if err != nil {
					return
				}
				got(len(r.Events))
			}
		}()
	}
}

// BenchmarkFanOut writes one key of 500 bytes per operation and waits until
// every subscriber has it; server and subscribers share the machine.
func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("watches=%d", n), func(b *testing.B) {
			w := start(b, plain("remote"))
			var delivered sync.WaitGroup
			subscribe(b, w, "", n, func(events int) { delivered.Add(-events) })
			ops := []kvstore.Op{{Key: "cilium/state/services/v1/east/ns/name", Value: make([]byte, 500)}}
			b.ReportAllocs()
			for b.Loop() {
				delivered.Add(n)
				if err := w.s.Store().Apply(context.Background(), ops); err != nil {
					b.Fatal(err)
				}
				delivered.Wait()
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkFanOutBurst writes 100 revisions per operation before it waits.
func BenchmarkFanOutBurst(b *testing.B) {
	const burst = 100
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("watches=%d", n), func(b *testing.B) {
			w := start(b, plain("remote"))
			var delivered sync.WaitGroup
			subscribe(b, w, "", n, func(events int) { delivered.Add(-events) })
			ops := []kvstore.Op{{Key: "cilium/state/services/v1/east/ns/name", Value: make([]byte, 500)}}
			for b.Loop() {
				delivered.Add(n * burst)
				for range burst {
					if err := w.s.Store().Apply(context.Background(), ops); err != nil {
						b.Fatal(err)
					}
				}
				delivered.Wait()
			}
			b.ReportMetric(float64(b.N*n*burst)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkPutToDelivery measures one write until one subscriber has it, over
// TLS.
func BenchmarkPutToDelivery(b *testing.B) {
	w := start(b)
	done := make(chan struct{}, 1)
	subscribe(b, w, "remote", 1, func(int) { done <- struct{}{} })
	ops := []kvstore.Op{{Key: "cilium/state/services/v1/east/ns/name", Value: make([]byte, 500)}}
	for b.Loop() {
		if err := w.s.Store().Apply(context.Background(), ops); err != nil {
			b.Fatal(err)
		}
		<-done
	}
}

// BenchmarkRange100k lists 100,000 keys of 500 bytes over TLS in pages.
func BenchmarkRange100k(b *testing.B) {
	w := start(b, func(c *Config) { c.QuotaBytes = 1 << 30 })
	fill(b, w, 100_000)
	kv := pb.NewKVClient(w.dial("remote"))
	for _, limit := range []int64{256, 2048} {
		b.Run(fmt.Sprintf("limit=%d", limit), func(b *testing.B) {
			for b.Loop() {
				if n := listAll(b, kv, limit); n != 100_000 {
					b.Fatalf("%d keys", n)
				}
			}
			b.ReportMetric(float64(b.N)*100_000/b.Elapsed().Seconds(), "keys/s")
		})
	}
}

func fill(b *testing.B, w *world, n int) {
	for i := 0; i < n; {
		var ops []kvstore.Op
		for range 1000 {
			ops = append(ops, kvstore.Op{Key: fmt.Sprintf("cilium/state/ip/v1/default/%06d", i), Value: make([]byte, 500)})
			i++
		}
		if err := w.s.Store().Apply(context.Background(), ops); err != nil {
			b.Fatal(err)
		}
	}
}

func listAll(b *testing.B, kv pb.KVClient, limit int64) (n int) {
	next, rev := []byte("cilium/state/"), int64(0)
	for {
		r, err := kv.Range(context.Background(), &pb.RangeRequest{Key: next, RangeEnd: []byte("cilium/state0"), Limit: limit, Revision: rev})
		if err != nil {
			b.Fatal(err)
		}
		n += len(r.Kvs)
		if !r.More {
			return n
		}
		next, rev = append(r.Kvs[len(r.Kvs)-1].Key, 0), r.Header.Revision
	}
}

// BenchmarkApply writes transactions of one and of 100 keys in process.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			w := start(b)
			var ops []kvstore.Op
			for i := range n {
				ops = append(ops, kvstore.Op{Key: fmt.Sprintf("cilium/state/%d", i), Value: make([]byte, 500)})
			}
			for b.Loop() {
				if err := w.s.Store().Apply(context.Background(), ops); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStart measures from Run to Started and to the end of Run.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		s, err := New(Config{Cluster: testCluster, DataDir: b.TempDir(), Listen: "127.0.0.1:0", PlainTextName: "remote"})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		<-s.Started()
		cancel()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	}
}
