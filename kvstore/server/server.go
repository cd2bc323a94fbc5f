package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/clustermesh/clustermesh/kvstore"
	"golang.org/x/sync/errgroup"
)

// Server is one life of a cluster's exported store. Its methods are safe for
// concurrent use.
type Server struct {
	cfg     Config
	metrics *metrics
	gateway *gateway
	started chan struct{}
	ran     atomic.Bool
	life    atomic.Pointer[life]
	addr    atomic.Pointer[net.Addr]
}

// New returns a server that does nothing before Run. The error is that of
// [Config.Validate].
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure store server: %w", err)
	}
	cfg = cfg.withDefaults()
	s := &Server{cfg: cfg, metrics: newMetrics(), started: make(chan struct{})}
	s.gateway = newGateway(cfg, s.metrics)
	return s, nil
}

// Run starts the embedded etcd with an empty store, then the gateway, and
// blocks until ctx ends (it returns nil) or one of them fails. It closes
// readers' connections and etcd before it returns, within 5 s. A server runs
// once; after an error make a new one and publish again. If etcd died of a
// failed write the error says that it is still running: parts of it hang, and a
// new process is then better than a new server in the old one.
func (s *Server) Run(ctx context.Context) error {
	if s.ran.Swap(true) {
		return errors.New("run store server: it ran before; make a new one")
	}
	unregister, err := s.metrics.register(s.cfg.Registerer, s)
	if err != nil {
		return err
	}
	defer unregister()
	l, err := startLife(ctx, s.cfg)
	if err != nil {
		return orderly(ctx, err)
	}
	s.life.Store(l)
	err = s.serve(ctx, l)
	limit := abandonTimeout
	if ctx.Err() != nil {
		limit = stopTimeout
	}
	return errors.Join(orderly(ctx, err), l.stop(limit))
}

// orderly returns nil instead of err if the caller asked for the end.
func orderly(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

func (s *Server) serve(ctx context.Context, l *life) error {
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %q: %w; free the address or configure another", s.cfg.Listen, err)
	}
	addr := lis.Addr()
	s.addr.Store(&addr)
	group, ctx := errgroup.WithContext(ctx)
	feed := &feeder{store: l.etcd.Watchable(), ring: l.ring, log: s.cfg.Log}
	group.Go(func() error { return feed.run(ctx) })
	group.Go(func() error { return l.watch(ctx) })
	group.Go(func() error { return s.gateway.run(ctx, l, lis) })
	s.cfg.Log.Info("store server started", "address", addr.String(), "life", l.cluster)
	close(s.started)
	return group.Wait()
}

// Started is closed when the store can be used and the gateway listens. It
// stays open if Run fails before.
func (s *Server) Started() <-chan struct{} { return s.started }

// Store returns the store for the process's own use, unrestricted and without
// network. Its methods fail before Started and after Run.
func (s *Server) Store() kvstore.Store { return store{s} }

// Addr returns the gateway's address, or nil before Started.
func (s *Server) Addr() net.Addr {
	if a := s.addr.Load(); a != nil {
		return *a
	}
	return nil
}

// ClusterID returns the etcd cluster id of this life, never 0 after Started
// and 0 before.
func (s *Server) ClusterID() uint64 {
	if l := s.life.Load(); l != nil {
		return l.cluster
	}
	return 0
}

// SetServing sets what the gRPC health service says: SERVING or, as at the
// start, NOT_SERVING. The owner calls it with true once it has published
// everything for the first time.
func (s *Server) SetServing(serving bool) { s.gateway.setServing(serving) }

// Disconnect closes the connections of all readers whose certificate name
// matches and returns their number; it is for peers that are removed. They are
// refused afterwards only if the TLS configuration refuses them.
func (s *Server) Disconnect(match func(name string) bool) int {
	return s.gateway.conns.disconnect(match)
}

// enter returns the running life for a call, which the caller ends with leave.
func (s *Server) enter() (*life, error) {
	l := s.life.Load()
	if l == nil {
		return nil, errNotStarted
	}
	return l, l.enter()
}
