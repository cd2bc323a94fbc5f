package kvstore

import (
	"fmt"
	"strings"
)

// maxForeign bounds what a server's text adds to an error. What went wrong is often
// said last.
const maxForeign = 400

// foreign is text that a server chose as it may stand in an error of ours: short,
// on one line, without control characters, and without the semicolon behind which
// our errors say what to do.
func foreign(text string) string {
	if len(text) > maxForeign {
		text = text[:maxForeign/2] + "..." + text[len(text)-maxForeign/2:]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == ';':
			return ','
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, text)
}

// shownKey is a key that a server chose.
func shownKey(key string) string { return fmt.Sprintf("%q", foreign(key)) }

// foreignError is an error whose text a server may have chosen.
type foreignError struct{ error }

func (e foreignError) Error() string { return foreign(e.error.Error()) }

// Unwrap returns the error as it came.
func (e foreignError) Unwrap() error { return e.error }
