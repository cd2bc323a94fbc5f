package liveness

import (
	"net/netip"
	"slices"
)

// Sample chooses whom to probe: a few targets in turn, one of which is replaced
// from time to time and each of which is replaced when it alone does not
// answer, so that neither one dead backend nor one that hides looks like a dead
// cluster. A burst goes on to targets beyond the few.
type Sample struct {
	size  int
	pool  []netip.AddrPort // the first ones are the few
	turn  int              // next of the few
	fresh int              // next beyond them
	age   int              // rounds since one was replaced
}

// turnover is after how many choices one of the few is replaced.
const turnover = 40

// NewSample returns a sample of size targets, of none yet.
func NewSample(size int) *Sample { return &Sample{size: size} }

// Refill says which targets there are, in an order without meaning. Those of
// the few that still exist stay. The slice is not kept.
func (s *Sample) Refill(targets []netip.AddrPort) {
	var kept []netip.AddrPort
	for _, t := range s.few() {
		if slices.Contains(targets, t) {
			kept = append(kept, t)
		}
	}
	for _, t := range targets {
		if !slices.Contains(kept, t) {
			kept = append(kept, t)
		}
	}
	s.pool = kept
}

// Len is how many targets there are.
func (s *Sample) Len() int { return len(s.pool) }

func (s *Sample) few() []netip.AddrPort { return s.pool[:min(s.size, len(s.pool))] }

// Next chooses n targets. They are different ones unless there are fewer.
func (s *Sample) Next(n int) []netip.AddrPort {
	if len(s.pool) == 0 {
		return nil
	}
	if s.age++; s.age > turnover {
		s.replace(s.turn % len(s.few()))
	}
	var out []netip.AddrPort
	for range n {
		if len(out) < len(s.few()) || len(s.pool) == len(s.few()) {
			out = append(out, s.few()[s.turn%len(s.few())])
			s.turn++
			continue
		}
		out = append(out, s.pool[s.beyond()])
	}
	return out
}

// Failed says that a target did not answer although others did.
func (s *Sample) Failed(target netip.AddrPort) {
	if i := slices.Index(s.few(), target); i >= 0 {
		s.replace(i)
	}
}

// beyond is the place of the next target that is not one of the few.
func (s *Sample) beyond() int {
	s.fresh++
	return s.size + s.fresh%(len(s.pool)-s.size)
}

// replace changes one of the few for another target, if there is any.
func (s *Sample) replace(i int) {
	s.age = 0
	if len(s.pool) > s.size {
		other := s.beyond()
		s.pool[i], s.pool[other] = s.pool[other], s.pool[i]
	}
}
