package kvstore

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestLagIsThatOfTheOldestChange: while the store refuses, the lag grows with the
// oldest change that it lacks, whatever is put behind it; then each change is
// told how long it waited.
func TestLagIsThatOfTheOldestChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemory()
		var mu sync.Mutex
		var waited []time.Duration
		p := NewPublisher(store, PublisherConfig{Prefix: "p/", Acknowledged: func(d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			waited = append(waited, d)
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		synctest.Wait()
		if lag := p.Lag(time.Now()); lag != 0 {
			t.Errorf("lag of nothing is %v", lag)
		}
		store.SetFault(func(f Fault) error {
			if f.Op == FaultApply {
				return ErrBroken
			}
			return nil
		})
		begin := time.Now()
		p.Put("p/a", []byte("1"))
		time.Sleep(3 * time.Second)
		p.Put("p/b", []byte("1"))
		p.Put("p/a", []byte("2"))
		time.Sleep(2 * time.Second)
		if lag, want := p.Lag(time.Now()), time.Since(begin); lag != want {
			t.Errorf("lag is %v, the oldest change has waited %v", lag, want)
		}
		store.SetFault(nil)
		time.Sleep(30 * time.Second) // more than a retry waits
		synctest.Wait()
		if lag := p.Lag(time.Now()); lag != 0 || p.Pending() != 0 {
			t.Errorf("lag is %v with %d pending", lag, p.Pending())
		}
		mu.Lock()
		defer mu.Unlock()
		if len(waited) != 2 || max(waited[0], waited[1]) < 5*time.Second || min(waited[0], waited[1]) < 2*time.Second {
			t.Errorf("changes are said to have waited %v", waited)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
