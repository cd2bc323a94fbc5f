package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// TestReaderThatStopsReading lets one subscriber sleep: others get everything,
// the sleeper's connection is closed.
func TestReaderThatStopsReading(t *testing.T) {
	t.Parallel()
	w := start(t, func(c *Config) { c.Limits.SendTimeout = 5 * time.Second })
	sleeper, awake := openWatch(t, w.dial("remote")), openWatch(t, w.dial("remote"))
	value := strings.Repeat("v", 100<<10)
	const writes = 60 // 6 MB, beyond all windows and buffers of a connection
	go func() {
		for i := range writes {
			if err := w.s.Store().Apply(w.ctx(), []kvstore.Op{{Key: "cilium/state/k", Value: fmt.Append(nil, i, value)}}); err != nil {
				t.Error(err)
			}
		}
	}()
	for n := 0; n < writes; {
		n += len(awake.recv().Events)
	}
	eventually(t, "the sleeper is cut", func() bool { return w.metric("clustermesh_gateway_refusals_total", "unread") == 1 })
	for err := error(nil); err == nil; {
		_, err = sleeper.stream.Recv()
	}
	if !strings.Contains(w.log.String(), "reader disconnected") {
		t.Error("nothing was logged")
	}
	w.put("cilium/state/k=end")
	awake.recv()
}

// TestReaderThatLeavesListingsUnread asks for listings and reads none.
func TestReaderThatLeavesListingsUnread(t *testing.T) {
	t.Parallel()
	w := start(t, plain("remote"), func(c *Config) {
		c.Limits.SendTimeout, c.Limits.UnreadBytes = 5*time.Second, 1<<20
	})
	for i := range 8 {
		w.put(fmt.Sprintf("cilium/state/%d=%s", i, strings.Repeat("v", 256<<10)))
	}
	conn, err := grpc.NewClient("passthrough:///"+w.s.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := &pb.RangeRequest{Key: []byte("cilium/state/"), RangeEnd: []byte("cilium/state0")}
	for range 12 { // more than may be read at a time
		s, err := conn.NewStream(w.ctx(), &grpc.StreamDesc{ServerStreams: true}, pb.KV_Range_FullMethodName)
		if err != nil {
			break
		}
		if s.SendMsg(req) != nil || s.CloseSend() != nil {
			break
		}
	}
	eventually(t, "the connection is cut", func() bool { return w.metric("clustermesh_gateway_refusals_total", "unread") > 0 })
	eventually(t, "and gone", func() bool { return w.metric("clustermesh_gateway_connections", "") == 0 })
}

// TestManyWatchesCostEtcdOne counts etcd's own watchers.
func TestManyWatchesCostEtcdOne(t *testing.T) {
	w := start(t, plain("remote"), func(c *Config) { c.Limits.CreatesPerSecond = 1e6 })
	const calls, each = 20, 50
	var open []watchCall
	for range calls {
		s, err := pb.NewWatchClient(w.dial("")).Watch(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, watchCall{t, s})
		for range each {
			open[len(open)-1].create(&pb.WatchCreateRequest{})
		}
	}
	if n := w.metric("clustermesh_gateway_watches", ""); n != calls*each {
		t.Fatalf("%v watches", n)
	}
	if n := etcdWatchers(t); n != 1 {
		t.Fatalf("etcd has %v watchers", n)
	}
	w.put("cilium/state/a=1", "cilium/state/b=1")
	for _, c := range open {
		for range each {
			if r := c.recv(); keys(r.Events) != "+a@2 +b@2" {
				t.Fatalf("got %v", r)
			}
		}
	}
}

// brokenSource is a store whose first watch is ended by etcd.
type brokenSource struct {
	rev    atomic.Int64
	opened chan *brokenStream
}

type brokenStream struct {
	mvcc.WatchStream
	from int64
	ch   chan mvcc.WatchResponse
}

func (s *brokenSource) Rev() int64 { return s.rev.Load() }

func (s *brokenSource) NewWatchStream() mvcc.WatchStream {
	return &brokenStreamOf{source: s, brokenStream: &brokenStream{ch: make(chan mvcc.WatchResponse)}}
}

type brokenStreamOf struct {
	source *brokenSource
	*brokenStream
}

func (s *brokenStreamOf) Watch(_ context.Context, id mvcc.WatchID, _, _ []byte, from int64, _ ...mvcc.FilterFunc) (mvcc.WatchID, error) {
	s.from = from
	s.source.opened <- s.brokenStream
	return id, nil
}

func (s *brokenStreamOf) Chan() <-chan mvcc.WatchResponse { return s.ch }
func (s *brokenStreamOf) Close()                          {}

func putEvent(key string, rev int64) *mvccpb.Event {
	return &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev, CreateRevision: rev, Version: 1}}
}

