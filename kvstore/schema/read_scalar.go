package schema

import (
	"encoding/base64"
	"encoding/json"
	"net/netip"
)

// text reads a string and returns its bytes, which alias the input unless they
// hold an escape.
func (r *reader) text() []byte {
	if c := r.peek(); c != '"' {
		if c != 'n' || !r.word("null") {
			r.syntax("must be a string")
		}
		return nil
	}
	start := r.pos
	for i := start + 1; i < len(r.data); i++ {
		switch c := r.data[i]; {
		case c == '"':
			r.pos = i + 1
			return r.data[start+1 : i : i]
		case c == '\\':
			return r.escaped(start)
		case c < ' ':
			r.pos = i
			r.syntax("strings may not hold control characters")
			return nil
		}
	}
	r.syntax("the string does not end")
	return nil
}

// escaped reads a string that holds a backslash, leaving the meaning of escapes
// to encoding/json.
func (r *reader) escaped(start int) []byte {
	end := start + 1
	for end < len(r.data) && r.data[end] != '"' {
		if r.data[end] == '\\' {
			end++
		}
		end++
	}
	var s string
	if end >= len(r.data) || json.Unmarshal(r.data[start:end+1], &s) != nil {
		r.syntax("must be a JSON string")
		return nil
	}
	r.pos = end + 1
	return []byte(s)
}

// str reads any string; only texts that are meant for people are read so.
func (r *reader) str() string { return string(r.text()) }

// token refuses a text just read that holds anything but printable ASCII
// without spaces, or more than a Kubernetes name may. Every name of ours is such
// a text; others would reach terminals and file formats that give them meaning.
func (r *reader) token(text []byte) []byte {
	if !isToken(text) {
		r.fail(excerpt(text), tokenReason)
	}
	return text
}

const tokenReason = "must be at most 253 printable ASCII characters without spaces"

func isToken[T string | []byte](text T) bool {
	ok := len(text) <= maxNameBytes
	for i := 0; ok && i < len(text); i++ {
		ok = text[i] > ' ' && text[i] <= '~'
	}
	return ok
}

// intern reads a token of which an entry holds many equal ones.
func (r *reader) intern() string {
	b := r.token(r.text())
	for _, s := range r.known {
		if s == string(b) {
			return s
		}
	}
	s := string(b)
	r.known[r.next%len(r.known)] = s
	r.next++
	return s
}

// exact reads a string that must be the given one, and returns that.
func (r *reader) exact(want, reason string) string {
	if got := r.text(); string(got) != want {
		r.fail(excerpt(got), "must be "+want+", "+reason)
	}
	return want
}

// oneOf reads a string and refuses all but the given ones.
func (r *reader) oneOf(allowed ...string) string {
	got := r.text()
	for _, s := range allowed {
		if s == string(got) {
			return s
		}
	}
	r.fail(excerpt(got), "this version does not know it; upgrade the reading cluster first")
	return ""
}

// flag reads a boolean.
func (r *reader) flag() bool {
	switch r.peek() {
	case 't':
		return r.word("true")
	case 'f':
		r.word("false")
	case 'n':
		r.word("null")
	default:
		r.syntax("must be true or false")
	}
	return false
}

// uint reads an unsigned integer of at most the given size.
func (r *reader) uint(limit uint64) uint64 {
	if r.null() {
		return 0
	}
	start, n := r.pos, uint64(0)
	for r.pos < len(r.data) && isDigit(r.data[r.pos]) && n <= limit {
		n = n*10 + uint64(r.data[r.pos]-'0')
		r.pos++
	}
	digits := r.pos - start
	if digits == 0 || digits > 1 && r.data[start] == '0' || n > limit || r.fraction() {
		r.pos = start
		r.syntax("must be a whole number in range")
		return 0
	}
	return n
}

// fraction reports whether the number just read goes on behind its integer.
func (r *reader) fraction() bool {
	if r.pos == len(r.data) {
		return false
	}
	c := r.data[r.pos]
	return c == '.' || c == 'e' || c == 'E'
}

// number reads any number and forgets it.
func (r *reader) number() {
	start := r.pos
	for r.pos < len(r.data) && isNumber(r.data[r.pos]) {
		r.pos++
	}
	if start == r.pos || !json.Valid(r.data[start:r.pos]) {
		r.pos = start
		r.syntax("must be JSON")
	}
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isNumber(c byte) bool {
	return isDigit(c) || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'
}

// base64 reads bytes as encoding/json writes them; nil for null and "".
func (r *reader) base64() []byte {
	text := r.text()
	b, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil {
		r.fail(excerpt(text), "must be base64")
	}
	return b
}

// addr turns the text just read into an address.
func (r *reader) addr(text []byte) netip.Addr {
	a, ok := parseAddr(text)
	if !ok && r.err == nil {
		r.fail(excerpt(text), "must be an IP address without a zone")
	}
	return a
}

// optionalIP reads an address that may be "", and returns its canonical text.
func (r *reader) optionalIP() string {
	text := r.text()
	if len(text) == 0 {
		return ""
	}
	return r.addr(text).String()
}

// parseAddr parses an address, takes it out of its IPv4-mapped form and refuses
// zones. The common dotted quad is parsed without making a string.
func parseAddr(b []byte) (netip.Addr, bool) {
	if a, ok := parseQuad(b); ok {
		return a, true
	}
	if len(b) > len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255") {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(string(b))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

func parseQuad(b []byte) (netip.Addr, bool) {
	var quad [4]byte
	for i := range quad {
		octet, digits := 0, 0
		for digits < len(b) && digits < 3 && isDigit(b[digits]) {
			octet = octet*10 + int(b[digits]-'0')
			digits++
		}
		if digits == 0 || octet > 255 || digits > 1 && b[0] == '0' {
			return netip.Addr{}, false
		}
		quad[i], b = byte(octet), b[digits:]
		if i < 3 {
			if len(b) == 0 || b[0] != '.' {
				return netip.Addr{}, false
			}
			b = b[1:]
		}
	}
	return netip.AddrFrom4(quad), len(b) == 0
}
