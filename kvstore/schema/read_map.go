package schema

import "net/netip"

// texts reads an object of strings with at most limit members, nil for null.
func (r *reader) texts(limit int) map[string]string {
	if !r.open('{') {
		return nil
	}
	m := map[string]string{}
	for r.more('}') {
		n := len(m)
		name := string(r.name())
		m[name] = r.str()
		r.grown(n, len(m), limit)
	}
	return m
}

// grown checks that the member just read was a new one and not one too many.
func (r *reader) grown(before, after, limit int) {
	if r.err != nil {
		return
	}
	if after == before {
		r.fail(string(r.path[r.depth]), "the map holds this key twice")
	}
	if after > limit {
		r.fail("", "the map may hold at most "+decimal(uint32(limit))+" entries")
	}
}

// addrMap reads an object whose members are named by addresses, each value with
// the given function. Two spellings of one address are refused, as each
// reader would pick another of the values. It returns nil for null or {}.
func addrMap[V any](r *reader, limit int, value func() V) map[netip.Addr]V {
	if !r.open('{') {
		return nil
	}
	var m map[netip.Addr]V
	for start := r.pos; r.more('}'); {
		addr := r.addr(r.name())
		v := value()
		if m == nil {
			m = make(map[netip.Addr]V, r.expect(start, limit))
		}
		n := len(m)
		m[addr] = v
		r.grown(n, len(m), limit)
	}
	return m
}

// expect guesses how many entries a map will hold from the size of its first
// one, which began at start, so that a large map is allocated once.
func (r *reader) expect(start, limit int) int {
	return min((len(r.data)-r.pos)/max(r.pos-start, 1)+1, limit)
}
