package schema

import (
	"strconv"
	"strings"
)

// Error says which entry was refused, at which field, and what would be
// accepted. All of its text is printable and short, whatever a remote wrote:
// it may go to logs and terminals.
type Error struct {
	Key    string // the entry's key; "" where a setting was checked
	Field  string // the member, as a path such as backends/10.0.0.1/http/Port
	Value  string // the offending value, at most 64 bytes
	Reason string // what is accepted, and what to change
}

// Error names the key, the field, the value and the remedy.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Key != "" {
		b.WriteString("decode " + e.Key + ": ")
	}
	b.WriteString(e.Field + " " + strconv.Quote(e.Value) + " is refused: " + e.Reason)
	return b.String()
}

const (
	maxErrorValue = 64
	maxErrorKey   = 256
)

// newError builds an Error from text that a remote may have chosen.
func newError(key, field, value, reason string) *Error {
	return &Error{
		Key:    chosen(key, maxErrorKey),
		Field:  chosen(field, maxErrorKey),
		Value:  chosen(value, maxErrorValue),
		Reason: printable(reason, 2*maxErrorKey),
	}
}

// chosen is text of a remote without the semicolon behind which errors say what to
// do.
func chosen(s string, limit int) string {
	return strings.ReplaceAll(printable(s, limit), ";", ",")
}

func keyError(key, reason string) *Error { return newError(key, "key", key, reason) }

func tooMany(key, field string, n, limit int) *Error {
	return newError(key, field, strconv.Itoa(n), "at most "+strconv.Itoa(limit)+" are accepted; split the object or raise the limit")
}

// printable keeps at most limit bytes of s and replaces what is not printable
// ASCII by '?'. Other scripts are dropped on purpose: some reorder a terminal's
// line.
func printable(s string, limit int) string {
	cut := len(s) > limit
	if cut {
		s = s[:limit-3]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	if cut {
		s += "..."
	}
	return s
}
