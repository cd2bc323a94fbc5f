package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	kindRange  = "range"
	kindStatus = "status"
	kindWatch  = "watch"

	// Readers may ping this often, also without open calls; Cilium's clients
	// do every 15 s.
	minPing = 5 * time.Second
	// We ask silent readers this often whether they live, and wait this long.
	pingAfter   = 20 * time.Second
	pingTimeout = 20 * time.Second
	maxIdle     = 10 * time.Minute

	// streamWindow and connWindow are how much a reader may send ahead.
	streamWindow = 64 << 10
	connWindow   = 256 << 10

	// Calls in progress are cut after drainTimeout, and abandoned if that does not
	// end them.
	drainTimeout   = time.Second
	hangingTimeout = 4 * time.Second
)

// gateway answers readers from a life's store and ring.
type gateway struct {
	cfg     Config
	metrics *metrics
	conns   *connSet
	health  *health.Server
	ranges  chan struct{} // one per listing being read
	logs    *rate.Limiter // a peer that keeps trying must not flood the log
	streams *streams
	life    *life // set by run before anything is served
	closing <-chan struct{}
}

func newGateway(cfg Config, m *metrics) *gateway {
	g := &gateway{
		cfg: cfg, metrics: m,
		conns:  newConnSet(cfg.Limits, cfg.Log, m, newRegistry(cfg, m)),
		health: health.NewServer(), streams: newStreams(),
		ranges: make(chan struct{}, cfg.Limits.Ranges),
		logs:   rate.NewLimiter(logsPerSecond, logsAtOnce),
	}
	g.setServing(false)
	return g
}

func (g *gateway) setServing(serving bool) {
	s := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		s = healthpb.HealthCheckResponse_SERVING
	}
	g.health.SetServingStatus("", s)
}

// run serves readers until ctx ends.
func (g *gateway) run(ctx context.Context, l *life, lis net.Listener) error {
	g.life, g.closing, g.conns.closing = l, ctx.Done(), ctx.Done()
	srv := grpc.NewServer(g.options()...)
	for _, desc := range g.services() {
		srv.RegisterService(desc, nil)
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(newListener(ctx, lis, g.conns)) }()
	var guards sync.WaitGroup
	guards.Go(func() { g.conns.guard(ctx, g.cfg.Trust) })
	guards.Go(func() { g.conns.draw(ctx) })
	defer guards.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("serve readers: %w", err)
	case <-ctx.Done():
	}
	g.health.Shutdown()
	return drain(srv, failed)
}

// drain lets calls in progress end, for a moment. Watches end by themselves
// when closing is closed. A call that hangs in a broken etcd is abandoned.
func drain(srv *grpc.Server, served <-chan error) error {
	cut := time.AfterFunc(drainTimeout, srv.Stop)
	defer cut.Stop()
	go srv.GracefulStop()
	select {
	case <-served: // after the last handler
		return nil
	case <-time.After(hangingTimeout):
		return fmt.Errorf("stop gateway: calls still running after %v", hangingTimeout)
	}
}

func (g *gateway) options() []grpc.ServerOption {
	l := g.cfg.Limits
	return []grpc.ServerOption{
		grpc.Creds(newHandshaker(g.cfg, g.conns, g.metrics)),
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error { return g.begun(g.unknown)(s) }),
		grpc.ConnectionTimeout(2 * l.HandshakeTimeout),
		grpc.MaxConcurrentStreams(l.StreamsPerConnection),
		grpc.MaxHeaderListSize(l.HeaderBytes),
		grpc.MaxRecvMsgSize(l.ReceiveBytes),
		// What readers say is little. Windows that grow with their speed would let
		// them send megabytes that nobody reads; a message that is being read may be
		// larger than its stream's window.
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.WaitForHandlers(true),
		grpc.SharedWriteBuffer(true), // most connections are idle most of the time
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdle, Time: pingAfter, Timeout: pingTimeout}),
	}
}

// services lists everything that can be called.
func (g *gateway) services() []*grpc.ServiceDesc {
	all := g.readServices()
	if g.cfg.Reports != nil {
		all = append(all, g.reports())
	}
	return all
}

// readServices lists everything a reader can call.
func (g *gateway) readServices() []*grpc.ServiceDesc {
	return []*grpc.ServiceDesc{
		{ServiceName: "etcdserverpb.KV", Methods: []grpc.MethodDesc{unary(g, "Range", g.serveRange)}},
		{ServiceName: "etcdserverpb.Maintenance", Methods: []grpc.MethodDesc{unary(g, "Status", g.serveStatus)}},
		{ServiceName: "etcdserverpb.Watch", Streams: []grpc.StreamDesc{stream("Watch", g.begun(g.serveWatch))}},
		{
			ServiceName: "grpc.health.v1.Health",
			Methods:     []grpc.MethodDesc{unary(g, "Check", g.health.Check)},
			Streams:     []grpc.StreamDesc{answers("Watch", g.begun(g.serveHealthWatch))},
		},
	}
}

