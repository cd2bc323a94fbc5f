package server

import (
	"container/list"
	"context"
	"net"
	"time"

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
		if l.accept.Wait(l.ctx) != nil || !l.conns.makeRoom(l.ctx) {
			raw.Close()
			return nil, net.ErrClosed
		}
		if c, ok := l.conns.add(raw); ok {
			return c, nil
		}
		l.conns.metrics.refuse(l.conns.registry.other, refusedConnections)
		raw.Close()
	}
}

const (
	// patienceWithPeers is how long a handshake may wait for its peer before it
	// can be closed to make room: longer than a round trip around the world.
	patienceWithPeers = 500 * time.Millisecond
	// roomInterval is the time between looks for room.
	roomInterval = 5 * time.Millisecond
)

// makeRoom waits until another handshake may begin; meanwhile connections wait
// in the kernel. It returns false when ctx ends.
func (s *connSet) makeRoom(ctx context.Context) bool {
	for !s.hasRoom(time.Now()) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(roomInterval):
		}
	}
	return true
}

func (s *connSet) hasRoom(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.silent.Len()+s.shaking.Len()+s.parking.Len() < s.limits.Pending || s.evict(now)
}

// evict closes, under the lock, the handshake that is least likely to come to
// an end: one that waits because others from its address have used up theirs,
// drawn by lot, the oldest that has not said a word, for honest clients speak at once,
// or else the oldest that has let us wait for too long. It reports whether there
// was one.
func (s *connSet) evict(now time.Time) bool {
	c := s.anyone()
	if c == nil {
		c = oldest(s.silent, now)
	}
	if c == nil {
		c = oldest(s.shaking, now.Add(-patienceWithPeers))
	}
	if c == nil {
		return false
	}
	s.end(c)
	return true
}

// end closes, under the lock, a connection in its handshake; its own goroutine
// sees that and does the rest.
func (s *connSet) end(c *conn) {
	s.leave(c)
	c.evicted = true
	if c.parked != nil {
		close(c.parked)
	}
	c.Conn.Close()
}

// abandon ends all handshakes.
func (s *connSet) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		if c.place != nil {
			s.end(c)
		}
	}
}

// oldest returns the first that has been waiting since before then.
func oldest(queue *list.List, then time.Time) *conn {
	for e := queue.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*conn); !c.waiting.IsZero() && c.waiting.Before(then) {
			return c
		}
	}
	return nil
}

// waits notes since when the handshake waits for the peer (zero: it does not),
// and moves it when its first byte has come.
func (s *connSet) waits(c *conn, since time.Time, heard bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.place == nil {
		return
	}
	if heard && c.queue == s.silent {
		s.silent.Remove(c.place)
		c.queue, c.place = s.shaking, s.shaking.PushBack(c)
	}
	c.waiting = since
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
	held  bool
	since time.Time     // it holds a slot
	spent time.Duration // while it held one
	first []byte        // read before the handshake, not yet given to it
	busy  bool          // no slot came free in time
}

func (g *gate) read(b []byte) (int, error) {
	if len(g.first) > 0 {
		n := copy(b, g.first)
		g.first = g.first[n:]
		return n, g.acquire()
	}
	g.release()
	g.c.set.waits(g.c, time.Now(), false)
	n, err := g.c.Conn.Read(b)
	g.c.set.waits(g.c, time.Time{}, n > 0)
	if err != nil {
		return n, err
	}
	return n, g.acquire()
}

// await blocks until the peer's first byte is there. Before, nothing is spent
// on a handshake.
func (g *gate) await(deadline time.Time) error {
	if err := g.c.SetReadDeadline(deadline); err != nil {
		return err
	}
	first := make([]byte, 1)
	n, err := g.c.Conn.Read(first)
	g.first = first[:n]
	g.c.set.waits(g.c, time.Time{}, n > 0)
	return err
}

// handshakeCost is what a handshake is expected to take until it is known.
const handshakeCost = 500 * time.Microsecond

// afford waits until the address that the peer comes from has paid for the
// handshakes that it wasted before, or it is its turn all the same. Meanwhile the
// peer costs nothing but its place.
func (g *gate) afford(deadline time.Time) error {
	turn := g.c.set.enter(g.c)
	if turn == nil {
		return nil
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-timer.C:
		g.c.set.giveUp(g.c)
		return errBusy
	case <-turn:
	}
	if g.c.set.wasEvicted(g.c) {
		return errBusy
	}
	return nil
}

func (g *gate) acquire() error {
	if g.held {
		return nil
	}
	select {
	case g.c.set.slots <- struct{}{}:
		g.held, g.since = true, time.Now()
		return nil
	case <-g.ctx.Done():
		g.busy = true
		return errBusy
	}
}

func (g *gate) release() {
	if g.held {
		<-g.c.set.slots
		g.held = false
		g.spent += time.Since(g.since)
	}
}
