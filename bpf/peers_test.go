package bpf

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// slots opens the slots of this test's datapath for as long as it runs.
func (f *fixture) slots() []clustermeshCmTcpSlot {
	f.Helper()
	w, err := openWindow[clustermeshCmTcpSlot](f.dp.coll.Maps[clustermeshMapCmTcpSlots])
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := w.close(); err != nil {
			f.Error(err)
		}
	})
	return w.upTo(uint64(len(w.all)))
}

// elsewhere is the cookie of a socket that is none of this test's.
const elsewhere = 1 << 60

func (f *fixture) fillSlots() {
	f.Helper()
	slots := f.slots()
	for i := range slots {
		atomic.CompareAndSwapUint64(&slots[i].Cookie, 0, elsewhere)
	}
}

func (f *fixture) fillHash() {
	f.Helper()
	m := f.dp.coll.Maps[clustermeshMapCmTcpPeers]
	for i := range m.MaxEntries() {
		if err := m.Put(elsewhere+uint64(i), &clustermeshCmPeer{}); err != nil {
			f.Fatal(err)
		}
	}
}

// spilled are the cookies in the hash.
func (f *fixture) spilled() (cookies []uint64) {
	f.Helper()
	err := eachKey(f.dp.coll.Maps[clustermeshMapCmTcpPeers], func(cookie uint64) { cookies = append(cookies, cookie) })
	if err != nil {
		f.Fatal(err)
	}
	return cookies
}

// rememberNobody fails the test if a slot or the hash knows of a socket.
func (f *fixture) rememberNobody() {
	f.Helper()
	for i, s := range f.slots() {
		if s.Cookie != 0 {
			f.Errorf("slot %d remembers socket %d", i, s.Cookie)
		}
	}
	if cookies := f.spilled(); len(cookies) > 0 {
		f.Errorf("the hash remembers sockets %d", cookies)
	}
	if c := f.counters(); c.Forgotten != 0 {
		f.Errorf("%d sockets were forgotten", c.Forgotten)
	}
}

// free gives back what fill took.
func (f *fixture) free() {
	f.Helper()
	slots := f.slots()
	for i := range slots {
		atomic.CompareAndSwapUint64(&slots[i].Cookie, elsewhere, 0)
	}
	for i := range f.dp.coll.Maps[clustermeshMapCmTcpPeers].MaxEntries() {
		_ = f.dp.coll.Maps[clustermeshMapCmTcpPeers].Delete(elsewhere + uint64(i)) // or there was none
	}
}

// places are where the peer of a socket may be kept.
type places struct{ slots, hash int }

// places counts those that sockets of this test are in.
func (f *fixture) places() (n places) {
	f.Helper()
	for _, s := range f.slots() {
		if s.Cookie != 0 && s.Cookie != elsewhere {
			n.slots++
		}
	}
	for _, cookie := range f.spilled() {
		if cookie < elsewhere {
			n.hash++
		}
	}
	return n
}

// TestPeersAreKeptWhereThereIsRoom has sockets connect, connect again and connect
// to what is no frontend, with their peers in slots, in the hash, on a kernel
// without exchanges, and in the sockets' own storage.
func TestPeersAreKeptWhereThereIsRoom(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(f *fixture)
		want    places
	}{
		{"slot", func(*fixture) {}, places{slots: 1}},
		{"hash", (*fixture).fillSlots, places{hash: 1}},
		{"no exchanges", (*fixture).withoutExchange, places{hash: 1}},
		{"storage", func(f *fixture) {
			f.fillSlots()
			f.fillHash()
		}, places{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newPlace(t)
			f.opts.MaxPeers = 2
			f.load()
			b := f.backend("b", "127.0.0.2:0", tcp)
			f.service("10.96.0.1:80", tcp, b)
			f.service("10.96.0.2:80", tcp, b)
			tt.prepare(f)
			direct := addrOf(b)
			f.only(f.run(5, "4 tcp", "connect 10.96.0.1:80", "peer"), "ok; 10.96.0.1:80")
			f.only(f.run(5, "4 tcp", "connect 10.96.0.1:80", "disconnect", "connect 10.96.0.2:80", "peer"), "ok; ok; ok; 10.96.0.2:80")
			f.only(f.run(5, "4 tcp", "connect 10.96.0.1:80", "disconnect", "connect "+direct, "peer"), "ok; ok; ok; "+direct)
			f.only(f.ask(request{Socket: "4 tcp", Steps: []string{"connect 10.96.0.1:80"}, N: 1, Keep: true}).Outcomes, "ok")
			if got := f.places(); got != tt.want {
				t.Errorf("the peer is in %+v, want %+v", got, tt.want)
			}
			f.only(f.run(1, "kept", "peer"), "10.96.0.1:80")
			f.free()
			f.rememberNobody()
		})
	}
}

func (f *fixture) withoutExchange() {
	f.close()
	f.opts.noExchange = true
	f.load()
}

