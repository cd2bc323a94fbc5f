package schema

import "unicode/utf8"

// maxDepth bounds the nesting of a value. Ours need five levels; the rest is
// room for members that newer versions may add.
const maxDepth = 16

// wholeValue is the field of an error that concerns no single member.
const wholeValue = "value"

// reader pulls the members of one JSON text, without reflection and without
// building what is not asked for. It reads the language of RFC 8259, restricted
// to valid UTF-8 and maxDepth; as in encoding/json, null stands for a type's
// zero value.
//
// Its error is sticky: after the first one every read yields a zero value and
// every loop ends, so callers look at err once, at the end.
type reader struct {
	key   string
	data  []byte
	pos   int
	depth int
	fresh bool                 // the innermost container was just opened
	path  [maxDepth + 1][]byte // the name being read at each depth, nil in lists
	err   *Error
	known [4]string // the strings last made by intern
	next  int
}

// newReader checks the bounds that must hold before anything is parsed.
func newReader(key string, value []byte, maxBytes int) reader {
	r := reader{key: key, data: value}
	if len(value) > maxBytes {
		r.err = tooMany(key, "value bytes", len(value), maxBytes)
	} else if !utf8.Valid(value) {
		r.err = newError(key, wholeValue, excerpt(value), "must be valid UTF-8")
	}
	return r
}

// result returns the sticky error as an error, nil when there is none, after
// checking that nothing follows the value.
func (r *reader) result() error {
	if r.err == nil && r.peek() != 0 {
		r.syntax("nothing may follow the value")
	}
	if r.err != nil {
		return r.err
	}
	return nil
}

// fail records the first error, at the field being read.
func (r *reader) fail(value, reason string) {
	if r.err == nil {
		r.err = newError(r.key, r.field(), value, reason)
	}
}

// failAt records an error of a member that was read before.
func (r *reader) failAt(member, value, reason string) {
	if r.err == nil {
		r.err = newError(r.key, member, value, reason)
	}
}

// syntax records an error at the current position.
func (r *reader) syntax(reason string) {
	if r.err == nil {
		r.fail(excerpt(r.data[min(r.pos, len(r.data)):]), reason)
	}
}

func (r *reader) field() string {
	field := ""
	for _, name := range r.path[1 : r.depth+1] {
		if name == nil {
			continue
		}
		if field != "" {
			field += "/"
		}
		field += printable(string(name), maxErrorValue)
	}
	if field == "" {
		return wholeValue
	}
	return field
}

func excerpt(b []byte) string { return string(b[:min(len(b), maxErrorValue+1)]) }

// peek skips white space and returns the next byte without consuming it, 0 at
// the end or after an error. So that 0 has no other meaning, a 0 byte in the
// text is refused here.
func (r *reader) peek() byte {
	for r.err == nil && r.pos < len(r.data) {
		switch c := r.data[r.pos]; c {
		case ' ', '\t', '\n', '\r':
			r.pos++
		case 0:
			r.syntax("must be JSON without control characters")
		default:
			return c
		}
	}
	return 0
}

// null consumes a null, if that is what comes.
func (r *reader) null() bool { return r.peek() == 'n' && r.word("null") }

// word consumes an exact literal.
func (r *reader) word(w string) bool {
	if end := r.pos + len(w); end <= len(r.data) && string(r.data[r.pos:end]) == w {
		r.pos = end
		return true
	}
	r.syntax("must be JSON")
	return false
}

// open enters an object ('{') or list ('['). It returns false on null, which
// stands for an empty one.
func (r *reader) open(start byte) bool {
	if c := r.peek(); c != start {
		if c != 'n' || !r.word("null") {
			r.syntax("must be JSON: expected " + string(rune(start)))
		}
		return false
	}
	if r.depth == maxDepth {
		r.syntax("may be nested at most 16 levels deep")
		return false
	}
	r.pos++
	r.depth++
	r.path[r.depth], r.fresh = nil, true
	return true
}

// more reports whether the innermost container has another element, and leaves
// the container when it has not.
func (r *reader) more(end byte) bool {
	c, fresh := r.peek(), r.fresh
	r.fresh = false
	switch {
	case r.err != nil:
		return false
	case c == end:
		r.pos++
		r.depth--
		return false
	case fresh:
		return true
	case c == ',':
		r.pos++
		return true
	}
	r.syntax("must be JSON: a comma or the end of the list is missing")
	return false
}

// name reads a member's name and the colon. The bytes are valid until the value
// given to newReader changes.
func (r *reader) name() []byte {
	if r.peek() != '"' {
		r.syntax("must be JSON: a member's name is missing")
		return nil
	}
	name := r.text()
	if r.peek() != ':' {
		r.syntax("must be JSON: a colon is missing")
		return nil
	}
	r.pos++
	r.path[r.depth] = name
	return name
}

// seen remembers which members of one object occurred.
type seen uint32

// once refuses the second occurrence of a member: readers differ in which one
// they believe.
func (r *reader) once(s *seen, member uint) {
	if *s&(1<<member) != 0 {
		r.fail("", "the member may occur once")
	}
	*s |= 1 << member
}

// skip reads a value that nobody uses.
func (r *reader) skip() {
	switch c := r.peek(); c {
	case '{':
		for more := r.open('{'); more && r.more('}'); {
			r.name()
			r.skip()
		}
	case '[':
		for more := r.open('['); more && r.more(']'); {
			r.skip()
		}
	case '"':
		r.text()
	case 't', 'f':
		r.flag()
	case 'n':
		r.word("null")
	default:
		r.number()
	}
}
