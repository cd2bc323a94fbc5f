package datapath_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// mortal is a Kernel whose writer dies at a chosen point. Every store and every
// map operation has three: before it, in the middle of it, and after it. What a
// store leaves in the middle is as bad as it can be: nonsense wherever no reader
// may look, and an old name with new letters wherever one may.
type mortal struct {
	*datapath.Memory
	left int // points to pass; negative for ever
	used map[uint32]bool
}

func (m *mortal) point() {
	if m.left == 0 {
		panic(killed{})
	}
	m.left--
}

// atomically passes the points around an operation that has no middle.
func (m *mortal) atomically(do func()) {
	m.point()
	do()
	m.point()
}

// torn passes all three; half is what the middle leaves.
func (m *mortal) torn(half, do func()) {
	m.point()
	if m.left == 0 {
		half()
	}
	m.point()
	do()
	m.point()
}

func (m *mortal) StoreBackends(offset uint32, region layout.Region, backends []layout.Backend) {
	m.torn(func() {
		nonsense := make([]layout.Backend, len(backends))
		for i := range nonsense {
			nonsense[i] = layout.Backend{Cluster: 99, Frontend: region.Frontend + 1}
		}
		m.Memory.StoreBackends(offset, layout.Region{Total: region.Total, Frontend: region.Frontend + 1, Affinity: 77}, nonsense)
	}, func() { m.Memory.StoreBackends(offset, region, backends) })
}

func (m *mortal) StoreHeader(id uint32, h layout.Header) {
	m.atomically(func() { m.Memory.StoreHeader(id, h) })
}

func (m *mortal) StoreMeta(id uint32, meta layout.Meta) {
	m.torn(func() {
		half := layout.Meta{}
		if m.used[id] {
			half = meta
			half.PortName[0] = '?'
		}
		m.Memory.StoreMeta(id, half)
	}, func() { m.Memory.StoreMeta(id, meta) })
}

// StoreCluster stores the name before the state.
func (m *mortal) StoreCluster(id uint16, c layout.Cluster) {
	m.torn(func() {
		half := layout.Cluster{Name: c.Name}
		half.Name[0] = '?'
		m.Memory.StoreCluster(id, half)
	}, func() { m.Memory.StoreCluster(id, c) })
}

func (m *mortal) InsertFrontend(k layout.FrontendKey, id uint32) (err error) {
	m.atomically(func() {
		err = m.Memory.InsertFrontend(k, id)
		m.used[id] = true
	})
	return err
}

func (m *mortal) DeleteFrontend(k layout.FrontendKey) (err error) {
	m.atomically(func() { err = m.Memory.DeleteFrontend(k) })
	return err
}

// act is one thing that a writer does.
type act struct {
	set     *update
	full    bool // the set does not fit
	grace   bool
	compact int
}

func set(service, first, n int) act {
	return act{set: &update{serviceName(service), tables(service, first, n)}}
}

func remove(service int) act { return act{set: &update{service: serviceName(service)}} }

// ports gives a service these frontends with n backends each.
func ports(service, first, n int, addrs ...string) act {
	u := update{service: serviceName(service)}
	for _, addr := range addrs {
		t := tables(service, first, n)[0]
		t.Frontend = frontendAt(addr)
		u.tables = append(u.tables, t)
	}
	return act{set: &u}
}

func named(a act, port string) act {
	for i := range a.set.tables {
		a.set.tables[i].Frontend.PortName = port
	}
	return a
}

func tooMuch(a act) act { a.full = true; return a }

var grace = act{grace: true}

func compact(n int) act { return act{compact: n} }

