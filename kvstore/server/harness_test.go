package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	testCluster = "east"
	patience    = 15 * time.Second
)

// world is a running server of a test and what it said.
type world struct {
	t   testing.TB
	s   *Server
	ca  *authority
	reg *prometheus.Registry
	log *logBuffer
}

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs a server with TLS until the test ends; change may alter its
// configuration first.
func start(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, ca: newAuthority(t), reg: prometheus.NewRegistry(), log: &logBuffer{}}
	cfg := Config{
		Cluster: testCluster, DataDir: t.TempDir(), Listen: "127.0.0.1:0", TLS: w.ca.serverTLS(), Registerer: w.reg,
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if w.s, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.s.Run(ctx) }()
	select {
	case <-w.s.Started():
	case err := <-ended:
		t.Fatalf("run ended before it started: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		begin := time.Now()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		if d := time.Since(begin); d > 20*time.Second {
			t.Errorf("stop took %v", d)
		}
	})
	return w
}

func plain(name string) func(*Config) {
	return func(c *Config) { c.TLS, c.PlainTextName = nil, name }
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// put writes keys, each "key=value", in one revision.
func (w *world) put(pairs ...string) {
	w.t.Helper()
	var ops []kvstore.Op
	for _, p := range pairs {
		k, v, found := strings.Cut(p, "=")
		ops = append(ops, kvstore.Op{Key: k, Value: []byte(v), Delete: !found})
	}
	if err := w.s.Store().Apply(w.ctx(), ops); err != nil {
		w.t.Fatal(err)
	}
}

// client connects etcd's client with the named certificate.
func (w *world) client(name string) *clientv3.Client {
	w.t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + w.s.Addr().String()}, TLS: w.ca.clientTLS(name), Logger: zap.NewNop(),
		DialTimeout: patience,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// dial connects plain gRPC with the named certificate, or without TLS for "".
func (w *world) dial(name string) *grpc.ClientConn {
	w.t.Helper()
	creds := insecure.NewCredentials()
	if name != "" {
		creds = credentials.NewTLS(w.ca.clientTLS(name))
	}
	c, err := grpc.NewClient("passthrough:///"+w.s.Addr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// metric returns the value of a metric, with the one label value if not "".
func (w *world) metric(name, label string) float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == name && (label == "" || hasLabel(m, label)) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	w.t.Fatalf("no metric %s{%s}", name, label)
	return 0
}

func hasLabel(m *dto.Metric, value string) bool {
	for _, l := range m.Label {
		if l.GetValue() == value {
			return true
		}
	}
	return false
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// show prints an event of etcd's client.
func show(ev *clientv3.Event) string {
	kind := "PUT"
	if ev.Type == clientv3.EventTypeDelete {
		kind = "DELETE"
	}
	return fmt.Sprintf("%s %s=%s create=%d mod=%d version=%d lease=%d",
		kind, ev.Kv.Key, ev.Kv.Value, ev.Kv.CreateRevision, ev.Kv.ModRevision, ev.Kv.Version, ev.Kv.Lease)
}

// etcdWatchers returns how many watchers all etcd stores of the process have.
func etcdWatchers(t *testing.T) float64 {
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "etcd_debugging_mvcc_watcher_total" {
			return f.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatal("etcd does not count its watchers")
	return 0
}
