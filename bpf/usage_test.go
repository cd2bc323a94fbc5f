package bpf

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
)

// usageOf asks how full a map is, counting anew.
func (f *fixture) usageOf(name string) (Usage, bool) {
	f.Helper()
	f.dp.census.at = 0
	all, err := f.dp.Usage()
	if err != nil {
		f.Fatal(err)
	}
	for _, u := range all {
		if u.Map == name {
			return u, true
		}
	}
	return Usage{}, false
}

// fill puts n different entries into a map.
func fill(t testing.TB, m *ebpf.Map, n int) {
	t.Helper()
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for i := range n {
		binary.NativeEndian.PutUint32(key, uint32(i))
		if err := m.Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUsage: the entries of the maps that programs fill are counted, a full one
// that forgets as full, and what another process keeps as long as it tells.
func TestUsage(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{clustermeshMapCmAffinity, clustermeshMapCmReverse, clustermeshMapCmTcpPeers} {
		m := f.dp.coll.Maps[name]
		if u, ok := f.usageOf(name); !ok || u.Entries != 0 || u.Capacity != m.MaxEntries() || u.WhenFull == "" {
			t.Errorf("%s, empty: %+v", name, u)
		}
		fill(t, m, 300)
		if u, _ := f.usageOf(name); u.Entries != 300 {
			t.Errorf("%s with 300 entries: %+v", name, u)
		}
	}
	fill(t, f.dp.coll.Maps[clustermeshMapCmTcpPeers], 400)
	if all, err := f.dp.Usage(); err != nil || all[2].Entries != 300 {
		t.Errorf("counted again at once: %+v, %v", all, err)
	}
	if u, told := f.usageOf(packetMapCmFlows); told {
		t.Errorf("nobody keeps flows, yet %+v", u)
	}
	p, err := LoadPacket(PacketOptions{PinDir: f.opts.PinDir, MaxFlows: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	tell := func() {
		if err := p.TellUsage(); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, p.coll.Maps[packetMapCmFlows], 5000) // more than is copied at once
	tell()
	if u, told := f.usageOf(packetMapCmFlows); !told || u.Entries != 5000 || u.Capacity != p.coll.Maps[packetMapCmFlows].MaxEntries() || u.WhenFull == "" {
		t.Errorf("5000 flows: %+v, %v", u, told)
	}
	if u, told := f.usageOf(packetMapCmDevices); !told || u.Entries != 0 {
		t.Errorf("no devices: %+v, %v", u, told)
	}
	fill(t, p.coll.Maps[packetMapCmFlows], 20_000)
	tell() // too soon
	if u, _ := f.usageOf(packetMapCmFlows); u.Entries != 5000 {
		t.Errorf("counted again at once: %+v", u)
	}
	p.counted = 0
	tell()
	if u, _ := f.usageOf(packetMapCmFlows); u.Entries < 9_000 || u.Entries > u.Capacity {
		t.Errorf("full: %+v", u)
	}
	f.dp.usage.all[0].Counted = uint64(Monotonic() - 2*usageLimit)
	if u, told := f.usageOf(packetMapCmFlows); told {
		t.Errorf("what was counted long ago is told: %+v", u)
	}
}

// BenchmarkCountEntries counts a full map of flows of the default size.
func BenchmarkCountEntries(b *testing.B) {
	f := newBench(b, 1, tcp)
	p, err := LoadPacket(PacketOptions{PinDir: f.opts.PinDir})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Close() })
	m := p.coll.Maps[packetMapCmFlows]
	fill(b, m, int(m.MaxEntries()))
	for b.Loop() {
		if n, err := countEntries(m); err != nil || n < m.MaxEntries()*9/10 {
			b.Fatalf("%d entries, %v", n, err)
		}
	}
}
