package kvstore

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff spaces retries: each delay is drawn evenly from the upper half-open
// interval (0, ceiling], and the ceiling doubles from Min to Max (full jitter,
// so that a thousand peers of one failed server do not return together). The
// zero value waits between 50 ms and 5 s. It is for one goroutine.
type Backoff struct {
	Min, Max time.Duration
	ceiling  time.Duration
}

const (
	defaultRetryMin = 50 * time.Millisecond
	defaultRetryMax = 5 * time.Second
)

// Next returns the next delay and doubles the ceiling.
func (b *Backoff) Next() time.Duration {
	low, high := b.bounds()
	b.ceiling = min(max(2*b.ceiling, low), high)
	return time.Duration(rand.Int64N(int64(b.ceiling))) + 1
}

func (b *Backoff) bounds() (low, high time.Duration) {
	low, high = b.Min, b.Max
	if low <= 0 {
		low = defaultRetryMin
	}
	if high <= 0 {
		high = defaultRetryMax
	}
	return low, max(low, high)
}

// Reset starts over from Min; call it after a success.
func (b *Backoff) Reset() { b.ceiling = 0 }

// Sleep waits for the next delay, or returns ctx's error when that ends first.
func (b *Backoff) Sleep(ctx context.Context) error { return sleep(ctx, b.Next()) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
