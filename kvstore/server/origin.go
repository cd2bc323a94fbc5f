package server

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/kvstore/purse"
)

// origin is one address that connections come from, of IPv6 a /64. It is all
// that is known of a peer before the handshake is over, and of readers that no
// peer is configured for.
type origin struct {
	handshakes *purse.Purse // those that came to nothing
	requests   purse.Purses // of readers without a peer
	news       *purse.Purse // of the same
	parked     int          // handshakes that wait for their turn; under the lock of the connections
}

// maxOrigins bounds how many addresses are remembered.
const maxOrigins = 4096

// origins remembers the addresses that have taken something lately. It is safe
// for concurrent use.
type origins struct {
	limits Limits

	mu     sync.Mutex
	known  map[netip.Prefix]*origin
	others *origin   // all of them, when too many are known
	swept  time.Time // when those that are as good as new were forgotten
}

func newOrigins(l Limits) *origins {
	s := &origins{limits: l, known: map[netip.Prefix]*origin{}}
	s.others = s.make()
	return s
}

func (s *origins) make() *origin {
	return &origin{
		handshakes: purse.New(s.limits.HandshakeShare, s.limits.HandshakeBurst),
		requests:   requestPurses(s.limits.Peer),
		news:       purse.New(s.limits.Peer.NewsShare, s.limits.Peer.NewsBurst),
	}
}

// of returns what is known of the other end of a connection.
func (s *origins) of(c net.Conn) *origin {
	from := prefixOf(c.RemoteAddr())
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.known[from]; found != nil {
		return found
	}
	if len(s.known) >= maxOrigins && time.Since(s.swept) > time.Second {
		s.forget()
	}
	if len(s.known) >= maxOrigins {
		return s.others
	}
	found := s.make()
	s.known[from] = found
	return found
}

// forget drops those that are as good as new.
func (s *origins) forget() {
	s.swept = time.Now()
	for from, found := range s.known {
		if found.handshakes.Full() && found.requests[0].Full() && found.news.Full() {
			delete(s.known, from)
		}
	}
}

func prefixOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap()
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	from, _ := addr.WithZone("").Prefix(bits) // the length fits
	return from
}
