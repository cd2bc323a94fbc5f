package purse

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

func TestPurse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := 0.1 / float64(runtime.GOMAXPROCS(0)) // a tenth of one processor
		p := New(share, 100*time.Millisecond)
		expect := func(d, want time.Duration) {
			t.Helper()
			if got := p.Take(d); (got - want).Abs() > time.Microsecond {
				t.Errorf("taking %v means waiting for %v, want %v", d, got, want)
			}
		}
		expect(100*time.Millisecond, 0)
		expect(time.Millisecond, 10*time.Millisecond)
		expect(time.Millisecond, 20*time.Millisecond) // after the one before
		time.Sleep(15 * time.Millisecond)
		expect(0, 5*time.Millisecond)
		expect(-500*time.Microsecond, 0) // given back
		if p.Full() {
			t.Error("full although nothing has come in")
		}
		expect(time.Hour, 5*time.Second) // a debt has an end
		time.Sleep(time.Hour)
		if !p.Full() {
			t.Error("not full after an hour")
		}
		expect(100*time.Millisecond, 0) // and not more than full
		expect(time.Millisecond, 10*time.Millisecond)
		all := Purses{New(share, time.Second), p, nil}
		if got := all.Take(time.Millisecond); got < 15*time.Millisecond {
			t.Errorf("together one waits %v", got)
		}
	})
}
