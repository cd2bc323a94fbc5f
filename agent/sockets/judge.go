package sockets

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"time"

	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// protoUDP is the number of the protocol.
const protoUDP = 17

// confirm is for how long a backend has to be gone before anything is ended, so
// that a moment between two steps of the agent is not taken for the end.
const confirm = 200 * time.Millisecond

// never is longer than anything lasts.
const never = time.Duration(1<<63 - 1)

// set is what a frontend wants for its connections, and all its backends, true
// for those that are withdrawn with their cluster.
type set struct {
	onWithdraw uint8
	drain      time.Duration
	backends   map[netip.AddrPort]bool
}

func newSet(r layout.Region, backends []layout.Backend) *set {
	s := &set{onWithdraw: r.OnWithdraw, drain: time.Duration(r.Drain) * time.Second, backends: map[netip.AddrPort]bool{}}
	for i := range backends {
		b := &backends[i]
		at := netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), binary.BigEndian.Uint16(b.Port[:]))
		other, known := s.backends[at]
		s.backends[at] = b.Flags&layout.FlagWithdrawn != 0 && (!known || other)
	}
	return s
}

// grace is how long a connection may go on after its backend was withdrawn, never
// ending if it was not, or if its connections are kept. Without a set, the
// frontend is gone, and with it what the service wants.
func (s *set) grace(p bpf.Pair) time.Duration {
	if s == nil {
		if p.Protocol == protoUDP {
			return confirm
		}
		return never
	}
	withdrawn, listed := s.backends[p.Backend]
	switch {
	case listed && !withdrawn:
		return never
	case !listed && p.Protocol == protoUDP, s.onWithdraw == layout.WithdrawReset:
		return confirm
	case s.onWithdraw == layout.WithdrawDrain:
		return max(s.drain, confirm)
	}
	return never
}

// memory is since when pairs have been withdrawn whose connections are to end.
type memory map[bpf.Pair]time.Duration

// outcome is what one look at all sockets leads to: which of them end now, what
// is to be remembered and forgotten, and when the next ones are due, 0 for never.
type outcome struct {
	end              []bpf.Socket
	remember, forget []bpf.Pair
	next             time.Duration
}

// look judges every socket. find returns the set of a frontend by its number, nil
// if there is none, or false if it cannot be told now. It changes m, at time now.
func (m memory) look(now time.Duration, sockets []bpf.Socket, find func(id uint32) (*set, bool)) outcome {
	var out outcome
	seen := map[bpf.Pair]bool{}
	graces := map[bpf.Pair]time.Duration{}
	for _, one := range sockets {
		grace, judged := graces[one.Pair]
		if !judged {
			s, sure := find(one.ID)
			if grace = never; sure {
				grace = s.grace(one.Pair)
			}
			if _, known := m[one.Pair]; known && !sure {
				seen[one.Pair] = true // until it can be told again
			}
			graces[one.Pair] = grace
		}
		if grace != never {
			seen[one.Pair] = true
			out.weigh(m, now, grace, one)
		}
	}
	for p := range maps.Keys(m) {
		if !seen[p] {
			out.forget = append(out.forget, p)
			delete(m, p)
		}
	}
	return out
}

// weigh decides on one socket whose backend is withdrawn.
func (o *outcome) weigh(m memory, now, grace time.Duration, one bpf.Socket) {
	since, known := m[one.Pair]
	if !known {
		since = now
		m[one.Pair] = now
		o.remember = append(o.remember, one.Pair)
	}
	due := since + grace
	switch {
	case due <= now:
		o.end = append(o.end, one)
	case o.next == 0 || due < o.next:
		o.next = due
	}
}