// unary describes a method with one request of type Req.
func unary[Req, Res any](g *gateway, name string, serve func(context.Context, *Req) (Res, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		end, err := g.begin(ctx)
		if err != nil {
			return nil, err
		}
		defer end()
		req := new(Req)
		if err := g.receive(ctx, func() error { return decode(req) }); err != nil {
			return nil, err
		}
		return serve(ctx, req)
	}}
}

// receive waits for the one request of a call, and for the word that there is
// no other. A reader that owes that for long would keep the call for ever; its
// connection is closed. While we do not read from it, its time does not run.
func (g *gateway) receive(ctx context.Context, decode func() error) error {
	c, err := connOf(ctx)
	if err != nil {
		return err
	}
	begin, done := stamp(), make(chan struct{})
	late := time.AfterFunc(g.cfg.Limits.SendTimeout/2, func() { g.hurry(c, begin, done) })
	defer func() { late.Stop(); close(done) }()
	return decode()
}

// hurry closes a connection unless the request that it owes is there in time.
func (g *gateway) hurry(c *conn, begin int64, done <-chan struct{}) {
	for {
		left := g.cfg.Limits.SendTimeout/2 - c.readable(begin)
		select {
		case <-done:
			return
		case <-c.done:
			return
		case <-time.After(left):
		}
		if left <= 0 {
			c.cut(refusedIncomplete)
			return
		}
	}
}

func stream(name string, serve func(grpc.ServerStream) error) grpc.StreamDesc {
	desc := answers(name, serve)
	desc.ClientStreams = true
	return desc
}

// answers describes a method with one request and many replies.
func answers(name string, serve func(grpc.ServerStream) error) grpc.StreamDesc {
	return grpc.StreamDesc{
		StreamName: name, ServerStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error { return serve(s) },
	}
}

// unknown answers everything that is not registered.
func (g *gateway) unknown(s grpc.ServerStream) error {
	c, err := connOf(s.Context())
	if err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(s)
	return g.refuseCall(c, method)
}

// refuseCall answers a call of a method that does not exist for its caller.
func (g *gateway) refuseCall(c *conn, method string) error {
	c.refuse(refusedUnimplemented)
	if g.logs.Allow() {
		g.cfg.Log.Warn("call refused: this store is read-only", "op", method, "peer", c.RemoteAddr().String(), "name", c.grant.name)
	}
	return status.Errorf(codes.Unimplemented, "method %s is not offered: this store is read-only", method)
}

func (g *gateway) serveHealthWatch(s grpc.ServerStream) error {
	req := new(healthpb.HealthCheckRequest)
	if err := g.receive(s.Context(), func() error { return s.RecvMsg(req) }); err != nil {
		return err
	}
	return g.health.Watch(req, &grpc.GenericServerStream[healthpb.HealthCheckRequest, healthpb.HealthCheckResponse]{ServerStream: s})
}

// connOf returns the connection that a request came by.
func connOf(ctx context.Context) (*conn, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.conn, nil
		}
	}
	return nil, status.Error(codes.Internal, "request has no connection")
}

// deny refuses a request for keys outside the grant, with etcd's own error.
func (g *gateway) deny(c *conn, key, end []byte) error {
	c.refuse(refusedPermission)
	g.cfg.Log.Debug("read refused", "peer", c.RemoteAddr().String(), "name", c.grant.name, "key", string(key), "end", string(end))
	return rpctypes.ErrGRPCPermissionDenied
}

// unsupported refuses an option that the gateway does not offer.
func (g *gateway) unsupported(c *conn, what string) error {
	c.refuse(refusedUnsupported)
	return status.Errorf(codes.InvalidArgument, "%s is not supported by this read-only store", what)
}

func (g *gateway) header(rev int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{
		ClusterId: g.life.cluster, MemberId: g.life.member, Revision: rev, RaftTerm: g.life.etcd.Term(),
	}
}

// serveStatus answers Maintenance.Status. Who sees a part of the store is not
// told how large all of it is, nor how much goes on in it.
func (g *gateway) serveStatus(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	g.metrics.requests.WithLabelValues(kindStatus).Inc()
	c, err := connOf(ctx)
	if err != nil {
		return nil, err
	}
	if g.life.enter() != nil {
		return nil, errStopping()
	}
	defer g.life.leave()
	etcd := g.life.etcd
	r := &pb.StatusResponse{
		Header: g.header(etcd.KV().Rev()), Version: version.Version, Leader: uint64(etcd.Leader()), RaftTerm: etcd.Term(),
	}
	if !c.grant.restricted {
		r.DbSize, r.DbSizeInUse, r.DbSizeQuota = etcd.Backend().Size(), etcd.Backend().SizeInUse(), g.cfg.QuotaBytes
		r.RaftIndex, r.RaftAppliedIndex = etcd.CommittedIndex(), etcd.AppliedIndex()
	}
	return r, nil
}

// revision returns the store's current revision.
func (g *gateway) revision() (int64, error) {
	if g.life.enter() != nil {
		return 0, errStopping()
	}
	defer g.life.leave()
	return g.life.etcd.KV().Rev(), nil
}

// errStopping ends calls when the server stops.
func errStopping() error { return status.Error(codes.Unavailable, "store server is stopping") }

// isEnd reports whether a receive ended because the reader is gone or done.
func isEnd(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}
