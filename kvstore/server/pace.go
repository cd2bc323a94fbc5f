package server

import (
	"context"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// longestPace is how long a request may wait for its turn before it is
	// refused instead.
	longestPace = time.Second
	// refusalPause is the answer's delay for those who are refused for being too
	// fast: asking again at once must not pay.
	refusalPause = 250 * time.Millisecond
)

// begun lets a streaming handler run inside the limits of calls.
func (g *gateway) begun(serve func(grpc.ServerStream) error) func(grpc.ServerStream) error {
	return func(s grpc.ServerStream) error {
		end, err := g.begin(s.Context())
		if err != nil {
			return err
		}
		defer end()
		return serve(s)
	}
}

// begin counts a call against its peer until end is called.
func (g *gateway) begin(ctx context.Context) (end func(), err error) {
	c, err := connOf(ctx)
	if err != nil {
		return nil, err
	}
	a := c.account()
	if !take(&a.streams, a.limits.Streams) {
		c.refuse(refusedStreams)
		c.hold(refusalPause)
		g.pause(ctx, refusalPause)
		return nil, status.Errorf(codes.ResourceExhausted, "too many calls of one peer at a time: at most %d", a.limits.Streams)
	}
	c.spend(callCost)
	end = func() { a.streams.Add(-1) }
	if err := g.pace(ctx, c); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// pace lets requests that come too fast wait, and refuses those that would wait
// for long. As long as one waits nothing more is read from its connection, for
// what a call costs before it comes here is not little.
func (g *gateway) pace(ctx context.Context, c *conn) error {
	for _, l := range []*rate.Limiter{c.requests, c.account().requests} {
		turn := l.Reserve()
		wait := turn.Delay()
		if wait > longestPace {
			turn.Cancel()
			c.refuse(refusedRequests)
			c.hold(longestPace)
			g.pause(ctx, longestPace)
			return status.Errorf(codes.ResourceExhausted, "too many requests: at most %g per second", float64(l.Limit()))
		}
		c.hold(wait)
		g.pause(ctx, wait)
	}
	return nil
}

// chargeUnit is how many bytes of a reply cost as much as a request.
const chargeUnit = 64 << 10

// charge makes later requests of the same reader wait for what a reply costs
// beyond an ordinary one. Those that wait already do not hear of it; a reader
// that has used up what may come at once therefore keeps its slot for as long as
// returned, or its listings would come in bursts that others feel.
func charge(c *conn, bytes int) (pause time.Duration) {
	now, a := time.Now(), c.account()
	for l, slots := range map[*rate.Limiter]int{c.requests: cap(c.ranges), a.requests: cap(a.ranges)} {
		n := min(bytes/chargeUnit, l.Burst())
		if n > 0 && l.ReserveN(now, n).DelayFrom(now) > 0 {
			pause = max(pause, time.Duration(float64(n*slots)/float64(l.Limit())*float64(time.Second)))
		}
	}
	return min(pause, longestPace)
}

// pause waits unless the call or the server ends.
func (g *gateway) pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-g.closing:
	}
}
