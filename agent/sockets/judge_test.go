package sockets

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

var (
	front = netip.MustParseAddrPort("10.96.0.1:80")
	back  = netip.MustParseAddrPort("10.2.0.1:8080")
)

func record(at netip.AddrPort, flags uint8) layout.Backend {
	b := layout.Backend{Addr: at.Addr().As16(), Flags: flags}
	binary.BigEndian.PutUint16(b.Port[:], at.Port())
	return b
}

// TestGrace is the table of docs/adr/0009.
func TestGrace(t *testing.T) {
	gone, given := []layout.Backend{}, []layout.Backend{record(back, layout.FlagWithdrawn)}
	listed := []layout.Backend{record(back, layout.FlagLocal)}
	twice := append(listed[:1:1], given...) // by two clusters, one of them given up
	const drain = 30 * time.Second
	for _, c := range []struct {
		name                    string
		backends                []layout.Backend
		keep, drain, reset, udp time.Duration // udp with keep
	}{
		{"listed", listed, never, never, never, never},
		{"listed twice", twice, never, never, never, never},
		{"given up", given, never, drain, confirm, never},
		{"gone", gone, never, drain, confirm, confirm},
	} {
		for on, want := range map[uint8]time.Duration{layout.WithdrawKeep: c.keep, layout.WithdrawDrain: c.drain, layout.WithdrawReset: c.reset} {
			s := newSet(layout.Region{OnWithdraw: on, Drain: 30}, c.backends)
			if got := s.grace(bpf.Pair{Protocol: 6, Frontend: front, Backend: back}); got != want {
				t.Errorf("%s, on-withdraw %d: TCP has %v, want %v", c.name, on, got, want)
			}
		}
		s := newSet(layout.Region{}, c.backends)
		if got := s.grace(bpf.Pair{Protocol: 17, Frontend: front, Backend: back}); got != c.udp {
			t.Errorf("%s: UDP has %v, want %v", c.name, got, c.udp)
		}
	}
	for proto, want := range map[uint8]time.Duration{6: never, 17: confirm} {
		if got := (*set)(nil).grace(bpf.Pair{Protocol: proto, Frontend: front, Backend: back}); got != want {
			t.Errorf("without the frontend protocol %d has %v, want %v", proto, got, want)
		}
	}
}

// fakeKernel is a node in memory, with one frontend, number 1.
type fakeKernel struct {
	generation uint64
	region     layout.Region
	backends   []layout.Backend
	sockets    map[uint64]bpf.Socket
	hidden     map[uint64]bool // sockets of namespaces that cannot be seen
	kept       map[bpf.Pair]time.Duration
	lists      int
	missed     int
	stale      error
}

func newFake() *fakeKernel {
	return &fakeKernel{sockets: map[uint64]bpf.Socket{}, hidden: map[uint64]bool{}, kept: map[bpf.Pair]time.Duration{}}
}

func (f *fakeKernel) Current() error     { return f.stale }
func (f *fakeKernel) Generation() uint64 { return f.generation }

func (f *fakeKernel) List() (all []bpf.Socket, err error) {
	f.lists++
	for _, one := range f.sockets {
		all = append(all, one)
	}
	return all, nil
}

func (f *fakeKernel) Set(uint32) (layout.Region, []layout.Backend, bool) {
	return f.region, f.backends, true
}

func (f *fakeKernel) Remember(p bpf.Pair, since time.Duration) error {
	f.kept[p] = since
	return nil
}

func (f *fakeKernel) Forget(p bpf.Pair) error {
	delete(f.kept, p)
	return nil
}

func (f *fakeKernel) End(sockets []bpf.Socket, _ []bpf.Namespace) (ended []bpf.Socket, err error) {
	for _, one := range sockets {
		if !f.hidden[one.Cookie] {
			ended = append(ended, one)
			delete(f.sockets, one.Cookie)
		}
	}
	return ended, nil
}

func (f *fakeKernel) Looked(missed int) { f.missed += missed }

func (f *fakeKernel) keeper() *keeper {
	m := memory{}
	for p, since := range f.kept {
		m[p] = since
	}
	return &keeper{kernel: f, log: slog.New(slog.DiscardHandler), memory: m, missing: map[uint64]time.Duration{}, namespaces: func() []bpf.Namespace { return nil }}
}

func (f *fakeKernel) connect(cookie uint64, proto uint8) {
	f.sockets[cookie] = bpf.Socket{Cookie: cookie, ID: 1, Pair: bpf.Pair{Protocol: proto, Frontend: front, Backend: back}}
}

