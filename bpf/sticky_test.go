package bpf

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

func sticky(weights ...uint32) lb.FrontendTable {
	t := table(weights...)
	t.SessionAffinity = 600
	return t
}

// age makes every remembered choice that much older.
func (f *fixture) age(seconds uint32) {
	f.Helper()
	m := f.dp.coll.Maps[clustermeshMapCmAffinity]
	var k clustermeshCmAffinityKey
	var v clustermeshCmAffinity
	n := 0
	for it := m.Iterate(); it.Next(&k, &v); n++ {
		v.Used -= seconds
		if err := m.Update(&k, &v, ebpf.UpdateExist); err != nil {
			f.Fatal(err)
		}
	}
	if n == 0 {
		f.Error("nothing is remembered")
	}
}

func TestAffinitySticks(t *testing.T) {
	f, r := newChooser(t)
	set := sticky(even(16)...)
	f.set(r, set)
	first, second := f.benchClient(f.opts.Cgroup, ""), f.startClient(f.opts.Cgroup)
	one, two := f.sockets(first, 50), f.sockets(second, 50)
	if one == 0 || two == 0 {
		t.Fatal("a client went to several backends")
	}
	f.restart(set)
	if a, b := f.sockets(first, 50), f.sockets(second, 50); a != one || b != two {
		t.Errorf("after a restart clients went to %d and %d, before to %d and %d", a, b, one, two)
	}
	got := f.hits(func() { f.run(50, "4 udp", "sendto "+vip, "connect "+vip) })
	if f.client == nil || len(got) != 1 || got[two] != 100 { // it has second's namespace
		t.Errorf("sockets of one namespace went to %v, want %d", got, two)
	}
	if c := f.counters(); c.Remembered != c.Hits-2 || c.Moved+c.Expired+c.Unremembered != 0 {
		t.Errorf("counters %+v", c)
	}
}

// TestAffinityExpires: only after the time, and use prolongs it.
func TestAffinityExpires(t *testing.T) {
	f, r := newChooser(t)
	f.set(r, sticky(even(500)...))
	c := f.startClient(f.opts.Cgroup)
	was := f.sockets(c, 5)
	for range 3 { // 1,500 seconds in all
		f.age(500)
		if got := f.sockets(c, 5); got != was {
			t.Fatalf("moved from %d to %d before the time", was, got)
		}
	}
	if n := f.counters().Expired; n != 0 {
		t.Errorf("%d choices expired", n)
	}
	moved := false
	for range 3 { // chance gives the same one of 500 again now and then
		f.age(602)
		got := f.sockets(c, 5)
		moved, was = moved || got != was, got
	}
	if n := f.counters().Expired; n != 3 || !moved {
		t.Errorf("%d choices expired, moved: %v", n, moved)
	}
}

// TestAffinityFollowsTheBackend changes the set around a client's backend, which
// the client keeps wherever its record goes, and loses when it is gone.
func TestAffinityFollowsTheBackend(t *testing.T) {
	f, r := newChooser(t)
	set := sticky(even(200)...)
	f.set(r, set)
	c := f.startClient(f.opts.Cgroup)
	was := f.sockets(c, 5)
	keeps := func(what string, set lb.FrontendTable) {
		t.Helper()
		f.set(r, set)
		if got := f.sockets(c, 5); got != was {
			t.Fatalf("%s: went from %d to %d", what, was, got)
		}
	}
	backwards := sticky(even(200)...)
	slices.Reverse(backwards.Backends)
	keeps("the set backwards", backwards)
	keeps("and forwards", set)
	larger := sticky(even(511)...)
	keeps("a larger set", larger)
	shifted := sticky(even(511)...)
	shifted.Backends = slices.Concat(shifted.Backends[411:], shifted.Backends[:411])
	keeps("a large set that moved by 100 places", shifted)

	without := sticky(even(200)...)
	without.Backends = slices.DeleteFunc(without.Backends, func(b lb.Choice) bool { return b.ClusterID == was })
	f.set(r, without)
	now := f.sockets(c, 5)
	if now == was || now == 0 {
		t.Errorf("went to %d, which is gone", now)
	}
	f.set(r, set)
	if got := f.sockets(c, 5); got != now {
		t.Errorf("went back to %d from %d", got, now)
	}
	for i := range set.Backends {
		if b := &set.Backends[i]; b.ClusterID == now {
			gone := *b
			gone.Selected, gone.State = false, lb.Quarantined
			set.Backends = append(slices.Delete(set.Backends, i, i+1), gone)
			break
		}
	}
	f.set(r, set)
	if got := f.sockets(c, 5); got == now {
		t.Errorf("went to %d, which is not selected any more", got)
	}
	if n := f.counters().Moved; n != 2 {
		t.Errorf("%d clients moved, want 2", n)
	}
}

