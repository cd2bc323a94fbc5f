package cli

import (
	"fmt"

	"github.com/dustin/go-humanize/english"
)

// Count is a number with what it counts: singular for 1, plural for all others.
// An empty plural is the regular one.
func Count[N int | uint32 | uint64](n N, singular, plural string) string {
	few := 2 // any that is not 1
	if n == 1 {
		few = 1
	}
	return fmt.Sprintf("%d %s", n, english.PluralWord(few, singular, plural))
}
