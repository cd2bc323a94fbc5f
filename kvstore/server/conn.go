package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/mem"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/purse"
)

// conn is one reader's connection with what it costs us. The transport
// credentials fill in grant before any request is served.
type conn struct {
	net.Conn
	set      *connSet
	gate     *gate // while the handshake goes on
	grant    grant
	chain    []*x509.Certificate // what the reader sent; nil without TLS
	vetted   atomic.Uint64       // the version of the trust that chain was checked against
	creates  *rate.Limiter
	requests *rate.Limiter
	origin   *origin
	purses   purse.Purses  // its own and those of its peer or origin
	news     *purse.Purse  // of its peer or origin, for what it is told of changes
	shook    time.Duration // processor time of the handshake
	idle     time.Duration // spent waiting for the reader; of the goroutine that reads
	indebted bool          // it was counted that nothing is read; of the same
	fresh    atomic.Int64  // bytes that will be sent and are news
	watches  atomic.Int64
	ranges   chan struct{} // one per listing of this connection being read
	unread   *meter        // bytes of listings handed to gRPC and not yet sent
	counting sync.Mutex    // for changes of unread together with the account's
	settled  bool          // under counting: the account no longer knows of unread
	lastSent atomic.Int64  // when unread last became smaller or began, a stamp
	held     atomic.Int64  // not to be read from before then, a stamp; 0 is no limit
	node     string        // that it reports for; under the lock of the set's speakers
	late     bool          // it was heard once more after another had replaced it; under that lock, too
	resumed  atomic.Int64  // when it was read from again after a pause of ours, a stamp
	writing  atomic.Int64  // when the write in progress began, a stamp; 0 is none
	paused   atomic.Bool   // it is not read from because of us
	ended    atomic.Bool   // by cut
	done     chan struct{} // closed by Close
	closed   sync.Once

	// Under the set's lock.
	place    *list.Element // in one of the lists of handshakes; nil afterwards
	queue    *list.List    // the list that place is in
	waiting  time.Time     // the handshake waits for the peer since then
	parked   chan struct{} // closed to end its wait for processor time
	payer    *purse.Purse  // pays for the handshake if that comes to nothing
	evicted  bool          // closed to make room
	admitted bool          // counted as established
	until    time.Time     // the end of its access, by the wall clock; zero is none
}

// Read implements [net.Conn].
func (c *conn) Read(b []byte) (int, error) {
	if c.gate != nil {
		return c.gate.read(b)
	}
	begin := time.Now()
	c.await()
	n, err := c.Conn.Read(b)
	c.idle += time.Since(begin)
	return n, err
}

// hold stops reading from the connection for a while.
func (c *conn) hold(d time.Duration) {
	if until := stamp() + int64(d); d > 0 && until > c.held.Load() {
		c.held.Store(until)
	}
}

var epoch = time.Now()

// stamp is the time in nanoseconds since the process began, which a step of the
// wall clock does not move.
func stamp() int64 { return int64(time.Since(epoch)) }

// await returns when the connection may be read from.
func (c *conn) await() {
	until := c.held.Load()
	if until == 0 {
		return
	}
	c.paused.Store(true)
	defer c.resume()
	c.held.CompareAndSwap(until, 0)
	timer := time.NewTimer(time.Duration(until - stamp()))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.done:
	}
}

func (c *conn) resume() {
	c.resumed.Store(stamp())
	c.paused.Store(false)
}

// readable returns for how long the connection has been read from without a
// pause of ours, at most since then, a stamp.
func (c *conn) readable(since int64) time.Duration {
	now := stamp()
	if c.paused.Load() || c.owes() || c.held.Load() > now {
		return 0
	}
	return time.Duration(now - max(since, c.resumed.Load()))
}

// littleUnread is what may stay unread: gRPC never says of replies to calls that
// ended meanwhile that they were sent.
const littleUnread = 16 << 10

// stuck reports whether the reader has not taken since then what is sent to it.
func (c *conn) stuck(then int64) bool {
	begun := c.writing.Load()
	return begun != 0 && begun < then || c.unread.n.Load() > littleUnread && c.lastSent.Load() < then
}

// Close closes the connection and forgets it.
func (c *conn) Close() error {
	c.closed.Do(func() {
		close(c.done)
		c.set.remove(c)
	})
	return c.Conn.Close()
}

// refuse counts a refusal.
func (c *conn) refuse(why refusal) { c.set.metrics.refuse(c.account(), why) }

// account returns whom the connection counts for.
func (c *conn) account() *account {
	if c.grant.account == nil {
		return c.set.registry.other
	}
	return c.grant.account
}

// cut closes the connection because of its reader, for the first reason that
// there is.
func (c *conn) cut(why refusal) {
	if c.ended.Swap(true) {
		return
	}
	c.refuse(why)
	c.set.log.Warn("reader disconnected", "peer", c.RemoteAddr().String(), "name", c.grant.name, "reason", string(why))
	c.Close()
}

