package datapath_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

func frontendAt(addr string) lb.Frontend {
	return lb.Frontend{Addr: netip.MustParseAddrPort(addr), Protocol: lb.TCP}
}

// tables makes one frontend of service i with n backends from first on.
func tables(i, first, n int) []lb.FrontendTable {
	t := lb.FrontendTable{Service: serviceName(i), Frontend: frontendAt(fmt.Sprintf("10.96.%d.%d:80", i>>8, i&255))}
	for k := first; k < first+n; k++ {
		addr := netip.AddrFrom4([4]byte{10, byte(k >> 16), byte(k >> 8), byte(k)})
		t.Backends = append(t.Backends, lb.Choice{Selected: true, Reason: lb.ReasonActive, Backend: lb.Backend{
			Addr: netip.AddrPortFrom(addr, 8080), Protocol: lb.TCP, Cluster: "c1", ClusterID: 1, Local: true,
		}})
	}
	return []lb.FrontendTable{t}
}

// TestQuarantine: a replaced region and a freed number come back only after the
// grace period that began after they were freed.
func TestQuarantine(t *testing.T) {
	mem := newMemory(2, 12) // one frontend, eleven records
	r := datapath.New(mem)
	if _, waiting := r.Quarantined(); waiting {
		t.Fatal("something waits before anything was written")
	}
	must(r.Set(serviceName(0), tables(0, 0, 5)))
	early, _ := r.Quarantined()
	must(r.Set(serviceName(0), tables(0, 5, 4))) // fills the rest
	wantFull(t, r, 0, "backend records", 6)
	r.Release(early)
	wantFull(t, r, 0, "backend records", 6)
	release(t, mem, r)
	must(r.Set(serviceName(0), tables(0, 10, 4)))

	must(r.Set(serviceName(0), nil))
	wantFull(t, r, 1, "frontends", 1)
	release(t, mem, r)
	must(r.Set(serviceName(1), tables(1, 0, 4)))
	if v := mem.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

func release(t *testing.T, mem *datapath.Memory, r *datapath.Reconciler) {
	ticket, waiting := r.Quarantined()
	if !waiting {
		t.Fatal("nothing waits")
	}
	mem.Grace()
	r.Release(ticket)
	r.Release(ticket)
}

func wantFull(t *testing.T, r *datapath.Reconciler, service int, resource string, quarantined uint32) {
	t.Helper()
	_, err := r.Set(serviceName(service), tables(service, 20, 4))
	var full *datapath.CapacityError
	if !errors.As(err, &full) || full.Resource != resource || full.Quarantined != quarantined {
		t.Fatalf("got %v (%+v), want no room for %s with %d in quarantine", err, full, resource, quarantined)
	}
}

// TestCompactHealsFragmentation: free records that lie apart become one run.
func TestCompactHealsFragmentation(t *testing.T) {
	mem := newMemory(20, 1+16*4)
	r := datapath.New(mem)
	for i := range 16 {
		must(r.Set(serviceName(i), tables(i, 0, 3)))
	}
	for i := range 8 {
		must(r.Set(serviceName(2*i), nil))
	}
	release(t, mem, r)
	_, err := r.Set(serviceName(17), tables(17, 0, 10))
	var full *datapath.CapacityError
	if !errors.As(err, &full) || !full.Fragmented {
		t.Fatalf("got %v, want a fragmented slab", err)
	}
	if moved := r.Compact(100); moved == 0 {
		t.Fatal("nothing moved")
	}
	release(t, mem, r)
	must(r.Set(serviceName(17), tables(17, 0, 30)))
	if v := mem.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// TestLoadRepairs: entries that cannot be are taken out and named; the others
// are taken over.
func TestLoadRepairs(t *testing.T) {
	good := func(mem *datapath.Memory) { must(datapath.New(mem).Set(serviceName(0), tables(0, 0, 3))) }
	key := layout.FrontendKey{Addr: netip.MustParseAddr("10.96.9.9").As16(), Proto: 6}
	binary.BigEndian.PutUint16(key.Port[:], 80)
	meta := layout.Meta{Key: key}
	copy(meta.Namespace[:], "shop")
	copy(meta.Name[:], "broken")
	other := meta
	other.Key.Scope = 1
	for want, spoil := range map[string]func(*datapath.Memory){
		"number is not within":      func(m *datapath.Memory) { m.InsertFrontend(key, 99) },
		"meta record is of another": func(m *datapath.Memory) { m.StoreMeta(3, other); m.InsertFrontend(key, 3) },
		"names no service":          func(m *datapath.Memory) { m.StoreMeta(3, layout.Meta{Key: key}); m.InsertFrontend(key, 3) },
		"header names no region":    func(m *datapath.Memory) { m.StoreMeta(3, meta); m.InsertFrontend(key, 3) },
		"region is of another": func(m *datapath.Memory) {
			m.StoreMeta(3, meta)
			m.StoreHeader(3, layout.MakeHeader(2, 3, 1))
			m.InsertFrontend(key, 3)
		},
		"selects more backends":      func(m *datapath.Memory) { spoilRegion(m, key, meta, 40, 2) },
		"region overlaps another":    func(m *datapath.Memory) { spoilRegion(m, key, meta, 5, 0) },
		"header selects more backen": func(m *datapath.Memory) { spoilRegion(m, key, meta, 50, 9) },
		"has other flags than": func(m *datapath.Memory) {
			spoilRegion(m, key, meta, 50, 1)
			m.StoreHeader(3, layout.MakeHeader(50, 1, 2)|layout.HeaderSticky)
		},
		"table names a backend": func(m *datapath.Memory) {
			m.StoreTable(51, []uint16{0, 0, 1})
			spoilRegion(m, key, meta, 50, 1)
			m.StoreBackends(50, layout.Region{Total: 1, Frontend: 3, Slots: 3}, []layout.Backend{{Frontend: 3}})
			m.StoreHeader(3, layout.MakeHeader(50, 1, 2)|layout.HeaderConsistent)
		},
		"table is not complete": func(m *datapath.Memory) {
			spoilRegion(m, key, meta, 50, 1)
			m.StoreBackends(50, layout.Region{Total: 1, Frontend: 3, Slots: 900}, []layout.Backend{{Frontend: 3}})
			m.StoreHeader(3, layout.MakeHeader(50, 1, 2)|layout.HeaderConsistent)
		},
	} {
		mem := datapath.NewMemory(layout.Capacity{Frontends: 8, Records: 100})
		good(mem)
		before := have(t, mem)
		spoil(mem)
		d, _ := mem.Dump()
		if len(datapath.Check(d, mem.Capacity())) == 0 {
			t.Errorf("%s: Check sees nothing", want)
		}
		r := datapath.New(mem)
		loaded, err := r.Load()
		if u := r.Usage(); u.Frontends+u.FreeFrontends+u.QuarantinedFrontends+1 != 8 {
			t.Errorf("%s: numbers leak: %+v", want, u)
		}
		if err != nil || len(loaded.Repairs) != 1 || !strings.Contains(loaded.Repairs[0].String(), want) {
			t.Errorf("%s: repairs %v, error %v", want, loaded.Repairs, err)
		}
		if strings.Contains(want, "overlaps") {
			continue // the overlap has destroyed a record of the other
		}
		if after := have(t, mem); after != before {
			t.Errorf("%s: the maps hold\n%s\nwant\n%s", want, after, before)
		}
	}
}

// spoilRegion writes a region with one backend and a header for two at offset,
// without asking whether the place is free.
func spoilRegion(m *datapath.Memory, key layout.FrontendKey, meta layout.Meta, offset uint32, selected uint16) {
	m.StoreMeta(3, meta)
	m.StoreBackends(offset, layout.Region{Total: 1, Frontend: 3}, []layout.Backend{{Frontend: 3}})
	m.StoreHeader(3, layout.MakeHeader(offset, selected, 1))
	m.InsertFrontend(key, 3)
}

// TestFewerSelected: the same backends with fewer selected are another set.
func TestFewerSelected(t *testing.T) {
	mem := newMemory(8, 100)
	r := datapath.New(mem)
	less := tables(0, 0, 3)
	must(r.Set(serviceName(0), tables(0, 0, 3)))
	less[0].Backends[2].Selected = false
	must(r.Set(serviceName(0), less))
	if got := have(t, mem); got != datapath.Want(less) {
		t.Errorf("got %s", got)
	}
}

// TestDivertedDraws: a slot of an alias table must stay among the selected.
func TestDivertedDraws(t *testing.T) {
	mem := newMemory(8, 100)
	must(datapath.New(mem).Set(serviceName(0), weighted(3, 1)))
	checkSound(t, mem)
	d, _ := mem.Dump()
	for i := range d.Frontends[0].Backends {
		d.Frontends[0].Backends[i].Alias += 2
	}
	if errs := datapath.Check(d, mem.Capacity()); len(errs) == 0 || !strings.Contains(errs[0].Error(), "not selected") {
		t.Errorf("got %v", errs)
	}
}

// weighted makes a frontend with one backend per weight.
func weighted(weights ...uint32) []lb.FrontendTable {
	t := tables(0, 0, len(weights))
	for i, w := range weights {
		t[0].Backends[i].Weight = w
	}
	return t
}

// TestRestoredShares: a life that follows knows what the draws are.
func TestRestoredShares(t *testing.T) {
	const even = 1 << 32
	for _, tt := range []struct {
		tables []lb.FrontendTable
		want   []uint64
	}{
		{weighted(1, 1, 1), nil},
		{weighted(3, 1), []uint64{even * 3 / 2, even / 2}},
		{weighted(0, 5), []uint64{0, even * 2}},
	} {
		mem := newMemory(8, 100)
		must(datapath.New(mem).Set(serviceName(0), tt.tables))
		loaded, err := datapath.New(mem).Load()
		if err != nil || !slices.Equal(loaded.Selections[0].Shares, tt.want) {
			t.Errorf("got %+v, %v, want %v", loaded.Selections, err, tt.want)
		}
	}
}

// TestTableIsMadeOnce: a set whose members only change their state keeps its
// table, and one of another size, weight or restart has that of a fresh agent.
func TestTableIsMadeOnce(t *testing.T) {
	mem := newMemory(8, 2000)
	r := datapath.New(mem)
	first := weighted(3, 1, 1)
	first[0].Consistent = true
	changed := weighted(3, 1, 1)
	changed[0].Consistent, changed[0].Backends[1].State = true, lb.Terminating
	other := weighted(1, 1, 1)
	other[0].Consistent = true
	fewer := tables(0, 0, 2)
	fewer[0].Consistent = true
	for _, next := range [][]lb.FrontendTable{first, changed, other, fewer, first} {
		must(r.Set(serviceName(0), next))
		if got := have(t, mem); got != datapath.Want(next) {
			t.Errorf("got %s\nwant %s", got, datapath.Want(next))
		}
		fresh := datapath.New(mem)
		if _, err := fresh.Load(); err != nil {
			t.Fatal(err)
		}
		if report, err := fresh.Set(serviceName(0), next); err != nil || report.Changed() {
			t.Errorf("a restart wrote: %+v, %v", report, err)
		}
	}
}

// TestGenerationGrows: each header store counts, over a restart and over the
// number's next frontend too.
func TestGenerationGrows(t *testing.T) {
	mem := newMemory(2, 100)
	r := datapath.New(mem)
	generation := func() uint16 {
		d, _ := mem.Dump()
		return d.Frontends[0].Header.Generation()
	}
	for n := range uint16(3) {
		must(r.Set(serviceName(0), tables(0, int(n), 3)))
		if got := generation(); got != n+1 {
			t.Errorf("generation %d after %d stores", got, n+1)
		}
	}
	mem.Grace()
	r = datapath.New(mem)
	if _, err := r.Load(); err != nil {
		t.Fatal(err)
	}
	must(r.Set(serviceName(0), tables(0, 7, 3)))
	if got := generation(); got != 4 {
		t.Errorf("generation %d after a restart", got)
	}
	must(r.Set(serviceName(0), nil))
	release(t, mem, r)
	must(r.Set(serviceName(1), tables(1, 0, 3)))
	if got := generation(); got != 6 {
		t.Errorf("generation %d of the number's next frontend", got)
	}
}

// TestMoveThatFails: a frontend that cannot be taken from its service stays
// there, known and in force, and the move succeeds later.
func TestMoveThatFails(t *testing.T) {
	mem := newMemory(8, 100)
	r := datapath.New(mem)
	must(r.Set(serviceName(0), tables(0, 0, 3)))
	before := have(t, mem)
	moved := tables(0, 5, 2)
	moved[0].Service = serviceName(1)
	mem.Fail = func(string, layout.FrontendKey) error { return errDeaf }
	if _, err := r.Set(serviceName(1), moved); !errors.Is(err, errDeaf) {
		t.Errorf("got %v", err)
	}
	mem.Fail = nil
	if got := have(t, mem); got != before {
		t.Errorf("got %s", got)
	}
	if report, err := r.Set(serviceName(0), tables(0, 0, 3)); err != nil || report.Changed() {
		t.Errorf("the service is not known any more: %+v, %v", report, err)
	}
	must(r.Set(serviceName(1), moved))
	if got := have(t, mem); got != datapath.Want(moved) {
		t.Errorf("got %s", got)
	}
}

// TestLoadReportsAFailingDump: an error of the maps is not taken for emptiness.
func TestLoadReportsAFailingDump(t *testing.T) {
	_, err := datapath.New(deaf{newMemory(4, 40)}).Load()
	if !errors.Is(err, errDeaf) {
		t.Errorf("got %v", err)
	}
}

var errDeaf = errors.New("no answer")

type deaf struct{ *datapath.Memory }

func (deaf) Dump() (layout.Dump, error) { return layout.Dump{}, errDeaf }

// void is a Kernel that costs nothing, so that benchmarks see the reconciler.
type void struct{}

func (void) Capacity() layout.Capacity {
	return layout.Capacity{Frontends: 1 << 14, Records: 1 << 18}
}
func (void) StoreBackends(uint32, layout.Region, []layout.Backend) {}
func (void) StoreTable(uint32, []uint16)                           {}
func (void) StoreHeader(uint32, layout.Header)                     {}
func (void) StoreMeta(uint32, layout.Meta)                         {}
func (void) StoreCluster(uint16, layout.Cluster)                   {}
func (void) InsertFrontend(layout.FrontendKey, uint32) error       { return nil }
func (void) DeleteFrontend(layout.FrontendKey) error               { return nil }
func (void) Dump() (layout.Dump, error)                            { return layout.Dump{}, nil }

// filled is a reconciler with a thousand services of ten backends.
func filled() *datapath.Reconciler {
	r := datapath.New(void{})
	for i := range 1000 {
		must(r.Set(serviceName(i), tables(i, 0, 10)))
	}
	return r
}

func BenchmarkSetChanged(b *testing.B) {
	r := filled()
	variants := [][]lb.FrontendTable{tables(500, 0, 9), tables(500, 0, 10)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		must(r.Set(serviceName(500), variants[i%2]))
		if ticket, waiting := r.Quarantined(); waiting {
			r.Release(ticket)
		}
	}
}

func BenchmarkSetUnchanged(b *testing.B) {
	r := filled()
	same := tables(500, 0, 10)
	b.ReportAllocs()
	for b.Loop() {
		must(r.Set(serviceName(500), same))
	}
}

func BenchmarkSetAndRemove(b *testing.B) {
	r := filled()
	one := tables(1001, 0, 10)
	b.ReportAllocs()
	for b.Loop() {
		must(r.Set(serviceName(1001), one))
		must(r.Set(serviceName(1001), nil))
		ticket, _ := r.Quarantined()
		r.Release(ticket)
	}
}

func BenchmarkSetConsistentUnchanged(b *testing.B) {
	r := datapath.New(void{})
	same := tables(500, 0, 10)
	same[0].Consistent = true
	must(r.Set(serviceName(500), same))
	b.ReportAllocs()
	for b.Loop() {
		must(r.Set(serviceName(500), same))
	}
}

// BenchmarkSetWeighted changes one weight of ten.
func BenchmarkSetWeighted(b *testing.B) {
	r := filled()
	variants := [][]lb.FrontendTable{tables(500, 0, 10), tables(500, 0, 10)}
	for i, v := range variants {
		for k := range v[0].Backends {
			v[0].Backends[k].Weight = uint32(1 + k + i)
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		must(r.Set(serviceName(500), variants[i%2]))
		if ticket, waiting := r.Quarantined(); waiting {
			r.Release(ticket)
		}
	}
}

// TestWhatTakesAPlaceIsNeverMissing: a frontend for clients outside is there before
// the one whose place it takes for them comes, and until that one is gone.
func TestWhatTakesAPlaceIsNeverMissing(t *testing.T) {
	mem := newMemory(16, 256)
	var log []string
	mem.Fail = func(op string, k layout.FrontendKey) error {
		log = append(log, fmt.Sprint(op, " ", lb.Scope(k.Scope)))
		return nil
	}
	one := tables(0, 0, 2)[0]
	outside := one
	outside.Frontend.Scope = lb.ScopeOutside
	r := datapath.New(mem)
	must(r.Set(serviceName(0), []lb.FrontendTable{one, outside}))
	must(r.Set(serviceName(0), nil))
	if want := "[insert outside insert any delete any delete outside]"; fmt.Sprint(log) != want {
		t.Errorf("%v, want %s", log, want)
	}
}
