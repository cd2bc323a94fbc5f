package cost

import (
	"runtime"
	"testing"
)

// recorder is a test that only remembers whether it failed.
type recorder struct {
	testing.TB
	failed bool
}

func (*recorder) Helper() {}

func (r *recorder) Fatalf(string, ...any) { r.failed = true }

func TestBounded(t *testing.T) {
	const input = 10_000
	for _, c := range []struct {
		bytes, extra int
		fails        bool
	}{{0, 0, false}, {Factor * input, 0, false}, {Factor*input + 2*Slack, 0, true}, {Factor*input + 2*Slack, 2 * Slack, false}} {
		r := &recorder{TB: t}
		Bounded(r, input, c.extra, func() { runtime.KeepAlive(make([]byte, c.bytes)) })
		if r.failed != c.fails {
			t.Errorf("%d bytes allocated for %d, %d extra: failed is %v", c.bytes, input, c.extra, r.failed)
		}
	}
}

// What is freed again was still taken.
func TestBoundedCountsWhatIsFreed(t *testing.T) {
	r := &recorder{TB: t}
	Bounded(r, 0, 0, func() {
		for range 8 {
			runtime.KeepAlive(make([]byte, Slack))
			runtime.GC()
		}
	})
	if !r.failed {
		t.Error("eight times the slack, one after the other, passed")
	}
}
