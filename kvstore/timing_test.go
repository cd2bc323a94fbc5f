package kvstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
)

// background runs fn until the bubble's test ends.
func background(t *testing.T, fn func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func value(m *kvstore.Memory, key string) string {
	r, err := m.Range(context.Background(), key, "", 0, 0)
	if err != nil || len(r.KVs) == 0 {
		return ""
	}
	return string(r.KVs[0].Value)
}

func TestBackoffIsJitteredAndBounded(t *testing.T) {
	b := kvstore.Backoff{Min: 10 * time.Millisecond, Max: time.Second}
	for round := range 200 {
		b.Reset()
		ceiling := 10 * time.Millisecond
		for range 12 {
			if d := b.Next(); d <= 0 || d > ceiling {
				t.Fatalf("round %d: delay %s is not in (0, %s]", round, d, ceiling)
			}
			ceiling = min(2*ceiling, time.Second)
		}
	}
	var zero kvstore.Backoff
	if d := zero.Next(); d > 50*time.Millisecond {
		t.Fatalf("first delay of the zero value is %s", d)
	}
}

func TestBackoffSleepEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := kvstore.Backoff{Min: time.Hour, Max: time.Hour}
	if err := b.Sleep(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestKeepRewritesAndRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		m.FailNext(kvstore.FaultApply, 3)
		var failures, writes int
		stop := background(t, func(ctx context.Context) error {
			return kvstore.Keep(ctx, m, "hb", time.Minute, func() []byte { writes++; return fmt.Append(nil, writes) },
				func(error) { failures++ })
		})
		time.Sleep(time.Second)
		synctest.Wait()
		if failures != 3 || value(m, "hb") != "4" {
			t.Fatalf("after a second: %d failures, value %q", failures, value(m, "hb"))
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := value(m, "hb"); got != "14" {
			t.Fatalf("after ten minutes: value %q", got)
		}
		stop()
	})
}

func TestWatcherRunBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		m.SetFault(func(kvstore.Fault) error { return kvstore.ErrBroken })
		failures, synced := 0, 0
		w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/", OnError: func(error) { failures++ }})
		stop := background(t, func(ctx context.Context) error {
			return w.Run(ctx, m, func(u kvstore.Update) error {
				if u.Synced {
					synced++
				}
				return nil
			})
		})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// Full jitter up to 5 s: about one attempt per 2.5 s.
		if failures < 120 || failures > 600 {
			t.Fatalf("%d attempts in ten minutes of failure", failures)
		}
		m.SetFault(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if synced != 1 {
			t.Fatalf("synced %d times within the longest delay", synced)
		}
		before := failures
		m.BreakWatches(nil)
		time.Sleep(51 * time.Millisecond)
		synctest.Wait()
		if failures != before+1 || synced != 2 {
			t.Fatalf("a success did not reset the delay: %d failures more, synced %d times", failures-before, synced)
		}
		stop()
	})
}

func TestWatcherSurvivesCompactionStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		background(t, func(ctx context.Context) error {
			for i := 0; ctx.Err() == nil; i++ {
				op := kvstore.Op{Key: fmt.Sprintf("p/%d", i%50), Value: fmt.Append(nil, i)}
				if err := m.Apply(ctx, []kvstore.Op{op}); err != nil {
					return nil
				}
				m.Compact(m.Revision())
				time.Sleep(time.Millisecond)
			}
			return nil
		})
		time.Sleep(100 * time.Millisecond)
		have := map[string]string{}
		w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/"})
		stop := background(t, func(ctx context.Context) error {
			return w.Run(ctx, slow{m}, func(u kvstore.Update) error {
				for _, c := range u.Changes {
					have[c.Key] = string(c.Value)
				}
				return nil
			})
		})
		time.Sleep(5 * time.Second)
		stop()
		if len(have) != 50 {
			t.Fatalf("has %d keys of 50", len(have))
		}
	})
}

// slow takes 3 ms for a range, so that compaction often comes between it and
// the watch.
type slow struct{ *kvstore.Memory }

func (s slow) Range(ctx context.Context, start, end string, limit, revision int64) (kvstore.Range, error) {
	r, err := s.Memory.Range(ctx, start, end, limit, revision)
	time.Sleep(3 * time.Millisecond)
	return r, err
}

// publish runs a publisher in the bubble and returns it with its log.
func publish(t *testing.T, m *kvstore.Memory) (*kvstore.Publisher, *bytes.Buffer, func()) {
	var log bytes.Buffer
	p := kvstore.NewPublisher(m, kvstore.PublisherConfig{Prefix: "p/", Canary: "c/p", Log: slog.New(slog.NewTextHandler(&log, nil))})
	return p, &log, background(t, p.Run)
}

func TestPublisherRetriesWithBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		m.SetFault(func(kvstore.Fault) error { return kvstore.ErrBroken })
		p, log, stop := publish(t, m)
		p.Put("p/a", []byte("1"))
		p.Synced()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if errs := p.Stats().Errors; errs < 120 || errs > 600 || p.Pending() != 1 {
			t.Fatalf("%d attempts in ten minutes, %d pending", errs, p.Pending())
		}
		m.SetFault(nil)
		time.Sleep(5 * time.Second)
		<-p.Done()
		if value(m, "p/a") != "1" || value(m, "c/p") == "" {
			t.Fatal("not written after the store came back")
		}
		if !strings.Contains(log.String(), "connection broken") {
			t.Fatal("the failure was not logged")
		}
		stop()
	})
}

func TestPublisherRefillsAStoreThatLostItsData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		p, _, stop := publish(t, m)
		p.Put("p/a", []byte("1"))
		p.Put("p/b", []byte("1"))
		p.Synced()
		<-p.Done()
		p.Delete("p/b")
		synctest.Wait()
		m.NewLife()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if value(m, "p/a") != "1" || value(m, "p/b") != "" || value(m, "c/p") == "" {
			t.Fatalf("after the loss: a=%q b=%q canary=%q", value(m, "p/a"), value(m, "p/b"), value(m, "c/p"))
		}
		if s := p.Stats(); s.Refills != 2 {
			t.Fatalf("stats %+v", s)
		}
		stop()
	})
}

func TestPublisherIsolatesARefusedValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		m.SetFault(func(f kvstore.Fault) error {
			for _, op := range f.Ops {
				if op.Key == "p/77" && f.Op == kvstore.FaultApply {
					return errors.New("value refused")
				}
			}
			return nil
		})
		p, _, stop := publish(t, m)
		for i := range 128 {
			p.Put(fmt.Sprintf("p/%d", i), []byte("1"))
		}
		p.Synced()
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if p.Pending() != 1 || value(m, "c/p") != "" {
			t.Fatalf("%d keys pending besides the refused one, canary %q", p.Pending()-1, value(m, "c/p"))
		}
		p.Put("p/other", []byte("now"))
		synctest.Wait()
		if value(m, "p/other") != "now" {
			t.Fatal("a refused value held up another key")
		}
		m.SetFault(nil)
		time.Sleep(5 * time.Second)
		<-p.Done()
		if value(m, "p/77") != "1" {
			t.Fatal("the refused value was given up")
		}
		stop()
	})
}

func TestPublisherTriesAChangedValueAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		m.SetFault(func(f kvstore.Fault) error {
			for _, op := range f.Ops {
				if string(op.Value) == "bad" {
					return errors.New("value refused")
				}
			}
			return nil
		})
		p, _, stop := publish(t, m)
		p.Put("p/a", []byte("bad"))
		time.Sleep(time.Minute)
		synctest.Wait()
		p.Put("p/a", []byte("good"))
		synctest.Wait()
		if value(m, "p/a") != "good" {
			t.Fatal("the corrected value waits for the retry of the refused one")
		}
		stop()
	})
}

func TestPublisherCanaryInsideThePrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		p := kvstore.NewPublisher(m, kvstore.PublisherConfig{Prefix: "p/", Canary: "p/.synced", LifeCheck: time.Second})
		stop := background(t, p.Run)
		p.Put("p/a", []byte("1"))
		p.Synced()
		<-p.Done()
		for range 3 {
			p.Resync()
			time.Sleep(time.Minute)
			synctest.Wait()
			if value(m, "p/.synced") == "" || p.Len() != 1 {
				t.Fatalf("canary %q, %d keys", value(m, "p/.synced"), p.Len())
			}
		}
		stop()
	})
}

func TestPublisherCoalescesAndRefusesForeignKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		p, log, stop := publish(t, m)
		synctest.Wait()
		for i := range 1000 {
			p.Put("p/a", fmt.Append(nil, i))
			p.Put("p/b", []byte("same"))
			p.Delete("p/none")
		}
		p.Put("q/a", []byte("1"))
		p.Put("c/p", []byte("1"))
		synctest.Wait()
		if value(m, "p/a") != "999" || value(m, "q/a") != "" || p.Stats().Refused != 2 {
			t.Fatalf("a=%q q/a=%q stats %+v", value(m, "p/a"), value(m, "q/a"), p.Stats())
		}
		if !strings.Contains(log.String(), "key=q/a") {
			t.Fatal("the refused key was not logged")
		}
		p.Put("p/a", []byte("999"))
		at := m.Revision()
		synctest.Wait()
		if m.Revision() != at {
			t.Fatal("an unchanged value was written")
		}
		stop()
	})
}

func TestPublisherRunsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := kvstore.NewMemory()
		p := kvstore.NewPublisher(m, kvstore.PublisherConfig{Prefix: "p/"})
		stop := background(t, p.Run)
		p.Put("p/a", []byte("1"))
		p.Synced()
		<-p.Done()
		stop()
		p.Put("p/b", []byte("1"))
		p.Delete("p/a")
		stop = background(t, p.Run)
		synctest.Wait()
		if value(m, "p/a") != "" || value(m, "p/b") != "1" || p.Pending() != 0 {
			t.Fatalf("a=%q b=%q, %d pending", value(m, "p/a"), value(m, "p/b"), p.Pending())
		}
		stop()
	})
}
