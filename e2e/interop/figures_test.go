package interop

import (
	"fmt"
	"slices"
	"time"
)

// changes is how many random changes a mesh is followed through.
const changes = 1000

// times collects how long something took.
type times []time.Duration

// String is the spread.
func (d times) String() string {
	sorted := slices.Sorted(slices.Values(d))
	if len(sorted) == 0 {
		return "nothing measured"
	}
	at := func(percent int) time.Duration {
		return sorted[(len(sorted)-1)*percent/100].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d times, median %v, 99 of 100 within %v, longest %v", len(sorted), at(50), at(99), at(100))
}
