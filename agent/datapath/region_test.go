package datapath

import (
	"testing"

	"pgregory.net/rapid"
)

// TestSlabAgainstBitmap runs random takes, returns and reservations against a
// bitmap and checks the free list's shape after each.
func TestSlabAgainstBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint32Range(0, 60).Draw(t, "records")
		m := &slabModel{slab: newSlab(n), used: make([]bool, n)}
		if n > 0 {
			m.used[0] = true
		}
		t.Repeat(map[string]func(*rapid.T){
			"take":    m.take,
			"below":   m.takeBelow,
			"give":    m.give,
			"reserve": m.reserve,
			"":        m.check,
		})
	})
}

type slabModel struct {
	slab slab
	used []bool
	held []span
}

func (m *slabModel) take(t *rapid.T) {
	size := rapid.Uint32Range(1, 12).Draw(t, "size")
	want, fits := m.firstFit(size)
	got, ok := m.slab.take(size)
	if ok != fits || got != want {
		t.Fatalf("take %d: %v %v, want %v %v", size, got, ok, want, fits)
	}
	if ok {
		m.hold(got)
	}
}

func (m *slabModel) takeBelow(t *rapid.T) {
	size, limit := rapid.Uint32Range(1, 12).Draw(t, "size"), rapid.Uint32Range(0, 60).Draw(t, "limit")
	want, fits := m.firstFit(size)
	if got, ok := m.slab.takeBelow(size, limit); ok {
		if !fits || got != want || got.start >= limit {
			t.Fatalf("take %d below %d: %v, want %v", size, limit, got, want)
		}
		m.hold(got)
	} else if fits && want.start < limit {
		t.Fatalf("take %d below %d failed, %v fits", size, limit, want)
	}
}

func (m *slabModel) give(t *rapid.T) {
	if len(m.held) == 0 {
		t.Skip("nothing held")
	}
	i := rapid.IntRange(0, len(m.held)-1).Draw(t, "which")
	m.slab.give(m.held[i])
	m.mark(m.held[i], false)
	m.held = append(m.held[:i], m.held[i+1:]...)
}

func (m *slabModel) reserve(t *rapid.T) {
	r := span{rapid.Uint32Range(0, 70).Draw(t, "start"), rapid.Uint32Range(0, 12).Draw(t, "size")}
	want := r.size > 0 && m.isFree(r)
	if got := m.slab.reserve(r); got != want {
		t.Fatalf("reserve %v: %v, want %v", r, got, want)
	}
	if want {
		m.hold(r)
	}
}

func (m *slabModel) isFree(r span) bool {
	for i := r.start; i < r.end(); i++ {
		if i >= uint32(len(m.used)) || m.used[i] {
			return false
		}
	}
	return true
}

func (m *slabModel) firstFit(size uint32) (span, bool) {
	for i := range m.used {
		if r := (span{uint32(i), size}); m.isFree(r) {
			return r, true
		}
	}
	return span{}, false
}

func (m *slabModel) hold(r span) {
	m.held = append(m.held, r)
	m.mark(r, true)
}

func (m *slabModel) mark(r span, used bool) {
	for i := r.start; i < r.end(); i++ {
		m.used[i] = used
	}
}

func (m *slabModel) check(t *rapid.T) {
	total, last := uint32(0), uint32(0)
	for _, f := range m.slab.free {
		if f.size == 0 || f.start <= last && last > 0 || !m.isFree(f) {
			t.Fatalf("bad free list %v", m.slab.free)
		}
		total, last = total+f.size, f.end() // a start equal to last would be adjacent
	}
	want := uint32(0)
	for _, u := range m.used {
		if !u {
			want++
		}
	}
	if total != want || m.slab.total != want {
		t.Fatalf("%d records free, counted %d, want %d", total, m.slab.total, want)
	}
}

// TestRoundUpWastesLittle: never too small, never more than a fifth plus one
// record too large, and growing with its argument.
func TestRoundUpWastesLittle(t *testing.T) {
	last := uint32(0)
	for n := uint32(1); n < 100_000; n++ {
		got := roundUp(n)
		if got < n || got > n+n/5+1 || got < last {
			t.Fatalf("roundUp(%d) = %d after %d", n, got, last)
		}
		last = got
	}
}