// smallestBuffer is the capacity from which on gRPC tells when a buffer was sent.
const smallestBuffer = 1<<10 + 1

// buffer wraps encoded bytes, with at least that capacity, so that they count as
// unread until gRPC has sent them.
func (c *conn) buffer(b []byte) mem.Buffer {
	c.lastSent.Store(stamp())
	c.count(cap(b))
	return mem.NewBuffer(&b, unreadPool{c})
}

// count changes what is unread.
func (c *conn) count(n int) {
	c.counting.Lock()
	defer c.counting.Unlock()
	c.unread.add(n)
	if !c.settled {
		c.account().unread.add(n)
	}
}

// settle gives back what is unread to the account: gRPC does not free what a
// closed connection leaves behind.
func (c *conn) settle() {
	c.counting.Lock()
	defer c.counting.Unlock()
	c.settled = true
	c.account().unread.add(-int(c.unread.n.Load()))
}

// unreadPool is the mem.BufferPool that learns when a buffer was sent.
type unreadPool struct{ c *conn }

func (unreadPool) Get(n int) *[]byte { b := make([]byte, n); return &b }

func (p unreadPool) Put(b *[]byte) {
	p.c.lastSent.Store(stamp())
	p.c.count(-cap(*b))
}

// connSet knows all open connections.
type connSet struct {
	limits   Limits
	log      *slog.Logger
	metrics  *metrics
	registry *registry
	speakers *speakers
	closing  <-chan struct{} // set before the first connection
	slots    chan struct{}   // one per handshake being computed
	spare    *purse.Purse    // for handshakes whose address cannot pay
	waiting  chan struct{}   // holds a token when handshakes wait for their turn

	mu          sync.Mutex
	open        map[*conn]struct{}
	established int
	guests      int // of them, those that are no own agents
	origins     *origins
	silent      *list.List // of *conn: in the handshake, and no byte has come
	shaking     *list.List // of *conn: in the handshake, by the time of the first byte
	parking     *list.List // of *conn: in the handshake, waiting for processor time
}

func newConnSet(l Limits, log *slog.Logger, m *metrics, r *registry) *connSet {
	return &connSet{
		limits: l, log: log, metrics: m, registry: r, speakers: newSpeakers(), origins: newOrigins(l), open: map[*conn]struct{}{},
		slots: make(chan struct{}, l.Handshakes), spare: newSpare(l), waiting: make(chan struct{}, 1),
		silent: list.New(), shaking: list.New(), parking: list.New(),
	}
}

// add takes an accepted connection; false means there are too many.
func (s *connSet) add(raw net.Conn) (*conn, bool) {
	c := &conn{Conn: raw, set: s, origin: s.origins.of(raw), done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.established >= s.limits.Connections {
		return nil, false
	}
	s.open[c] = struct{}{}
	c.queue, c.place, c.waiting = s.silent, s.silent.PushBack(c), time.Now()
	s.metrics.connections.Inc()
	return c, true
}

// leave takes a connection out of the lists of handshakes.
func (s *connSet) leave(c *conn) {
	if c.place != nil {
		if c.queue == s.parking {
			c.origin.parked--
		}
		c.queue.Remove(c.place)
		c.place, c.queue = nil, nil
	}
}

func (s *connSet) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	s.speakers.forget(c)
	s.leave(c)
	s.metrics.connections.Dec()
	if c.admitted {
		s.established--
		if !c.grant.own {
			s.guests--
		}
		c.account().conns.Add(-1)
		c.settle()
	}
}

// admission is whom a handshake was with.
type admission struct {
	grant  grant
	until  time.Time // zero: without end
	chain  []*x509.Certificate
	roster *roster // that the chain of a configured peer was checked against
}

var errRefused = errors.New("connection refused by a limit")

