package server

import (
	"container/list"
	"context"
	"net"

	"golang.org/x/time/rate"
)

// listener accepts connections up to the limits and closes those beyond them.
type listener struct {
	net.Listener
	ctx    context.Context
	conns  *connSet
	accept *rate.Limiter
}

func newListener(ctx context.Context, lis net.Listener, s *connSet) listener {
	accepts := rate.NewLimiter(rate.Limit(s.limits.AcceptsPerSecond), burst(s.limits.AcceptsPerSecond))
	return listener{Listener: lis, ctx: ctx, conns: s, accept: accepts}
}

// Accept implements [net.Listener]. While connections come too fast they wait
// in the kernel.
func (l listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err := l.accept.Wait(l.ctx); err != nil {
			raw.Close()
			return nil, net.ErrClosed
		}
		c, why := l.conns.add(raw)
		if c != nil {
			return c, nil
		}
		l.conns.metrics.refuse(l.conns.registry.other, why)
		raw.Close()
	}
}

// evict closes, under the lock, the handshake that is least likely to come to
// an end: the oldest that has not said a word, or else the oldest that lets us
// wait. Honest clients speak at once. It reports whether there was one.
func (s *connSet) evict() bool {
	c := oldest(s.silent)
	if c == nil {
		c = oldest(s.shaking)
	}
	if c == nil {
		return false
	}
	s.leave(c)
	c.evicted = true
	c.Conn.Close() // its own goroutine sees that and does the rest
	return true
}

func oldest(queue *list.List) *conn {
	for e := queue.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*conn); c.waiting {
			return c
		}
	}
	return nil
}

// waits notes whether the handshake waits for the peer, and moves it when its
// first byte has come.
func (s *connSet) waits(c *conn, waiting, heard bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.place == nil {
		return
	}
	if heard && c.queue == s.silent {
		s.silent.Remove(c.place)
		c.queue, c.place = s.shaking, s.shaking.PushBack(c)
	}
	c.waiting = waiting
}

func (s *connSet) wasEvicted(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.evicted
}

// gate lets a handshake compute only while it holds one of a few slots, which
// it gives back while it waits for its peer: peers that stall hold none.
type gate struct {
	c     *conn
	ctx   context.Context
	slots chan struct{}
	held  bool
	busy  bool // no slot came free in time
}

func (g *gate) read(b []byte) (int, error) {
	g.release()
	g.c.set.waits(g.c, true, false)
	n, err := g.c.Conn.Read(b)
	g.c.set.waits(g.c, false, n > 0)
	if err != nil {
		return n, err
	}
	return n, g.acquire()
}

func (g *gate) acquire() error {
	select {
	case g.slots <- struct{}{}:
		g.held = true
		return nil
	case <-g.ctx.Done():
		g.busy = true
		return errBusy
	}
}

func (g *gate) release() {
	if g.held {
		<-g.slots
		g.held = false
	}
}
