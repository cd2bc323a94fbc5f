package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
)

func liveUpdate(revision int64, keys ...string) kvstore.Update {
	u := kvstore.Update{Complete: true, Revision: revision}
	for _, k := range keys {
		u.Changes = append(u.Changes, kvstore.Change{KV: kvstore.KV{Key: k, ModRevision: revision}})
	}
	return u
}

func outline(updates []kvstore.Update) (out string) {
	for _, u := range updates {
		out += fmt.Sprint(u.Revision, u.Complete, u.Synced, ":")
		for _, c := range u.Changes {
			out += " " + c.Key
		}
		out += "\n"
	}
	return out
}

func TestInboxMergesWhatIsLive(t *testing.T) {
	b := newInbox()
	page := liveUpdate(1, "a")
	page.Complete = false
	list := liveUpdate(1, "b")
	list.Synced = true
	reused := liveUpdate(2, "c")
	for _, u := range []kvstore.Update{page, list, reused, liveUpdate(3, "d", "e"), liveUpdate(4), page, list, liveUpdate(5, "f")} {
		if err := b.put(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	reused.Changes[0].Key = "overwritten"
	got, took := b.take(t.Context())
	want := "1 false false: a\n1 true true: b\n4 true false: c d e\n1 false false: a\n1 true true: b\n5 true false: f\n"
	if o := outline(got); o != want {
		t.Errorf("got\n%s, want\n%s", o, want)
	}
	if want := 8*changeCost + 8*byteCost; took != want {
		t.Errorf("reading took %v, want %v", took, want)
	}
}

// TestInboxIsBounded: nothing is read ahead of a core that does not come to it,
// and what was read is still taken after the end.
func TestInboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newInbox()
		put := 0
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for {
				if err := b.put(ctx, liveUpdate(int64(put), "key")); err != nil {
					ended <- err
					return
				}
				put++
			}
		}()
		synctest.Wait()
		if put != mostAhead {
			t.Errorf("%d changes were read ahead", put)
		}
		if got, _ := b.take(t.Context()); len(got) != 1 || len(got[0].Changes) != mostAhead {
			t.Errorf("%d updates are taken", len(got))
		}
		synctest.Wait()
		if put != 2*mostAhead {
			t.Errorf("%d changes were read after some were taken", put)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		b.close()
		if got, _ := b.take(t.Context()); len(got) != 1 || len(got[0].Changes) != mostAhead {
			t.Errorf("after the end %d updates are taken", len(got))
		}
		if got, _ := b.take(t.Context()); got != nil {
			t.Errorf("%d updates are taken of an empty box", len(got))
		}
		big := liveUpdate(1, "key")
		big.Changes[0].Value = make([]byte, mostAheadBytes)
		if b.add(big); b.add(liveUpdate(2, "key")) {
			t.Error("a large change is no reason to wait")
		}
	})
}

// TestSteadyChangesAreNotPutOffForEver follows a cluster that sends a thousand
// changes a second, one by one. Each in a turn of its own they take more than the
// cluster's share.
func TestSteadyChangesAreNotPutOffForEver(t *testing.T) {
	p := newPKI(t)
	east := speak(t, p, &mouth{name: "east", id: 2, services: services, pause: time.Millisecond, batch: 1})
	kernel := newStampKernel(2)
	s := newSimulationOver(t, kernel.memoryKernel, kernel, map[string]dialer{"east": p.dialler(t, east)}, func(c *Config) {
		c.ClusterBurst = 10 * time.Millisecond // what may come at once is gone soon
	})
	for i := range services {
		s.say("home", serviceName(i))
	}
	s.awaitState("east", "synced", "")
	age := func(after time.Duration) time.Duration {
		for begin := time.Now(); time.Since(begin) < after; {
			kernel.samples(10)
		}
		return quantile(kernel.samples(50), 0.5)
	}
	before := age(2 * time.Second)
	for range 10 { // a machine that stood still for a moment has to catch up
		if age(4*time.Second) < before+time.Second {
			return
		}
	}
	t.Errorf("in less than a minute changes come a second later than in the beginning, by %v", age(0)-before)
}
