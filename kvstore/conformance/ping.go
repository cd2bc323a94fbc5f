package conformance

import (
	"context"
	"errors"
	"net"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// pingCount is how many pings are sent: gRPC servers take the first after a
// reply, put up with two that come too soon after another, and end the
// connection at the next.
const pingCount = 4

func pingChecks() []Check {
	return []Check{{
		ID: "ping-answered", Group: "pings", Title: "pings are answered", Needs: []string{"watch-ranges"},
		Why:    "the client takes the connection for dead 25 s after a ping and reconnects, again and again",
		Remedy: "check that no proxy in between swallows HTTP/2 pings",
		run: func(ctx context.Context, s *session) finding {
			return s.checkPings(ctx, 1)
		},
	}, {
		ID: "ping-tolerated", Group: "pings", Title: "pings in a client's rhythm are tolerated", Needs: []string{"ping-answered"},
		Why:    "the server ends the connection (too many pings) and the client lists everything again and again",
		Remedy: "allow pings every 5 s also without traffic (etcd: --grpc-keepalive-min-time 5s)",
		run: func(ctx context.Context, s *session) finding {
			if !s.opts.Wait {
				return skip("takes %s; not asked for", (pingCount-1)*s.opts.PingInterval)
			}
			return s.checkPings(ctx, pingCount)
		},
	}}
}

// checkPings pings an otherwise quiet connection with a watch.
func (s *session) checkPings(ctx context.Context, count uint64) finding {
	conn, err := s.openHTTP2(ctx)
	if err != nil {
		return fail("connect: %v", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for i := range count {
		if i > 0 {
			pause(ctx, s.opts.PingInterval)
		}
		if err := conn.bounded(s.opts.Timeout, func() error { return conn.ping(i) }); err != nil {
			return fail("ping %d of %d: %v", i+1, count, err)
		}
	}
	// A server answers the ping that is too much before it ends the connection.
	if err := conn.bounded(s.opts.Timeout, func() error { return conn.ping(count) }); err != nil {
		return fail("after %d pings: %v", count, err)
	}
	if count > 1 {
		return pass("%d pings, %s apart", count, s.opts.PingInterval)
	}
	return pass("at once")
}

// bounded limits how long the reads and writes of do may take.
func (h *http2) bounded(limit time.Duration, do func() error) error {
	if err := h.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	return do()
}

func (s *session) openHTTP2(ctx context.Context) (*http2, error) {
	raw, err := s.dialTLS(ctx, s.pair, nil)
	if err != nil {
		return nil, err
	}
	conn, err := newHTTP2(raw)
	if err == nil {
		err = conn.bounded(s.opts.Timeout, func() error {
			watch := watchRequest(s.configRange(), 0)
			return errors.Join(conn.call(net.JoinHostPort(s.host, s.port), etcdserverpb.Watch_Watch_FullMethodName, watch), conn.called())
		})
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