// TestASocketGoesBackToItsPlace: wherever there is room when a socket connects
// again, its peer is in one place only.
func TestASocketGoesBackToItsPlace(t *testing.T) {
	f := newFixture(t)
	b := f.backend("b", "127.0.0.2:0", tcp)
	f.service("10.96.0.1:80", tcp, b)
	f.service("10.96.0.2:80", tcp, b)
	connect := func(socket, addr string, want places) {
		t.Helper()
		f.only(f.ask(request{Socket: socket, Steps: []string{"disconnect", "connect " + addr, "peer"}, N: 1, Keep: true}).Outcomes, "ok; ok; "+addr)
		if got := f.places(); got != want {
			t.Errorf("after connect to %s the peer is in %+v, want %+v", addr, got, want)
		}
	}
	connect("4 tcp", "10.96.0.1:80", places{slots: 1})
	f.fillSlots()
	connect("kept", "10.96.0.2:80", places{slots: 1})
	f.only(f.run(1, "kept", "disconnect", "connect "+addrOf(b), "peer"), "ok; ok; "+addrOf(b))
	connect("4 tcp", "10.96.0.1:80", places{hash: 1})
	f.free()
	connect("kept", "10.96.0.2:80", places{hash: 1})
	f.only(f.run(1, "kept", "peer"), "10.96.0.2:80")
	f.rememberNobody()
}

// TestSocketsThatShareASlot has clients on all processors fight for one slot.
func TestSocketsThatShareASlot(t *testing.T) {
	f := newPlace(t)
	f.opts.slots = 1
	f.load()
	b := f.backend("b", "127.0.0.2:0", tcp)
	var clients sync.WaitGroup
	for i := range 6 {
		addr := fmt.Sprintf("10.96.0.%d:80", i+1)
		f.service(addr, tcp, b)
		c := f.startClient(f.opts.Cgroup)
		clients.Go(func() {
			r, err := c.ask(request{Socket: "4 tcp", Steps: []string{"connect " + addr, "peer", "disconnect", "connect " + addr, "peer"}, N: 1500})
			want := "ok; " + addr + "; ok; ok; " + addr
			if err != nil || r.Outcomes[want] != 1500 {
				t.Errorf("got %v, error %v; want 1500 times %q", r.Outcomes, err, want)
			}
		})
	}
	clients.Wait()
	if s := f.slots()[0]; s.Writes == 0 || s.Spilled == 0 {
		t.Errorf("there was no fight: %+v", s)
	}
	f.rememberNobody()
}

// TestTakeOverFindsSpilledPeers is about sockets in the hash of which no slot has a
// note, as programs leave them that know no slots.
func TestTakeOverFindsSpilledPeers(t *testing.T) {
	f := newPlace(t)
	f.opts.noExchange = true
	f.load()
	f.service("10.96.0.1:80", tcp, f.backend("b", "127.0.0.2:0", tcp))
	f.only(f.ask(request{Socket: "4 tcp", Steps: []string{"connect 10.96.0.1:80"}, N: 1, Keep: true}).Outcomes, "ok")
	slots, cookies := f.slots(), f.spilled()
	if len(cookies) != 1 {
		t.Fatalf("the hash has %v", cookies)
	}
	own := cookies[0] % uint64(len(slots))
	slots[own].Spilled = 0
	slots[own^1].Spilled = 1 // of a socket that is gone
	f.close()
	f.opts.noExchange = false
	f.load()
	if f.dp.settings.all[0].Spilled != 0 {
		t.Error("programs go on looking everywhere")
	}
	if slots[own].Spilled != 1 || slots[own^1].Spilled != 0 {
		t.Errorf("notes at the slots: %d and %d, want 1 and 0", slots[own].Spilled, slots[own^1].Spilled)
	}
	f.only(f.run(1, "kept", "peer"), "10.96.0.1:80")
	f.rememberNobody()
}

// TestLookingEverywhere is what programs do while the loader has not looked yet.
func TestLookingEverywhere(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("b", "127.0.0.2:0", tcp))
	f.fillSlots()
	f.only(f.ask(request{Socket: "4 tcp", Steps: []string{"connect 10.96.0.1:80"}, N: 1, Keep: true}).Outcomes, "ok")
	slots := f.slots()
	for i := range slots {
		slots[i].Spilled = 0
	}
	atomic.StoreUint32(&f.dp.settings.all[0].Spilled, 1)
	f.only(f.run(1, "kept", "peer"), "10.96.0.1:80")
	f.free()
	f.rememberNobody()
}

// TestListsAreNeverTorn lists sockets while one of them alternates between two
// frontends with a backend each.
func TestListsAreNeverTorn(t *testing.T) {
	f := newFixture(t)
	want := map[Pair]bool{}
	steps := make([]string, 0, 4000)
	for i := range 2 {
		front, back := fmt.Sprintf("10.96.0.%d:80", i+1), fmt.Sprintf("127.0.0.%d:1", i+2)
		f.service(front, tcp, record(netip.MustParseAddrPort(back)))
		want[Pair{tcp, netip.MustParseAddrPort(front), netip.MustParseAddrPort(back)}] = false
	}
	for i := range cap(steps) {
		steps = append(steps, fmt.Sprintf("connect 10.96.0.%d:80", i%2+1)) // nobody listens
	}
	s, err := LoadSockets(SocketsOptions{PinDir: f.opts.PinDir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := f.startClient(f.opts.Cgroup)
	for range 20 { // who lists may have to wait for a processor
		listMeanwhile(t, s, want, func() error {
			_, err := c.ask(request{Socket: "4 tcp", Steps: steps, N: 20})
			return err
		})
		if !slices.Contains(slices.Collect(maps.Values(want)), false) {
			return
		}
	}
	t.Errorf("not all were listed: %v", want)
}

// listMeanwhile marks what is listed until something is done.
func listMeanwhile(t *testing.T, s *Sockets, want map[Pair]bool, do func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range list {
			if _, ok := want[one.Pair]; !ok {
				t.Fatalf("torn: %+v", one)
			}
			want[one.Pair] = true
		}
	}
}
