package server

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/mem"
)

// conn is one reader's connection with what it costs us. The transport
// credentials fill in grant before any request is served.
type conn struct {
	net.Conn
	set     *connSet
	grant   grant
	creates *rate.Limiter
	watches atomic.Int64
	ranges  chan struct{} // one per listing of this connection being read
	expiry  *time.Timer   // closes the connection when its certificate expires

	unread atomic.Int64  // bytes of listings handed to gRPC and not yet sent
	sent   chan struct{} // holds a token when unread became smaller
	closed sync.Once
}

// Close closes the connection and forgets it.
func (c *conn) Close() error {
	c.closed.Do(func() { c.set.remove(c) })
	return c.Conn.Close()
}

// cut closes the connection because of its reader.
func (c *conn) cut(why refusal) {
	c.set.metrics.refuse(why)
	c.set.log.Warn("reader disconnected", "peer", c.RemoteAddr().String(), "name", c.grant.name, "reason", string(why))
	c.Close()
}

// expireAt closes the connection when its certificate is no longer valid.
func (c *conn) expireAt(t time.Time) { c.expiry = time.AfterFunc(time.Until(t), func() { c.Close() }) }

// buffer wraps encoded bytes so that they count as unread until gRPC has sent
// them.
func (c *conn) buffer(b []byte) mem.Buffer {
	if mem.IsBelowBufferPoolingThreshold(cap(b)) {
		return mem.SliceBuffer(b)
	}
	c.unread.Add(int64(cap(b)))
	return mem.NewBuffer(&b, unreadPool{c})
}

// unreadPool is the mem.BufferPool that learns when a buffer was sent.
type unreadPool struct{ c *conn }

func (unreadPool) Get(n int) *[]byte { b := make([]byte, n); return &b }

func (p unreadPool) Put(b *[]byte) {
	p.c.unread.Add(-int64(cap(*b)))
	select {
	case p.c.sent <- struct{}{}:
	default:
	}
}

// connSet knows all open connections.
type connSet struct {
	limits  Limits
	log     *slog.Logger
	metrics *metrics

	mu   sync.Mutex
	open map[*conn]struct{}
}

func newConnSet(l Limits, log *slog.Logger, m *metrics) *connSet {
	return &connSet{limits: l, log: log, metrics: m, open: map[*conn]struct{}{}}
}

// add takes an accepted connection; false means there are too many.
func (s *connSet) add(raw net.Conn) (*conn, bool) {
	c := &conn{
		Conn:    raw,
		set:     s,
		creates: rate.NewLimiter(rate.Limit(s.limits.CreatesPerSecond), 2*s.limits.WatchesPerConnection),
		ranges:  make(chan struct{}, s.limits.RangesPerConnection),
		sent:    make(chan struct{}, 1),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) >= s.limits.Connections {
		return nil, false
	}
	s.open[c] = struct{}{}
	s.metrics.connections.Inc()
	return c, true
}

func (s *connSet) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	s.metrics.connections.Dec()
	if c.expiry != nil {
		c.expiry.Stop()
	}
}

// admit records who is at the other end.
func (s *connSet) admit(c *conn, g grant, notAfter time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.grant = g
	if _, open := s.open[c]; open && !notAfter.IsZero() {
		c.expireAt(notAfter)
	}
}

// disconnect closes the connections of the names that match.
func (s *connSet) disconnect(match func(string) bool) int {
	n := 0
	for _, c := range s.named(match) {
		s.log.Info("reader disconnected", "peer", c.RemoteAddr().String(), "name", c.grant.name, "reason", "removed")
		c.Close()
		n++
	}
	return n
}

func (s *connSet) named(match func(string) bool) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*conn
	for c := range s.open {
		if c.grant.name != "" && match(c.grant.name) {
			found = append(found, c)
		}
	}
	return found
}

// listener accepts connections up to the limit and closes those beyond it.
type listener struct {
	net.Listener
	conns *connSet
}

func (l listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c, ok := l.conns.add(raw); ok {
			return c, nil
		}
		l.conns.metrics.refuse(refusedConnections)
		raw.Close()
	}
}
