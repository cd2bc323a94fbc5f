// Package probe asks whether a target can be reached: whether anything comes
// back from a TCP connect. It needs no privilege.
package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Outcome is what became of a probe.
type Outcome uint8

// Answered: the target accepted or refused the connection; both prove the path.
// Failed: nothing came back in time, or the network said that there is no way.
// Untold: this machine could not send the probe, which says nothing of the
// target.
const (
	Answered Outcome = iota
	Failed
	Untold
)

// String is the outcome as metrics spell it.
func (o Outcome) String() string { return [...]string{"answered", "failed", "untold"}[o] }

// Limit is how long a probe waits. It is long enough for the repetition that
// TCP makes after a second to be answered.
const Limit = 2 * time.Second

// Connect connects to the target and closes the connection at once, by a reset:
// no byte is sent, and nothing of it stays behind on either side. rtt is the
// time to the answer. It returns within [Limit].
func Connect(ctx context.Context, target netip.AddrPort) (rtt time.Duration, outcome Outcome) {
	dialer := net.Dialer{Timeout: Limit, KeepAlive: -1}
	begin := time.Now()
	conn, err := dialer.DialContext(ctx, "tcp", target.String())
	rtt = time.Since(begin)
	if err != nil {
		return rtt, outcomeOf(ctx, err)
	}
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // without it the port stays taken for a minute
	}
	conn.Close()
	return rtt, Answered
}

// outcomeOf reads a failed connect. Only silence and what the network itself
// says count against the target.
func outcomeOf(ctx context.Context, err error) Outcome {
	for _, answered := range []error{syscall.ECONNREFUSED, syscall.ECONNRESET} {
		if errors.Is(err, answered) {
			return Answered
		}
	}
	for _, failed := range []error{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN} {
		if errors.Is(err, failed) {
			return Failed
		}
	}
	var timeout net.Error
	if ctx.Err() == nil && errors.As(err, &timeout) && timeout.Timeout() {
		return Failed
	}
	return Untold
}
