package join

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// limits of a listener that anybody can reach: how many connections are open at
// once, how many of one address, and how long each may last. The last, because
// whoever keeps a connection busy, however slowly, is never idle.
type limits struct {
	total, each int
	life        time.Duration
}

// limit keeps to the limits. Beyond the total others wait unaccepted; who has his
// share is turned away.
func limit(ln net.Listener, by limits) net.Listener {
	return &limited{Listener: ln, by: by, slots: make(chan struct{}, by.total), closed: make(chan struct{}), open: map[netip.Prefix]int{}}
}

type limited struct {
	net.Listener
	by     limits
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	open map[netip.Prefix]int
}

// Accept implements [net.Listener].
func (l *limited) Accept() (net.Conn, error) {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		from := addressOf(c)
		if !l.take(from) {
			c.Close() //nolint:errcheck // nothing was said
			<-l.slots
			continue
		}
		out := &slotConn{Conn: c, free: func() { l.give(from) }}
		out.timer = time.AfterFunc(l.by.life, out.end)
		return out, nil
	}
}

// addressOf is what one client has: an address of IPv4, a /64 of IPv6.
func addressOf(c net.Conn) netip.Prefix {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	prefix, _ := addr.Prefix(bits) //nolint:errcheck // they are in range
	return prefix
}

func (l *limited) take(from netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from] >= l.by.each {
		return false
	}
	l.open[from]++
	return true
}

func (l *limited) give(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
	<-l.slots
}

// Close implements [net.Listener].
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type slotConn struct {
	net.Conn
	once  sync.Once
	free  func()
	timer *time.Timer
}

// Close implements [net.Conn].
func (c *slotConn) Close() error {
	c.timer.Stop()
	c.once.Do(c.free)
	return c.Conn.Close()
}

// end is for when its time is over.
func (c *slotConn) end() {
	c.once.Do(c.free)
	c.Conn.Close() //nolint:errcheck // its reader notices
}
