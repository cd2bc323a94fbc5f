package datapath_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// machine is a reconciler, its maps and the oracle.
type machine struct {
	mem   *datapath.Memory
	r     *datapath.Reconciler
	world world
}

// TestStateMachine: any sequence of sets, RCU periods, restarts, failing map
// operations and compactions leaves the maps equal to the oracle, sound after
// every single write, and at rest when asked again.
func TestStateMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := newMemory(rapid.Uint32Range(1, 16).Draw(t, "frontends"), rapid.Uint32Range(0, 700).Draw(t, "records"))
		m := &machine{mem: mem, r: datapath.New(mem), world: world{}}
		t.Repeat(map[string]func(*rapid.T){
			"set":     m.set,
			"again":   m.again,
			"grace":   func(*rapid.T) { m.grace() },
			"restart": m.restart,
			"fail":    m.fail,
			"compact": m.compact,
			"cluster": m.cluster,
			"":        m.check,
		})
	})
}

func (m *machine) set(t *rapid.T) {
	u := genUpdate(t, true)
	before, after := m.world.clone(), m.world.clone()
	after.set(u)
	m.mem.Written = func() { observe(t, m.mem, before, after, u) }
	defer func() { m.mem.Written = nil }()
	writes := m.mem.Writes()
	report, err := m.r.Set(u.service, u.tables)
	var full *datapath.CapacityError
	switch {
	case errors.As(err, &full):
		if m.mem.Writes() != writes || full.Need <= full.Free && !full.Fragmented {
			t.Fatalf("%d writes after %v (%+v)", m.mem.Writes()-writes, err, full)
		}
		return
	case err != nil:
		t.Fatalf("%v", err)
	case report.Writes != m.mem.Writes()-writes:
		t.Fatalf("reported %d writes, did %d", report.Writes, m.mem.Writes()-writes)
	}
	m.world = after
}

func (m *machine) again(t *rapid.T) {
	writes := m.mem.Writes()
	for name, tables := range m.world {
		if report, err := m.r.Set(name, tables); err != nil || report.Changed() {
			t.Fatalf("setting %s again: %+v, %v", name, report, err)
		}
	}
	if m.mem.Writes() != writes {
		t.Fatalf("%d writes for equal tables", m.mem.Writes()-writes)
	}
}

func (m *machine) grace() {
	if ticket, waiting := m.r.Quarantined(); waiting {
		m.mem.Grace()
		m.r.Release(ticket)
	}
}

func (m *machine) restart(t *rapid.T) {
	m.mem.Grace()
	m.r = datapath.New(m.mem)
	writes := m.mem.Writes()
	loaded, err := m.r.Load()
	if err != nil || len(loaded.Repairs) > 0 || m.mem.Writes() != writes {
		t.Fatalf("load: %v, repairs %v, %d writes", err, loaded.Repairs, m.mem.Writes()-writes)
	}
	if len(loaded.Frontends) != len(m.world.all()) {
		t.Fatalf("loaded %d frontends, want %d", len(loaded.Frontends), len(m.world.all()))
	}
}

// fail lets one map operation of a set fail: the service stays as it was or
// becomes what it shall, and a retry finishes.
func (m *machine) fail(t *rapid.T) {
	u := genUpdate(t, false)
	broken := errors.New("no memory")
	left := rapid.IntRange(0, 3).Draw(t, "operations before the failure")
	m.mem.Fail = func(string, layout.FrontendKey) error {
		if left--; left < 0 {
			return broken
		}
		return nil
	}
	_, err := m.r.Set(u.service, u.tables)
	m.mem.Fail = nil
	var full *datapath.CapacityError
	if errors.As(err, &full) {
		return
	}
	if err != nil && !errors.Is(err, broken) {
		t.Fatalf("%v", err)
	}
	checkSound(t, m.mem)
	m.grace()
	if _, err := m.r.Set(u.service, u.tables); errors.As(err, &full) {
		// What the failed attempt left behind may fill the maps; the old tables fit.
		if _, err := m.r.Set(u.service, nil); err != nil {
			t.Fatalf("%v", err)
		}
		m.world.set(update{service: u.service})
		return
	} else if err != nil {
		t.Fatalf("retry: %v", err)
	}
	m.world.set(u)
}

func (m *machine) compact(t *rapid.T) {
	before := want(m.world)
	m.mem.Written = func() {
		checkSound(t, m.mem)
		if d, _ := m.mem.Dump(); datapath.FormatDump(d) != before {
			t.Fatalf("compaction changed what readers see")
		}
	}
	m.r.Compact(rapid.IntRange(0, 3).Draw(t, "limit"))
	m.mem.Written = nil
}

func (m *machine) cluster(t *rapid.T) {
	id := rapid.Uint16Range(1, 3).Draw(t, "id")
	state := rapid.SampledFrom([]uint32{layout.ClusterUp, layout.ClusterWithdrawn}).Draw(t, "state")
	m.r.SetCluster(id, "c"+string('0'+rune(id)), state)
	if r := m.r.SetCluster(id, "c"+string('0'+rune(id)), state); r.Changed() {
		t.Fatalf("equal record written again")
	}
}

func (m *machine) check(t *rapid.T) {
	checkSound(t, m.mem)
	d, _ := m.mem.Dump()
	if got, want := datapath.FormatDump(d), want(m.world); got != want {
		t.Fatalf("maps:\n%s\nwant:\n%s", got, want)
	}
	u := m.r.Usage()
	if u.Frontends != uint32(len(d.Frontends)) || u.Frontends+u.FreeFrontends+u.QuarantinedFrontends+1 != m.mem.Capacity().Frontends {
		t.Fatalf("numbers leak: %+v of %d", u, m.mem.Capacity().Frontends)
	}
	if records := m.mem.Capacity().Records; records > 0 && u.Records+u.FreeRecords+u.QuarantinedRecords+1 != records {
		t.Fatalf("records leak: %+v of %d", u, records)
	}
}

