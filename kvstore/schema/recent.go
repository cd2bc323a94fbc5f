package schema

import "bytes"

// recent remembers the values last read with the text they were read from: in
// a large service most port maps, zones and lists of names are spelled alike,
// and comparing text is much cheaper than reading it again.
type recent[V any] struct {
	texts  [8][]byte // complete objects or lists, so none begins another
	values [8]V
	used   int
}

// repeated consumes and returns a remembered value if its text comes next.
func (m *recent[V]) repeated(r *reader) (v V, ok bool) {
	if c := r.peek(); c != '{' && c != '[' {
		return v, false
	}
	for i, text := range m.texts {
		if len(text) > 0 && bytes.HasPrefix(r.data[r.pos:], text) {
			r.pos += len(text)
			return m.values[i], true
		}
	}
	return v, false
}

// remember stores a value that was read without error from start on, in place
// of the oldest one. A null is no complete object and not remembered.
func (m *recent[V]) remember(r *reader, start int, v V) {
	if r.err == nil && r.data[start] != 'n' {
		i := m.used % len(m.texts)
		m.texts[i], m.values[i] = r.data[start:r.pos], v
		m.used++
	}
}
