package server

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/clustermesh/clustermesh/kvstore/purse"
)

// Handshakes wait for their turn when others from their address have used up
// what it may waste. An honest peer may be among them, behind a load balancer
// that hides its clients' addresses, and nothing tells it from the others. So
// it is drawn by lot who is next, and while nobody else needs the processors
// more are drawn than the address has paid for.

const (
	// drawInterval is the time between draws while somebody waits.
	drawInterval = 5 * time.Millisecond
	// spareShares is how many times the share of one address all those that have
	// used up theirs may have together, and spareBurst the part of its burst.
	spareShares = 4
	spareBurst  = 0.1
)

// newSpare is what pays for those who are drawn although their address cannot.
func newSpare(l Limits) *purse.Purse {
	return purse.New(min(1, spareShares*l.HandshakeShare), time.Duration(spareBurst*float64(l.HandshakeBurst)))
}

// enter lets a handshake begin, if its address can pay and nobody from there
// waits. Else it returns what is closed when the handshake was drawn, or has
// been closed to make room.
func (s *connSet) enter(c *conn) (turn <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.place == nil || c.origin.parked == 0 && canPay(c.origin.handshakes) {
		c.payer = c.origin.handshakes
		return nil
	}
	s.leave(c)
	c.queue, c.parked = s.parking, make(chan struct{})
	c.place = s.parking.PushBack(c)
	c.origin.parked++
	select {
	case s.waiting <- struct{}{}:
	default: // the next draw knows already
	}
	return c.parked
}

// canPay takes what a handshake is expected to cost, if it is there.
func canPay(p *purse.Purse) bool {
	if p.Take(handshakeCost) == 0 {
		return true
	}
	p.Take(-handshakeCost)
	return false
}

// draw lets handshakes that wait go on, until ctx ends.
func (s *connSet) draw(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.waiting:
		}
		for s.drawOnce() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(drawInterval):
			}
		}
	}
}

// drawOnce lets as many go on as can be paid for, in an order that nobody can
// choose, and reports whether others are left.
func (s *connSet) drawOnce() (left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := make([]*conn, 0, s.parking.Len())
	for e := s.parking.Front(); e != nil; e = e.Next() {
		waiting = append(waiting, e.Value.(*conn))
	}
	rand.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
	idle, broke := cap(s.slots)-len(s.slots), map[*origin]bool{}
	for _, c := range waiting {
		payer := c.origin.handshakes
		if broke[c.origin] || !canPay(payer) {
			broke[c.origin] = true
			payer = s.spare
			if idle <= 0 || !canPay(payer) {
				idle = 0
				continue
			}
			idle--
		}
		s.resume(c, payer)
	}
	return s.parking.Len() > 0
}

// resume lets, under the lock, a handshake go on.
func (s *connSet) resume(c *conn, payer *purse.Purse) {
	s.leave(c)
	c.queue, c.place = s.shaking, s.shaking.PushBack(c)
	c.payer = payer
	close(c.parked)
	c.parked = nil
}

// giveUp ends the wait of a handshake, even if it has just been drawn.
func (s *connSet) giveUp(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.payer.Take(-handshakeCost)
	s.leave(c)
}

// anyone returns, under the lock, one of the handshakes that wait for their
// turn: not the last, for an honest peer among many others is often that.
func (s *connSet) anyone() *conn {
	if s.parking.Len() == 0 {
		return nil
	}
	e := s.parking.Front()
	for range rand.IntN(s.parking.Len()) {
		e = e.Next()
	}
	return e.Value.(*conn)
}
