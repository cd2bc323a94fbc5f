package bpf

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
)

// watch runs a Monitor during work and returns what it saw.
func (f *fixture) watch(every uint32, work func()) []Event {
	f.Helper()
	ctx, cancel := context.WithCancel(f.Context())
	var events []Event
	done := make(chan error)
	go func() { done <- f.dp.Monitor(ctx, every, func(e Event) { events = append(events, e) }) }()
	bpftest.Eventually(f, "the monitor reads", func() error {
		if atomic.LoadUint32(&f.dp.settings.all[0].Sample) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	work()
	cancel()
	if err := <-done; err != nil {
		f.Error(err)
	}
	return events
}

func TestMonitor(t *testing.T) {
	f, r := newChooser(t)
	f.set(r, table(1, 1))
	f.run(1, "4 udp", "connect "+vip) // before the monitor, unseen
	var hits map[uint16]uint64
	events := f.watch(1, func() {
		if err := f.dp.Monitor(t.Context(), 1, nil); !errors.Is(err, ErrMonitored) {
			t.Errorf("a second monitor: %v", err)
		}
		hits = f.hits(func() { f.run(30, "4 udp", "connect "+vip, "sendto 127.0.0.1:9", "disconnect", "sendto "+vip) })
		f.set(r, table())
		f.run(2, "6 udp", "connect "+vip)
	})
	if len(events) != 62 {
		t.Fatalf("%d events, want 62", len(events))
	}
	for i, e := range events {
		want := Event{SinceBoot: e.SinceBoot, Netns: e.Netns, ID: 1, Protocol: udp, Frontend: netip.MustParseAddrPort(vip), Refused: i >= 60}
		if !want.Refused {
			want.Cluster = e.Cluster
			want.Backend = table(1, 1).Backends[e.Cluster-1].Addr
			hits[e.Cluster]--
		}
		if e != want || e.Netns == 0 || i > 0 && e.SinceBoot < events[i-1].SinceBoot {
			t.Errorf("event %d: got %+v, want %+v", i, e, want)
		}
	}
	if hits[1] != 0 || hits[2] != 0 {
		t.Errorf("events and hits by cluster differ by %v", hits)
	}
	if err := f.dp.Monitor(t.Context(), 0, nil); err == nil {
		t.Error("a sample of 0 passes")
	}
}

func TestMonitorSamples(t *testing.T) {
	f, r := newChooser(t)
	f.set(r, table(1, 1))
	events := f.watch(100, func() { f.connects(20_000) })
	if n := len(events); n < 100 || n > 320 {
		t.Errorf("%d events of 20,000 choices, want about 200", n)
	}
	if got := f.watch(1, func() {}); len(got) != 0 {
		t.Errorf("%d events of nothing", len(got))
	}
}

// TestMonitorTooSlow fills the buffer, which must not disturb anybody.
func TestMonitorTooSlow(t *testing.T) {
	f, r := newChooser(t)
	f.set(r, table(1))
	f.dp.settings.all[0].Sample = 1 // as an agent leaves it that was killed
	f.connects(10_000)
	if c := f.counters(); c.Hits != 10_000 || c.Unreported == 0 || c.Unreported > 9_000 {
		t.Errorf("counters %+v", c)
	}
	f.close()
	f.load()
	if n := f.dp.settings.all[0].Sample; n != 0 {
		t.Errorf("the next life reports one of %d", n)
	}
	if got := f.watch(1, func() { f.connects(1000) }); len(got) != 1000 {
		t.Errorf("%d events of 1,000", len(got))
	}
}