// TestBrokenFeedShowsTheGap ends etcd's watch and expects a new floor.
func TestBrokenFeedShowsTheGap(t *testing.T) {
	src := &brokenSource{opened: make(chan *brokenStream)}
	src.rev.Store(9)
	f := &feeder{store: src, ring: newRing(100, 1<<20, 1, 1), log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- f.run(ctx) }()
	first := <-src.opened
	first.ch <- mvcc.WatchResponse{Events: []*mvccpb.Event{putEvent("a", 2), putEvent("b", 2), putEvent("a", 3)}}
	first.ch <- mvcc.WatchResponse{CompactRevision: 5}
	second := <-src.opened
	if first.from != 2 || second.from != 10 {
		t.Errorf("watches began at %d and %d", first.from, second.from)
	}
	if v := f.ring.read(4, 1<<20, nil); v.floor != 10 || v.upTo != 9 || len(v.revs) != 0 {
		t.Errorf("after the break: %+v", v)
	}
	src.rev.Store(10) // before, events wait until listings show them
	second.ch <- mvcc.WatchResponse{Events: []*mvccpb.Event{putEvent("a", 10)}}
	second.ch <- mvcc.WatchResponse{}
	if v := f.ring.read(10, 1<<20, nil); v.floor != 10 || v.upTo != 10 || len(v.revs) != 1 {
		t.Errorf("after the next event: %+v", v)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// runToEnd starts a server that is expected to end by itself.
func runToEnd(t *testing.T, cfg Config) (*Server, <-chan error) {
	cfg.Cluster, cfg.Listen, cfg.PlainTextName = testCluster, "127.0.0.1:0", "remote"
	if cfg.DataDir == "" {
		cfg.DataDir = t.TempDir()
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.Background()) }()
	<-s.Started()
	return s, ended
}

func TestFullStoreEndsTheLife(t *testing.T) {
	s, ended := runToEnd(t, Config{QuotaBytes: 16 << 20})
	var err error
	for i := 0; err == nil && i < 100; i++ {
		err = s.Store().Apply(context.Background(), []kvstore.Op{{Key: fmt.Sprintf("k%d", i), Value: bytes.Repeat([]byte("v"), 1<<20)}})
	}
	if err == nil {
		t.Fatal("100 MiB fit into 16")
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "quota") {
		t.Fatalf("run ended with %v", err)
	}
	if _, err := s.Store().Range(context.Background(), "k", "l", 0, 0); !errors.Is(err, errStopped) {
		t.Fatalf("after the end: %v", err)
	}
}

// TestFatalErrorEndsTheLife reports, as etcd does when its disk fails.
func TestFatalErrorEndsTheLife(t *testing.T) {
	s, ended := runToEnd(t, Config{})
	lg := s.life.Load().etcd.Logger()
	go lg.Fatal("failed to save Raft hard state and entries", zap.Error(io.ErrShortWrite))
	if err := <-ended; !errors.Is(err, io.ErrShortWrite) {
		t.Fatalf("run ended with %v", err)
	}
}

func TestEtcdThatStopsEndsTheLife(t *testing.T) {
	s, ended := runToEnd(t, Config{})
	s.life.Load().etcd.HardStop()
	if err := <-ended; err == nil {
		t.Fatal("run ended without error")
	}
}

func TestHealthFollowsTheOwner(t *testing.T) {
	w := start(t)
	health := healthpb.NewHealthClient(w.dial("remote"))
	stream, err := health.Watch(w.ctx(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, serving := range []bool{false, true, false} {
		want := healthpb.HealthCheckResponse_NOT_SERVING
		if serving {
			want = healthpb.HealthCheckResponse_SERVING
		}
		w.s.SetServing(serving)
		if r, err := health.Check(w.ctx(), &healthpb.HealthCheckRequest{}); err != nil || r.Status != want {
			t.Errorf("check: %v, %v", r, err)
		}
		if r, err := stream.Recv(); err != nil || r.Status != want {
			t.Errorf("watch: %v, %v", r, err)
		}
	}
}

func TestAddressInUse(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	s, err := New(Config{Cluster: testCluster, DataDir: t.TempDir(), Listen: lis.Addr().String(), PlainTextName: "remote"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), lis.Addr().String()) {
		t.Fatalf("run ended with %v", err)
	}
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "ran before") {
		t.Fatalf("second run ended with %v", err)
	}
}
