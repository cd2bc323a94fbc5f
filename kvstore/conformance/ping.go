package conformance

import (
	"context"
	"net"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// pingCount is how many pings are sent: gRPC servers put up with two that come
// too soon after another and end the connection at the next.
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
		if err := conn.ping(i+1, s.opts.Timeout); err != nil {
			return fail("ping %d of %d: %v", i+1, count, err)
		}
	}
	return pass("%d pings, %s apart", count, s.opts.PingInterval)
}

func (s *session) openHTTP2(ctx context.Context) (*http2, error) {
	raw, err := s.dialTLS(ctx, s.pair, nil)
	if err != nil {
		return nil, err
	}
	conn, err := newHTTP2(raw)
	if err == nil {
		err = conn.call(net.JoinHostPort(s.host, s.port), etcdserverpb.Watch_Watch_FullMethodName, watchRequest(s.configRange(), 0))
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
