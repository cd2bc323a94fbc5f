package identity_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/identity"
	"github.com/clustermesh/clustermesh/kvstore/cost"
	"pgregory.net/rapid"
)

func config(size uint32) identity.Config {
	return identity.Config{First: 65537, Last: 65536 + size, Quarantine: 60}
}

func labelSet() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		return fmt.Sprintf("k8s:app=a%d;", rapid.IntRange(0, 40).Draw(t, "app"))
	})
}

// model is the dumb oracle: who has which number, and what rests since when.
type model struct {
	held    map[string]uint32
	resting map[uint32]string
	since   map[uint32]int64
	now     int64
}

func TestTableAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint32Range(1, 50).Draw(t, "size")
		table := identity.New(config(size))
		m := &model{held: map[string]uint32{}, resting: map[uint32]string{}, since: map[uint32]int64{}, now: 1000}
		table.Advance(m.now)
		var journal []byte
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) { m.acquire(t, table, labelSet().Draw(t, "labels"), size) },
			"release": func(t *rapid.T) {
				labels := labelSet().Draw(t, "labels")
				table.Release(labels)
				m.release(labels)
			},
			"advance": func(t *rapid.T) {
				m.advance(rapid.Int64Range(0, 90).Draw(t, "seconds"))
				table.Advance(m.now)
			},
			"restart": func(t *rapid.T) {
				journal = append(journal, identity.Encode(table.TakeChanges())...)
				entries, bad := identity.Decode(journal)
				if bad != 0 {
					t.Fatalf("%d bad journal lines", bad)
				}
				table = identity.New(config(size))
				table.Restore(entries, m.now)
				m.restart(t, table)
			},
			"": func(t *rapid.T) { m.check(t, table, size) },
		})
	})
}

func (m *model) acquire(t *rapid.T, table *identity.Table, labels string, size uint32) {
	number, ok := table.Acquire(labels)
	want, held := m.held[labels]
	if held && (!ok || number != want) {
		t.Fatalf("%s moved from %d to %d, %v", labels, want, number, ok)
	}
	full := len(m.held)+len(m.resting) >= int(size)
	if !ok && (!full || slices.Contains(values(m.resting), labels)) {
		t.Fatalf("no number for %s although there is one", labels)
	}
	if ok && !held {
		m.claim(t, labels, number, size)
	}
}

func (m *model) claim(t *rapid.T, labels string, number, size uint32) {
	if number < 65537 || number > 65536+size {
		t.Fatalf("number %d is outside the range", number)
	}
	if owner, rests := m.resting[number]; rests && owner != labels {
		t.Fatalf("%d went to %s while it rested for %s", number, labels, owner)
	}
	for other, n := range m.held {
		if n == number {
			t.Fatalf("%d belongs to %s and %s", number, other, labels)
		}
	}
	for n, owner := range m.resting {
		if owner == labels && n != number {
			t.Fatalf("%s got %d although %d rested for it", labels, number, n)
		}
	}
	delete(m.resting, number)
	m.held[labels] = number
}

func (m *model) release(labels string) {
	if number, ok := m.held[labels]; ok {
		delete(m.held, labels)
		m.resting[number], m.since[number] = labels, m.now
	}
}

func (m *model) advance(seconds int64) {
	m.now += seconds
	for number := range m.resting {
		if m.since[number]+60 <= m.now {
			delete(m.resting, number)
		}
	}
}

// restart: everything that was held comes back to its owner when asked for.
func (m *model) restart(t *rapid.T, table *identity.Table) {
	for labels, number := range m.held {
		if got, ok := table.Acquire(labels); !ok || got != number {
			t.Fatalf("after a restart %s has %d, %v instead of %d", labels, got, ok, number)
		}
	}
}

func (m *model) check(t *rapid.T, table *identity.Table, size uint32) {
	want := identity.Stats{Used: len(m.held), Resting: len(m.resting), Capacity: int(size)}
	if got := table.Stats(); got != want {
		t.Fatalf("stats %+v, want %+v", got, want)
	}
}

func values(m map[uint32]string) []string {
	var out []string
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// A table filled in sorted order depends on the set alone, however the set
// came to be listed; and losing the journal changes only colliding labels.
func TestFilledTableDependsOnSetAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.SliceOfNDistinct(labelSet(), 1, 30, rapid.ID[string]).Draw(t, "set")
		size := rapid.Uint32Range(40, 200).Draw(t, "size")
		shuffled := rapid.Permutation(set).Draw(t, "order")
		a, b := fill(set, size), fill(shuffled, size)
		if !slices.Equal(a, b) {
			t.Fatalf("two fills differ:\n%v\n%v", a, b)
		}
	})
}

func fill(set []string, size uint32) []identity.Entry {
	table := identity.New(config(size))
	for _, labels := range slices.Sorted(slices.Values(set)) {
		table.Acquire(labels)
	}
	return table.Entries()
}

func TestJournalSurvivesDamage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := rapid.SliceOfN(rapid.String(), 1, 8).Draw(t, "labels")
		var entries []identity.Entry
		for i, text := range labels {
			entries = append(entries, identity.Entry{Number: uint32(65537 + i), Released: int64(i), Labels: text})
		}
		data := identity.Encode(entries)
		cut := rapid.IntRange(0, len(data)).Draw(t, "cut")
		got, _ := identity.Decode(data[:cut])
		if whole := strings.Count(string(data[:cut]), "\n"); !slices.Equal(got, entries[:whole]) {
			t.Fatalf("decoded %v, want the first %d of %v", got, whole, entries)
		}
	})
}

func TestDamagedLineIsCounted(t *testing.T) {
	data := identity.Encode([]identity.Entry{{Number: 65537, Labels: "k8s:a=b;"}, {Number: 65538, Labels: "k8s:a=c;"}})
	data[12]++
	entries, bad := identity.Decode(data)
	if bad != 1 || len(entries) != 1 || entries[0].Number != 65538 {
		t.Fatalf("got %v and %d bad lines", entries, bad)
	}
}

// Numbers are part of the contract between releases: a change of the hash
// would renumber every pod in every mesh.
func TestNumbersAreFrozen(t *testing.T) {
	table := identity.New(identity.Config{First: 65537, Last: 131071})
	got, _ := table.Acquire("k8s:app=web;k8s:io.cilium.k8s.policy.cluster=east;k8s:io.kubernetes.pod.namespace=shop;")
	if want := uint32(67583); got != want {
		t.Fatalf("number %d, want %d", got, want)
	}
}

func TestConfigValidateNamesEveryProblem(t *testing.T) {
	err := identity.Config{First: 0, Last: 0, Quarantine: -1}.Validate()
	for _, want := range []string{"first is 0", "quarantine -1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
	if err := (identity.Config{First: 9, Last: 3}).Validate(); err == nil || !strings.Contains(err.Error(), "last 3") {
		t.Errorf("an empty range passed: %v", err)
	}
	if err := config(3).Validate(); err != nil {
		t.Errorf("a good range failed: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(identity.Encode([]identity.Entry{{Number: 65537, Released: 5, Labels: "k8s:a=b;"}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var entries []identity.Entry
		cost.Bounded(t, len(data), 0, func() { entries, _ = identity.Decode(data) })
		table := identity.New(config(8))
		table.Restore(entries, 100)
		if s := table.Stats(); s.Used != 0 || s.Resting > 8 {
			t.Fatalf("stats %+v after a restore", s)
		}
	})
}
