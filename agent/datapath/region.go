package datapath

import "slices"

// span is a run of slab records.
type span struct{ start, size uint32 }

func (s span) end() uint32 { return s.start + s.size }

// slab gives out runs of records, first fit from the bottom, so that the used
// part stays compact. Free spans are sorted, disjoint and never adjacent.
type slab struct {
	free  []span
	total uint32 // free records
}

// newSlab returns an allocator of records 1 to records-1; record 0 is never
// given out.
func newSlab(records uint32) slab {
	if records < 2 {
		return slab{}
	}
	return slab{free: []span{{1, records - 1}}, total: records - 1}
}

// take returns a run of size records, or false if no free run is large enough.
func (s *slab) take(size uint32) (span, bool) { return s.takeBelow(size, ^uint32(0)) }

// takeBelow is take for runs that start before limit only.
func (s *slab) takeBelow(size, limit uint32) (span, bool) {
	for i, f := range s.free {
		if f.start >= limit {
			break
		}
		if f.size >= size {
			s.cut(i, span{f.start, size})
			return span{f.start, size}, true
		}
	}
	return span{}, false
}

// reserve takes exactly r, or returns false if part of it is not free.
func (s *slab) reserve(r span) bool {
	i, found := slices.BinarySearchFunc(s.free, r, func(f, r span) int { return int(int64(f.start) - int64(r.start)) })
	if !found {
		i--
	}
	if i < 0 || r.size == 0 || uint64(r.start)+uint64(r.size) > uint64(s.free[i].end()) {
		return false
	}
	s.cut(i, r)
	return true
}

// cut removes r from free span i, which contains it.
func (s *slab) cut(i int, r span) {
	f := s.free[i]
	before, after := span{f.start, r.start - f.start}, span{r.end(), f.end() - r.end()}
	s.total -= r.size
	switch {
	case before.size > 0 && after.size > 0:
		s.free[i] = before
		s.free = slices.Insert(s.free, i+1, after)
	case before.size > 0:
		s.free[i] = before
	case after.size > 0:
		s.free[i] = after
	default:
		s.free = slices.Delete(s.free, i, i+1)
	}
}

// give returns r, joining it with its free neighbours.
func (s *slab) give(r span) {
	i, _ := slices.BinarySearchFunc(s.free, r, func(f, r span) int { return int(int64(f.start) - int64(r.start)) })
	s.total += r.size
	joinsBefore := i > 0 && s.free[i-1].end() == r.start
	joinsAfter := i < len(s.free) && r.end() == s.free[i].start
	switch {
	case joinsBefore && joinsAfter:
		s.free[i-1].size += r.size + s.free[i].size
		s.free = slices.Delete(s.free, i, i+1)
	case joinsBefore:
		s.free[i-1].size += r.size
	case joinsAfter:
		s.free[i] = span{r.start, r.size + s.free[i].size}
	default:
		s.free = slices.Insert(s.free, i, r)
	}
}

// largest is the longest run that can be taken.
func (s *slab) largest() uint32 {
	n := uint32(0)
	for _, f := range s.free {
		n = max(n, f.size)
	}
	return n
}

// roundUp is how many records are taken for a region that needs n: sizes come
// in steps of about an eighth, so that a set that grows or shrinks a little
// fits into the gap it left.
func roundUp(n uint32) uint32 {
	step := uint32(2)
	for step*16 <= n {
		step *= 2
	}
	return (n + step - 1) / step * step
}