// scenarios are what writers go through, each within maps of its own size. Every
// act but the grace periods is killed at every point.
func scenarios() map[string]struct {
	frontends, records uint32
	acts               []act
} {
	type s = struct {
		frontends, records uint32
		acts               []act
	}
	return map[string]s{
		"add":     {8, 100, []act{set(0, 0, 3), set(1, 0, 1), set(2, 0, 0)}},
		"grow":    {8, 200, []act{set(0, 0, 1), set(0, 0, 2), set(0, 0, 20), set(0, 0, 21)}},
		"shrink":  {8, 200, []act{set(0, 0, 20), set(0, 0, 3), set(0, 0, 0), set(0, 0, 1)}},
		"replace": {8, 200, []act{set(0, 0, 5), set(0, 5, 5), set(0, 3, 5)}},
		"remove":  {8, 200, []act{set(0, 0, 5), set(1, 0, 5), remove(0), remove(1), set(0, 0, 2)}},
		"several frontends": {8, 200, []act{
			ports(0, 0, 2, "10.96.0.1:80"), ports(0, 0, 2, "10.96.0.1:80", "10.96.0.1:81", "[fd00:96::1]:80"),
			ports(0, 1, 3, "10.96.0.1:81", "[fd00:96::1]:80"), ports(0, 1, 3, "10.96.0.1:82"),
		}},
		"rename port":   {8, 200, []act{named(set(0, 0, 2), "http"), named(set(0, 0, 2), "web"), named(set(0, 0, 3), "grpc")}},
		"other service": {8, 200, []act{ports(0, 0, 2, "[fd00:96::9]:80"), ports(1, 5, 3, "[fd00:96::9]:80"), ports(0, 0, 1, "[fd00:96::9]:80")}},
		"number reuse":  {2, 100, []act{set(0, 0, 2), remove(0), tooMuch(set(1, 0, 2)), grace, set(1, 0, 2), remove(1), grace, set(2, 4, 4)}},
		"region reuse": {8, 1 + 12, []act{
			set(0, 0, 5), set(0, 5, 5), tooMuch(set(0, 0, 4)), grace, set(0, 0, 4), grace, set(0, 6, 5), grace, set(0, 7, 2),
		}},
		"compaction": {20, 1 + 4*8, []act{
			set(0, 0, 3), set(1, 0, 3), set(2, 0, 3), set(3, 0, 3), set(4, 0, 3), set(5, 0, 3), set(6, 0, 3), set(7, 0, 3),
			remove(0), remove(2), remove(4), grace, tooMuch(set(8, 0, 11)), compact(2), grace, compact(9), grace, set(8, 0, 11),
		}},
		"full maps": {4, 1 + 16, []act{
			set(0, 0, 3), set(1, 0, 3), tooMuch(set(2, 0, 9)), set(2, 0, 3), tooMuch(set(3, 0, 1)), remove(1), grace, set(3, 0, 3),
		}},
	}
}

// writer goes through acts on maps that may end it.
type writer struct {
	kernel        *mortal
	r             *datapath.Reconciler
	before, after world // around the act that is under way
	moves         update
}

func newWriter(mem *datapath.Memory, w world, points int) *writer {
	k := &mortal{Memory: mem, left: points, used: map[uint32]bool{}}
	d, _ := mem.Dump()
	for _, f := range d.Frontends {
		k.used[f.ID] = true
	}
	return &writer{kernel: k, r: datapath.New(k), before: w, after: w}
}

// run returns false if the writer was killed.
func (w *writer) run(do func() error) (alive bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			if _, mine := p.(killed); !mine {
				panic(p)
			}
			alive = false
		}
	}()
	return true, do()
}

func (w *writer) do(a act) error {
	switch {
	case a.grace:
		if ticket, waiting := w.r.Quarantined(); waiting {
			w.kernel.Grace()
			w.r.Release(ticket)
		}
	case a.compact > 0:
		w.r.Compact(a.compact)
	default:
		return w.set(*a.set, a.full)
	}
	return nil
}

func (w *writer) set(u update, full bool) error {
	if !full {
		w.after, w.moves = w.before.clone(), u
		w.after.set(u)
	}
	_, err := w.r.Set(u.service, u.tables)
	var capacity *datapath.CapacityError
	if full && errors.As(err, &capacity) {
		return nil
	}
	if full || err != nil {
		return fmt.Errorf("set %s, which fits: %v: %v", u.service, !full, err)
	}
	w.before = w.after
	return nil
}

func (w *writer) all(acts []act) func() error {
	return func() error {
		for _, a := range acts {
			if err := w.do(a); err != nil {
				return err
			}
		}
		return nil
	}
}

