// Package cost bounds, in tests, what reading input of somebody else may take:
// memory in proportion to the input. Less than a hundredfold is what Envoy's
// threat model calls harmless, and what every decoder here promises.
package cost

import (
	"runtime"
	"testing"
)

// Factor is how many bytes may be allocated per byte of input.
const Factor = 100

// Slack may be allocated whatever the input's size: error texts, tables made
// at first use, and what the runtime and the fuzzing engine allocate meanwhile.
const Slack = 256 << 10

// Bounded calls read and fails the test if that allocated more than [Factor]
// bytes per byte of input, [Slack], and extra for what the reader allocates
// whatever the input. Freed memory counts. Nothing else may run at the same
// time, so it is for fuzz targets and for tests that are not parallel.
func Bounded(t testing.TB, input, extra int, read func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read()
	runtime.ReadMemStats(&after)
	if used, most := after.TotalAlloc-before.TotalAlloc, Factor*input+Slack+extra; used > uint64(most) {
		t.Fatalf("%d bytes of input cost %d bytes of memory, at most %d are accepted", input, used, most)
	}
}
