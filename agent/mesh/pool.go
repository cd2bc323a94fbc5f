package mesh

import (
	"encoding/binary"
)

// pool gives equal lists of strings one small number, so that a backend's
// record holds no pointer and equal records compare equal. Numbers are counted
// references: a hostile remote cannot make the pool outgrow its records. 0 is
// the empty list.
type pool struct {
	numbers map[string]uint32
	entries []poolEntry // index 0 unused
	free    []uint32
	key     []byte // scratch
}

type poolEntry struct {
	list []string
	key  string
	refs uint32
}

func newPool() pool {
	return pool{numbers: map[string]uint32{}, entries: make([]poolEntry, 1)}
}

// take returns the number of list and counts a reference. It keeps neither
// list nor the memory of its strings.
func (p *pool) take(list []string) uint32 {
	if len(list) == 0 {
		return 0
	}
	p.key = p.key[:0]
	for _, s := range list { // lengths first: no two lists share a key
		p.key = append(binary.AppendUvarint(p.key, uint64(len(s))), s...)
	}
	n, ok := p.numbers[string(p.key)]
	if !ok {
		n = p.add(list)
	}
	p.entries[n].refs++
	return n
}

// takeWord is take for a list of one string, or of none if that is empty.
func (p *pool) takeWord(word string) uint32 {
	if word == "" {
		return 0
	}
	return p.take([]string{word})
}

func (p *pool) add(list []string) uint32 {
	e := poolEntry{list: make([]string, len(list)), key: string(p.key)}
	rest := e.key
	for i, s := range list { // as parts of the key: long names are there once
		at := 1
		for n := len(s); n >= 0x80; n >>= 7 {
			at++
		}
		e.list[i], rest = rest[at:at+len(s)], rest[at+len(s):]
	}
	var n uint32
	if last := len(p.free) - 1; last >= 0 {
		n, p.free = p.free[last], p.free[:last]
		p.entries[n] = e
	} else {
		n = uint32(len(p.entries))
		p.entries = append(p.entries, e)
	}
	p.numbers[e.key] = n
	return n
}

// share counts another reference to n, which is in use.
func (p *pool) share(n uint32) {
	if n != 0 {
		p.entries[n].refs++
	}
}

// drop takes one reference back.
func (p *pool) drop(n uint32) {
	if n == 0 {
		return
	}
	e := &p.entries[n]
	if e.refs--; e.refs == 0 {
		delete(p.numbers, e.key)
		*e = poolEntry{}
		p.free = append(p.free, n)
	}
}

// list returns the strings of n; they are shared and must not be changed.
func (p *pool) list(n uint32) []string { return p.entries[n].list }

// word returns the single string of n, or "".
func (p *pool) word(n uint32) string {
	if l := p.entries[n].list; len(l) > 0 {
		return l[0]
	}
	return ""
}