// admit records who is at the other end, unless there are too many already.
func (s *connSet) admit(c *conn, a admission) error {
	s.mu.Lock()
	_, open := s.open[c]
	if !open {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.leave(c)
	c.grant, c.chain = a.grant, a.chain
	why := s.afford(c)
	if why == "" {
		s.equip(c, a.until)
	}
	s.mu.Unlock()
	if why != "" {
		c.cut(why)
		return errRefused
	}
	if now, _ := s.registry.current(); a.grant.peer != nil && now != a.roster {
		s.reconsider(c) // the peers changed since the handshake looked at them
	}
	return nil
}

// afford says which limit another connection would break. A quarter of all is
// kept for the cluster's own agents.
func (s *connSet) afford(c *conn) refusal {
	a, most := c.account(), s.limits.Connections
	full := s.established >= most || !c.grant.own && s.guests >= most-most/4
	switch {
	case full || !take(&a.conns, a.limits.Connections):
		return refusedConnections
	case !a.connects.Allow():
		a.conns.Add(-1)
		return refusedConnects
	}
	return ""
}

// equip gives an established connection what only those need.
func (s *connSet) equip(c *conn, until time.Time) {
	c.admitted = true
	s.established++
	if !c.grant.own {
		s.guests++
	}
	c.creates = rate.NewLimiter(rate.Limit(s.limits.CreatesPerSecond), 2*s.limits.WatchesPerConnection)
	c.requests = rate.NewLimiter(rate.Limit(s.limits.RequestsPerSecond), burst(2*s.limits.RequestsPerSecond))
	c.purses, c.news = c.paying()
	c.purses = append(purse.Purses{purse.New(s.limits.Share, s.limits.Burst)}, c.purses...)
	c.ranges = make(chan struct{}, s.limits.RangesPerConnection)
	c.unread, c.until = newMeter(), until
}

// paying are the purses of whoever is behind a connection.
func (c *conn) paying() (requests purse.Purses, news *purse.Purse) {
	if a := c.account(); a.purses != nil {
		return a.purses, a.news
	}
	return c.origin.requests, c.origin.news
}

// reconsider closes the connection of a configured peer that is none any more,
// or that may see something else now.
func (s *connSet) reconsider(c *conn) {
	now, _ := s.registry.current()
	if _, same := now.grants[c.grant.peer]; !same {
		s.again(c, now)
	}
}

// again asks anew whose connection this is.
func (s *connSet) again(c *conn, now *roster) {
	p, until, err := now.table.Authenticate(c.chain, time.Now())
	switch {
	case err != nil:
		c.cut(whyWithdrawn(err))
	case p.Name != c.grant.peer.Name || !p.View.Equal(c.grant.peer.View):
		c.cut(refusedRemoved)
	default:
		s.prolong(c, until)
	}
}

func (s *connSet) prolong(c *conn, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.until = until
}

// expire closes the connections whose certificate has ended. It looks at the
// clock on the wall: a timer would not notice that this was put forward.
func (s *connSet) expire(now time.Time) {
	for _, c := range s.which(func(c *conn) bool { return !c.until.IsZero() && now.After(c.until) }) {
		c.cut(refusedExpired)
	}
}

// whyWithdrawn says why a certificate that was good is refused now.
func whyWithdrawn(err error) refusal {
	switch why := classify(err); why {
	case failedExpired, failedRevoked, failedAuthority:
		return refusal(why)
	}
	return refusedRemoved
}

// vet closes the connections that would not get in any more by what TLS trusts:
// those that its CAs have admitted, and those of configured peers whose
// certificate it has taken back. Most are not looked at: only when what is trusted has
// changed, or when their time is over, can the answer be another.
func (s *connSet) vet(trust *certs.Trust) {
	if trust == nil {
		return
	}
	version := trust.Version()
	for _, c := range s.which(func(c *conn) bool { return c.chain != nil }) {
		if c.vetted.Swap(version) == version {
			continue
		}
		if err := s.vetOne(c, trust); err != nil {
			s.log.Debug("reader's certificate is trusted no more", "name", c.grant.name, "err", err)
			c.cut(whyWithdrawn(err))
		}
	}
}

func (s *connSet) vetOne(c *conn, trust *certs.Trust) error {
	if c.grant.peer != nil {
		if err := trust.Revoked(c.chain); err != nil {
			return err
		}
		now, _ := s.registry.current()
		s.again(c, now) // its CAs may be the own ones
		return nil
	}
	until, err := trust.Until(tls.ConnectionState{PeerCertificates: c.chain})
	if err == nil {
		s.prolong(c, until)
	}
	return err
}

// disconnect closes the connections of the names that match.
func (s *connSet) disconnect(match func(string) bool) int {
	n := 0
	for _, c := range s.which(func(c *conn) bool { return c.grant.name != "" && match(c.grant.name) }) {
		s.log.Info("reader disconnected", "peer", c.RemoteAddr().String(), "name", c.grant.name, "reason", "removed")
		c.Close()
		n++
	}
	return n
}

// which returns the established connections that match.
func (s *connSet) which(match func(*conn) bool) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*conn
	for c := range s.open {
		if c.admitted && match(c) {
			found = append(found, c)
		}
	}
	return found
}

// guard closes, until ctx ends, the connections of readers that have lost their
// access and of those that do not take what is sent to them.
func (s *connSet) guard(ctx context.Context, trust *certs.Trust) {
	tick := time.NewTicker(min(s.limits.SendTimeout/4+1, time.Second))
	defer tick.Stop()
	_, changed := s.registry.current()
	for {
		select {
		case <-ctx.Done():
			s.abandon()
			return
		case <-changed:
			_, changed = s.registry.current()
			for _, c := range s.which(func(c *conn) bool { return c.grant.peer != nil }) {
				s.reconsider(c)
			}
		case now := <-tick.C:
			then := stamp() - int64(s.limits.SendTimeout)
			for _, c := range s.which(func(c *conn) bool { return c.stuck(then) }) {
				c.cut(refusedUnread)
			}
			s.expire(now)
			s.vet(trust)
		}
	}
}