// TestKeeperAgainstOracle has backends come and go, policies change, sockets open
// and close, and the process die, at any times. A connection ends exactly when its
// backend has been withdrawn for as long as the policy of that moment gives it,
// within the time of two glances, and what is remembered is only of sockets that
// there are.
func TestKeeperAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFake()
		f.backends = []layout.Backend{record(back, 0)}
		k := f.keeper()
		now := time.Hour
		withdrawn := map[uint8]time.Duration{} // since when, as it may be known at the latest, by protocol
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "what") {
			case 0:
				f.backends = nil
			case 1:
				f.backends = []layout.Backend{record(back, 0)}
			case 2:
				f.backends = []layout.Backend{record(back, layout.FlagWithdrawn)}
			case 3:
				f.region.OnWithdraw = rapid.Uint8Range(0, 2).Draw(t, "on-withdraw")
				f.region.Drain = 5
			case 4:
				f.connect(rapid.Uint64Range(1, 9).Draw(t, "cookie"), rapid.SampledFrom([]uint8{6, 17}).Draw(t, "proto"))
			case 5:
				delete(f.sockets, rapid.Uint64Range(1, 9).Draw(t, "cookie"))
			case 6:
				k = f.keeper()
			}
			f.generation++
			for range rapid.IntRange(1, 30).Draw(t, "glances") {
				f.check(t, k, now, withdrawn)
				now += pause
			}
		}
	})
}

// check lets the keeper glance and compares with what has to be.
func (f *fakeKernel) check(t *rapid.T, k *keeper, now time.Duration, withdrawn map[uint8]time.Duration) {
	before := map[uint64]bpf.Socket{}
	present := map[uint8]bool{}
	for cookie, one := range f.sockets {
		before[cookie], present[one.Protocol] = one, true
	}
	if err := k.glance(now); err != nil {
		t.Fatal(err)
	}
	for _, proto := range []uint8{6, 17} {
		grace := newSet(f.region, f.backends).grace(bpf.Pair{Protocol: proto, Frontend: front, Backend: back})
		if grace == never || !present[proto] {
			delete(withdrawn, proto)
			grace = never
		} else if _, known := withdrawn[proto]; !known {
			withdrawn[proto] = now
		}
		for cookie, one := range before {
			if one.Protocol != proto {
				continue
			}
			_, open := f.sockets[cookie]
			since, known := withdrawn[proto]
			if !open && (!known || now-since < grace) {
				t.Fatalf("socket %d of protocol %d ended early: grace %v", cookie, proto, grace)
			}
			if open && known && now-since >= grace+2*pause {
				t.Fatalf("socket %d of protocol %d goes on: grace %v, since %v, now %v", cookie, proto, grace, since, now)
			}
		}
		if _, kept := f.kept[bpf.Pair{Protocol: proto, Frontend: front, Backend: back}]; kept && !present[proto] && now-k.looked < pause {
			t.Fatalf("a pair without sockets is remembered")
		}
	}
}

// TestIdleLooksSeldom: as long as nothing changes the sockets are not looked at
// but for once in a while.
func TestIdleLooksSeldom(t *testing.T) {
	f := newFake()
	f.backends = []layout.Backend{record(back, 0)}
	f.connect(1, 6)
	k := f.keeper()
	for now := time.Hour; now < time.Hour+time.Minute; now += pause {
		if err := k.glance(now); err != nil {
			t.Fatal(err)
		}
	}
	if f.lists > 5 {
		t.Errorf("%d looks in a minute", f.lists)
	}
	f.stale = errors.New("made anew")
	if err := k.glance(2 * time.Hour); !errors.Is(err, f.stale) {
		t.Errorf("other maps: %v", err)
	}
}

// TestHiddenSocketsAreLookedForSeldom, and counted each time.
func TestHiddenSocketsAreLookedForSeldom(t *testing.T) {
	f := newFake()
	f.connect(1, 17)
	f.hidden[1] = true
	k := f.keeper()
	for now := time.Hour; now < time.Hour+3*time.Minute; now += pause {
		if err := k.glance(now); err != nil {
			t.Fatal(err)
		}
	}
	if f.missed < 2 || f.missed > 4 {
		t.Errorf("missed %d times in three minutes", f.missed)
	}
}

func TestValidateNamesTheFlags(t *testing.T) {
	if err := (Config{NetnsDirs: []string{"run/netns"}}).Validate(); err == nil || err.Error() != "--bpffs: not set; give the agent's\n"+
		`--netns-dir "run/netns": not an absolute path; give the directory in which the container runtime mounts network namespaces, such as /run/netns` {
		t.Errorf("got %v", err)
	}
}
