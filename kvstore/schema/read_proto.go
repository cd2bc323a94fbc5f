package schema

import (
	"bytes"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// protoReader pulls the fields of protobuf messages
// (https://protobuf.dev/programming-guides/encoding/), without reflection and
// without building what is not asked for. Fields that nobody asks for are left
// out; those that are must have the declared wire type and, unless repeated,
// occur once, because readers differ in what they make of a second one.
//
// Its error is sticky as that of reader.
type protoReader struct {
	key   string
	field string // the field being read, as a path
	err   *Error
	known [64]string // strings made by intern, each in the place it hashes to
}

// protoField is one field of a message.
type protoField struct {
	number protowire.Number
	kind   protowire.Type
	bytes  []byte // of kind BytesType; aliases the message
	value  uint64 // of kind VarintType
}

// pull takes the next field off a message, which is itself the named field. It
// returns false at the end and after an error.
func (r *protoReader) pull(message *[]byte, f *protoField, name string) bool {
	if r.err != nil || len(*message) == 0 {
		return false
	}
	r.field = name
	n := f.consume(*message)
	if n < 0 {
		r.fail(excerpt(*message), "must be a protobuf message")
		return false
	}
	*message = (*message)[n:]
	return true
}

// consume reads a tag and its value and returns their length, or a negative
// number if they are malformed.
func (f *protoField) consume(b []byte) int {
	var tag, n int
	if f.number, f.kind, tag = protowire.ConsumeTag(b); tag < 0 {
		return tag
	}
	switch b = b[tag:]; f.kind {
	case protowire.VarintType:
		f.value, n = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(b)
	default:
		n = protowire.ConsumeFieldValue(f.number, f.kind, b)
	}
	if n < 0 {
		return n
	}
	return tag + n
}

// fail records the first error, at the field being read.
func (r *protoReader) fail(value, reason string) {
	if r.err == nil {
		r.err = newError(r.key, r.field, value, reason)
	}
}

// is names the field that was pulled and checks its wire type.
func (r *protoReader) is(f *protoField, name string, kind protowire.Type) {
	r.field = name
	if f.kind != kind {
		r.fail(decimal(uint32(f.kind)), "must have protobuf's wire type "+decimal(uint32(kind)))
	}
}

// once refuses the second occurrence of a field that is not repeated.
func (r *protoReader) once(s *seen, f *protoField) {
	if *s&(1<<f.number) != 0 {
		r.fail("", "the field may occur once")
	}
	*s |= 1 << f.number
}

// require refuses a message that lacks one of the given fields.
func (r *protoReader) require(have seen, n protowire.Number, name string) {
	if have&(1<<n) == 0 {
		r.missing(name)
	}
}

func (r *protoReader) missing(name string) {
	if r.err == nil {
		r.err = newError(r.key, name, "", "the field is missing")
	}
}

// single names a field of bytes that may occur once and returns them.
func (r *protoReader) single(s *seen, f *protoField, name string) []byte {
	r.is(f, name, protowire.BytesType)
	r.once(s, f)
	return f.bytes
}

// uint reads an unsigned integer that may occur once. Negative ones are
// large, so they are out of range too.
func (r *protoReader) uint(s *seen, f *protoField, name string, limit uint64) uint64 {
	r.is(f, name, protowire.VarintType)
	r.once(s, f)
	if f.value > limit {
		r.fail(decimalOrMore(f.value), "must be a number in range")
	}
	return f.value
}

func decimalOrMore(n uint64) string {
	if n > math.MaxUint32 {
		return "over " + decimal(math.MaxUint32)
	}
	return decimal(uint32(n))
}

// condition reads a boolean that may occur once.
func (r *protoReader) condition(s *seen, f *protoField, name string) Condition {
	r.is(f, name, protowire.VarintType)
	r.once(s, f)
	if f.value != 0 {
		return ConditionTrue
	}
	return ConditionFalse
}

// exact refuses a text but the given one, and returns that.
func (r *protoReader) exact(text []byte, want, reason string) string {
	if string(text) != want {
		r.fail(excerpt(text), "must be "+want+", "+reason)
	}
	return want
}

// intern checks a token and makes a string of it, of which a message holds many
// equal ones.
func (r *protoReader) intern(text []byte) string {
	if !isToken(text) {
		r.fail(excerpt(text), tokenReason)
		return ""
	}
	known := &r.known[fnv1a(text)%uint32(len(r.known))]
	if *known != string(text) {
		*known = string(text)
	}
	return *known
}

// fnv1a is the 32 bit hash of Fowler, Noll and Vo
// (https://www.isthe.com/chongo/tech/comp/fnv/).
func fnv1a(text []byte) uint32 {
	hash := uint32(2166136261)
	for _, c := range text {
		hash = (hash ^ uint32(c)) * 16777619
	}
	return hash
}

// text checks what people wrote and makes a string of it.
func (r *protoReader) text(b []byte) string {
	if !utf8.Valid(b) {
		r.fail(excerpt(b), textReason)
	}
	return string(b)
}

// entry adds an entry of a map field with at most limit entries, making the map
// with the first. Kubernetes' code writes both parts even if empty.
func (r *protoReader) entry(m *map[string]string, f *protoField, name string, limit int) {
	r.is(f, name, protowire.BytesType)
	if len(*m) >= limit {
		r.fail("", "the map may hold at most "+decimal(uint32(limit))+" entries")
		return
	}
	var have seen
	var k, v string
	for part := (protoField{}); r.pull(&f.bytes, &part, name); {
		switch part.number {
		case mapKey:
			k = r.text(r.single(&have, &part, name))
		case mapValue:
			v = r.text(r.single(&have, &part, name))
		}
	}
	if _, twice := (*m)[k]; twice {
		r.fail(k, "the map holds this key twice")
	}
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[k] = v
}

// sameBytes remembers what was last read with the bytes it was read from, as
// recent does for JSON.
type sameBytes[V any] struct {
	texts  [8][]byte
	values [8]V
	used   int
}

func (m *sameBytes[V]) get(text []byte) (v V, ok bool) {
	for i := range min(m.used, len(m.texts)) {
		if bytes.Equal(m.texts[i], text) {
			return m.values[i], true
		}
	}
	return v, false
}

func (m *sameBytes[V]) put(text []byte, v V) {
	i := m.used % len(m.texts)
	m.texts[i], m.values[i] = text, v
	m.used++
}