func TestAffinityLeavesWithdrawnCluster(t *testing.T) {
	f, r := newChooser(t)
	f.set(r, sticky(even(8)...))
	c := f.startClient(f.opts.Cgroup)
	was := f.sockets(c, 5)
	f.dp.StoreCluster(was, layout.Cluster{State: layout.ClusterWithdrawn})
	now := f.sockets(c, 20)
	if now == was || now == 0 {
		t.Errorf("went to %d from %d, which is withdrawn", now, was)
	}
	f.dp.StoreCluster(was, layout.Cluster{State: layout.ClusterUp})
	if got := f.sockets(c, 20); got != now {
		t.Errorf("went to %d, want %d still", got, now)
	}
}

// TestAffinityOfConsistentSet: the first choice is the table's, and stays when the
// table gives the client to another.
func TestAffinityOfConsistentSet(t *testing.T) {
	f, r := newChooser(t)
	set := sticky(even(4)...)
	set.Consistent = true
	f.set(r, set)
	c := f.startClient(f.opts.Cgroup)
	plain := table(even(4)...)
	plain.Consistent = true
	was := f.sockets(c, 5)
	f.set(r, plain)
	if got := f.sockets(c, 5); got != was || was == 0 {
		t.Errorf("the table gives %d, affinity took %d", got, was)
	}
	f.set(r, set)
	f.sockets(c, 1)
	larger := sticky(even(64)...)
	larger.Consistent = true
	f.set(r, larger)
	if got := f.sockets(c, 5); got != was {
		t.Errorf("went to %d from %d", got, was)
	}
}

// TestFullAffinityMap keeps serving when more clients come than it holds.
func TestFullAffinityMap(t *testing.T) {
	f := newPlace(t)
	f.opts.MaxAffinity = 2
	f.load()
	for i := range 40 {
		addr := fmt.Sprintf("10.96.1.%d:53", i)
		id := f.service(addr, udp, record(netip.MustParseAddrPort("127.0.0.2:53")))
		region := layout.Region{Total: 1, Frontend: id, Sticky: 600}
		*(*layout.Region)(unsafe.Pointer(&f.dp.slab.all[f.next-2])) = region
		f.dp.StoreHeader(id, layout.MakeHeader(f.next-1, 1, 1)|layout.HeaderSticky)
		f.only(f.run(3, "4 udp", "connect "+addr), "ok")
	}
	if c := f.counters(); c.Hits != 120 || c.Remembered+c.Unremembered < 1 {
		t.Errorf("counters %+v", c)
	}
}

// TestPacketsOfAClientStayTogether: per packet a client is its source address, and
// a table has the same backend for it as on any other node.
func TestPacketsOfAClientStayTogether(t *testing.T) {
	w := newPacketWorld(t, false)
	list := slices.Repeat([]layout.Backend{w.serveIn(tcp, backendAddr4+":0")}, 4)
	id := w.service("10.96.0.1:80", tcp, list...)
	for i := range list {
		list[i].Frontend, list[i].Cluster = id, uint16(i+1)
	}
	slots := make([]uint16, 251)
	slots[layout.ClientSlot(netip.MustParseAddr(clientAddr4).As16(), 251)] = 2
	first := w.next + 1
	publish := func(region layout.Region, flags layout.Header) map[uint16]uint64 {
		w.dp.StoreBackends(first, region, list)
		w.dp.StoreTable(first+4, slots)
		w.dp.StoreHeader(id, layout.MakeHeader(first, 4, 1)|flags)
		first += 100
		return w.hits(func() {
			for range 24 {
				w.answers("tcp", "10.96.0.1:80", "", clientAddr4)
			}
		})
	}
	if got := publish(layout.Region{Total: 4, Frontend: id, Slots: 251}, layout.HeaderConsistent); len(got) != 1 || got[3] != 24 {
		t.Errorf("consistent: hits %v, want 3 alone", got)
	}
	if got := publish(layout.Region{Total: 4, Frontend: id, Sticky: 600}, layout.HeaderSticky); len(got) != 1 {
		t.Errorf("sticky: hits %v, want one cluster", got)
	}
	if c := w.counters(); c.Remembered != 23 || c.Refused != 0 {
		t.Errorf("counters %+v", c)
	}
}
