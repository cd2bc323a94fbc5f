package liveness

// rtt keeps how long answers take.
type rtt struct {
	smoothed int64
	minima   [2]int64 // of the window before and the present one, 0 for none
	n        int      // answers in the present window
}

// window is how many answers a minimum is kept for, at least once and at most
// twice: a path may get longer for good.
const window = 256

// repeated is from when on a time is that of a repeated packet and says nothing
// about the path: TCP repeats the first one after a second (RFC 6298, 2.1).
const repeated = 1_000_000_000

func (r *rtt) add(ns int64) {
	if ns <= 0 || ns >= repeated {
		return
	}
	if r.smoothed == 0 {
		r.smoothed = ns
	}
	r.smoothed += (ns - r.smoothed) / 8
	if r.n++; r.n > window {
		r.minima, r.n = [2]int64{r.minima[1]}, 1
	}
	r.minima[1] = lesser(r.minima[1], ns)
}

func (r *rtt) least() int64 { return lesser(r.minima[0], r.minima[1]) }

// lesser is the smaller number that is not 0.
func lesser(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