// killed is what ends a writer in the middle of its work.
type killed struct{}

// TestKilledAtEveryWrite kills the writer after each single write of a set. The
// maps must be sound, every frontend old or new, and a new life must converge.
func TestKilledAtEveryWrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) update { return genUpdate(t, true) }), 0, 4).Draw(t, "history")
		last := genUpdate(t, true)
		_, _, writes := replay(history, last, 0)
		for n := 1; n <= writes; n++ {
			mem, before, _ := replay(history, last, n)
			after := before.clone()
			after.set(last)
			observe(t, mem, before, after, last)
			converge(t, mem, after)
		}
	})
}

// replay applies history and then last, which is killed after its nth write; 0
// lets it live. It returns the maps, the world before last, and last's writes.
func replay(history []update, last update, n int) (*datapath.Memory, world, int) {
	mem, w := newMemory(32, 4000), world{}
	r := datapath.New(mem)
	for _, u := range history {
		must(r.Set(u.service, u.tables))
		w.set(u)
	}
	start := mem.Writes()
	mem.Written = func() {
		if n > 0 && mem.Writes() == start+n {
			panic(killed{})
		}
	}
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(killed{}) {
				panic(p)
			}
		}()
		must(r.Set(last.service, last.tables))
	}()
	mem.Written = nil
	return mem, w, mem.Writes() - start
}

func must(_ datapath.Report, err error) {
	if err != nil {
		panic(err)
	}
}

// converge starts a new life on mem and sets everything in w.
func converge(t *rapid.T, mem *datapath.Memory, w world) {
	mem.Grace()
	r := datapath.New(mem)
	loaded, err := r.Load()
	if err != nil || len(loaded.Repairs) > 0 {
		t.Fatalf("load after a kill: %v, repairs %v", err, loaded.Repairs)
	}
	for name, tables := range w {
		must(r.Set(name, tables))
	}
	checkSound(t, mem)
	d, _ := mem.Dump()
	if got := datapath.FormatDump(d); got != want(w) {
		t.Fatalf("after restart:\n%s\nwant:\n%s", got, want(w))
	}
	for name, tables := range w {
		if report, err := r.Set(name, tables); err != nil || report.Changed() {
			t.Fatalf("not at rest: %+v %v", report, err)
		}
	}
}

// TestRestoredIsWhatWasSet: tables, through the maps, give back everything but
// names and zones, in order.
func TestRestoredIsWhatWasSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := genUpdate(t, true)
		mem := newMemory(8, 1000)
		must(datapath.New(mem).Set(u.service, u.tables))
		loaded, err := datapath.New(mem).Load()
		if err != nil {
			t.Fatalf("%v", err)
		}
		var back []lb.FrontendTable
		selected := 0
		for i, r := range loaded.Frontends {
			back = append(back, tableOf(r))
			for _, b := range u.tables[i].Backends {
				if b.Selected {
					selected++
				}
			}
			s := loaded.Selections[i]
			if s.SessionAffinity != u.tables[i].SessionAffinity || s.Consistent != (u.tables[i].Consistent && selected > 0) {
				t.Fatalf("restored %+v of %s", s, u.tables[i])
			}
			selected = 0
		}
		stripped := strip(u.tables)
		if got, want := lb.Format(back), lb.Format(stripped); got != want {
			t.Fatalf("restored:\n%s\nwant:\n%s", got, want)
		}
	})
}

func tableOf(r datapath.Restored) lb.FrontendTable {
	t := lb.FrontendTable{Service: r.Service, Frontend: r.Frontend, Affinity: r.Affinity}
	for _, b := range r.Backends {
		t.Backends = append(t.Backends, lb.Choice{Backend: b})
	}
	return t
}

func strip(tables []lb.FrontendTable) []lb.FrontendTable {
	var out []lb.FrontendTable
	for _, t := range tables {
		s := lb.FrontendTable{Service: t.Service, Frontend: t.Frontend, Affinity: t.Affinity}
		for _, c := range t.Backends {
			c.Names, c.Zone = nil, ""
			s.Backends = append(s.Backends, lb.Choice{Backend: c.Backend})
		}
		out = append(out, s)
	}
	return out
}

// TestBadTablesChangeNothing: what cannot be written is refused before the
// first write, with the offending value and the reason.
func TestBadTablesChangeNothing(t *testing.T) {
	good := lb.FrontendTable{Service: serviceName(0), Frontend: frontendAt("10.96.0.1:80")}
	foreign, long := good, good
	foreign.Service = serviceName(1)
	long.Frontend = frontendAt("10.96.0.2:80")
	long.Frontend.PortName = strings.Repeat("x", 64)
	many := good
	many.Backends = make([]lb.Choice, 1<<16)
	for i := range many.Backends {
		many.Backends[i] = lb.Choice{Backend: lb.Backend{Addr: frontendAt("10.0.0.1:1").Addr}, Selected: true}
	}
	for want, tables := range map[string][]lb.FrontendTable{
		"belongs to":        {good, foreign},
		"at most 63 bytes":  {good, long},
		"same frontend":     {good, good},
		"at most 65535 fit": {many},
	} {
		mem := newMemory(8, 1000)
		_, err := datapath.New(mem).Set(serviceName(0), tables)
		if err == nil || !strings.Contains(err.Error(), want) || mem.Writes() != 0 {
			t.Errorf("error %v, want %q; %d writes", err, want, mem.Writes())
		}
	}
}
