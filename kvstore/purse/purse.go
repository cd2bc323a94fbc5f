// Package purse keeps whoever may ask for work from taking more than a share of
// the processors: the gateway's readers, and the clusters that an agent follows.
package purse

import (
	"runtime"
	"sync"
	"time"
)

// Purse is processor time that somebody may take. It fills at a steady rate up
// to a bound. Who takes more than there is goes into debt, and is to wait until
// that is paid off before anything else is done for him. Its methods are safe
// for concurrent use; a nil Purse has no end.
type Purse struct {
	rate float64 // processor time that comes in, per time
	most time.Duration

	mu   sync.Mutex
	have time.Duration
	at   time.Time // when have was right
}

// New makes a full purse that holds most and fills by a share, from 0 to 1, of
// all processors.
func New(share float64, most time.Duration) *Purse {
	return &Purse{rate: share * float64(runtime.GOMAXPROCS(0)), most: most, have: most, at: time.Now()}
}

// mostDebt bounds how long somebody has to wait who took much at once.
const mostDebt = 500 * time.Millisecond

// Take takes d, negative to give it back, and returns how long it lasts until
// the debt is paid off, 0 without one. Who takes before he waits, waits for all
// who did so before him.
func (p *Purse) Take(d time.Duration) (wait time.Duration) {
	if p == nil {
		return 0
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have += time.Duration(p.rate * float64(now.Sub(p.at)))
	p.at = now
	p.have = max(min(p.have, p.most)-d, -mostDebt)
	if p.have >= 0 {
		return 0
	}
	return time.Duration(float64(-p.have) / p.rate)
}

// Full reports whether all that was taken has come in again.
func (p *Purse) Full() bool {
	p.Take(0)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have == p.most
}

// Purses are taken from together: what any of them lacks has to be waited for.
type Purses []*Purse

// Take is as [Purse.Take].
func (ps Purses) Take(d time.Duration) (wait time.Duration) {
	for _, p := range ps {
		wait = max(wait, p.Take(d))
	}
	return wait
}
