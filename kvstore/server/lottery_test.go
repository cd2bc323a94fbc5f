package server

import (
	"net"
	"slices"
	"testing"
	"time"
)

// parkMany makes handshakes from one address that wait for their turn.
func parkMany(t *testing.T, n int) (s *connSet, waiting []*conn) {
	s = newConnSet(Limits{HandshakeShare: 1e-9, Handshakes: 2}.withDefaults(), nil, newMetrics(), nil)
	for range n {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		c, ok := s.add(fromAddress{Conn: ours, address: "127.0.0.2"})
		if !ok {
			t.Fatal("no room")
		}
		c.origin.handshakes.Take(time.Hour)
		if s.enter(c) == nil {
			t.Fatal("a handshake that nobody has paid for begins")
		}
		waiting = append(waiting, c)
	}
	return s, waiting
}

// TestWhoIsNextIsDrawnByLot lets handshakes that nobody has paid for go on while
// slots are idle, and only then, and ends others to make room: it must be another
// one from time to time.
func TestWhoIsNextIsDrawnByLot(t *testing.T) {
	const n = 10
	var drawn, ended []int
	for range 40 {
		s, waiting := parkMany(t, n)
		s.slots <- struct{}{}
		s.slots <- struct{}{}
		if s.drawOnce(); s.parking.Len() != n {
			t.Fatalf("%d of %d wait although no slot is idle", s.parking.Len(), n)
		}
		<-s.slots
		if left := s.drawOnce(); !left || s.parking.Len() != n-1 || waiting[0].origin.parked != n-1 {
			t.Fatalf("%d of %d wait with one idle slot", s.parking.Len(), n)
		}
		drawn = append(drawn, slices.IndexFunc(waiting, func(c *conn) bool { return c.queue == s.shaking }))
		if !s.evict(time.Now()) || s.parking.Len() != n-2 {
			t.Fatal("nobody makes room")
		}
		ended = append(ended, slices.IndexFunc(waiting, func(c *conn) bool { return c.evicted }))
	}
	for what, which := range map[string][]int{"goes on": drawn, "makes room": ended} {
		if slices.Min(which) == slices.Max(which) {
			t.Errorf("it is always number %d that %s", which[0], what)
		}
	}
}