// recovery is the next life: it reads back and sets what is wanted.
func (w *writer) recovery(want world) func() error {
	return func() error {
		w.kernel.Grace()
		loaded, err := w.r.Load()
		if err != nil || len(loaded.Repairs) > 0 {
			return fmt.Errorf("load: %v, repairs %v", err, loaded.Repairs)
		}
		for i := range 10 {
			name := serviceName(i)
			if err := w.set(update{name, want[name]}, false); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestKilledAtEveryPoint ends the writer at every point of every scenario, and
// the life after it at every point of its recovery. What programs see is at each
// of these moments complete, and old or new; the last life makes the maps equal
// to what is wanted, rests, and has lost no number and no record.
func TestKilledAtEveryPoint(t *testing.T) {
	for name, s := range scenarios() {
		t.Run(name, func(t *testing.T) {
			points := 0
			for alive := false; !alive; points++ {
				first := newWriter(newMemory(s.frontends, s.records), world{}, points)
				var err error
				if alive, err = first.run(first.all(s.acts)); err != nil {
					t.Fatalf("point %d: %v", points, err)
				}
				if alive {
					first.finish(t, s.acts)
					continue
				}
				observe(t, first.kernel.Memory, first.before, first.after, first.moves)
				killRecovery(t, s.frontends, s.records, s.acts, points)
			}
			t.Logf("%d points", points)
			if points < 20 {
				t.Errorf("only %d points", points)
			}
		})
	}
}

// killRecovery repeats a death at a point and ends the next life at every point.
func killRecovery(t *testing.T, frontends, records uint32, acts []act, points int) {
	t.Helper()
	for n, alive := 0, false; !alive; n++ {
		first := newWriter(newMemory(frontends, records), world{}, points)
		_, _ = first.run(first.all(acts))
		second := newWriter(first.kernel.Memory, first.seen(t), n)
		var err error
		if alive, err = second.run(second.recovery(first.before)); err != nil {
			t.Fatalf("killed at %d and %d: %v", points, n, err)
		}
		if !alive {
			observe(t, second.kernel.Memory, second.before, second.after, second.moves)
			second = newWriter(second.kernel.Memory, second.seen(t), -1)
			if _, err := second.run(second.recovery(first.before)); err != nil {
				t.Fatalf("killed at %d and %d: %v", points, n, err)
			}
		}
		second.settled(t, first.before)
	}
}

// seen is the world as the maps tell it, with each frontend as it is: old or new.
func (w *writer) seen(t *testing.T) world {
	t.Helper()
	now := byKey(have(t, w.kernel.Memory))
	out := world{}
	for _, from := range []world{w.before, w.after} {
		for name, tables := range from {
			for _, table := range tables {
				for k, text := range byKey(datapath.Want([]lb.FrontendTable{table})) {
					if now[k] == text {
						out.adopt(name, table)
					}
				}
			}
		}
	}
	return out
}

// adopt adds a table, in the place of one of the same frontend.
func (w world) adopt(name lb.ServiceName, table lb.FrontendTable) {
	for other, tables := range w {
		var left []lb.FrontendTable
		for _, t := range tables {
			if t.Frontend.Addr != table.Frontend.Addr {
				left = append(left, t)
			}
		}
		w[other] = left
	}
	w[name] = append(w[name], table)
}

// finish checks a life that nothing ended.
func (w *writer) finish(t *testing.T, acts []act) {
	t.Helper()
	want := world{}
	for _, a := range acts {
		if a.set != nil && !a.full {
			want.set(*a.set)
		}
	}
	w.settled(t, want)
}

// settled checks that the maps are what is wanted, that asking again writes
// nothing, and that nothing has leaked.
func (w *writer) settled(t *testing.T, wanted world) {
	t.Helper()
	checkSound(t, w.kernel.Memory)
	if got := have(t, w.kernel.Memory); got != want(wanted) {
		t.Fatalf("the maps hold\n%s\nwant\n%s", got, want(wanted))
	}
	for name, tables := range wanted {
		if report, err := w.r.Set(name, tables); err != nil || report.Changed() {
			t.Fatalf("not at rest: %+v %v", report, err)
		}
	}
	must(datapath.Report{}, w.do(grace))
	u, c := w.r.Usage(), w.kernel.Capacity()
	if u.Frontends != uint32(len(wanted.all())) || u.Frontends+u.FreeFrontends+1 != c.Frontends || u.Records+u.FreeRecords+1 != c.Records {
		t.Fatalf("leaks: %+v of %+v", u, c)
	}
}
