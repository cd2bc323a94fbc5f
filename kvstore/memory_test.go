package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/kvstore"
)

func TestPrefixEnd(t *testing.T) {
	for prefix, want := range map[string]string{"a/": "a0", "a": "b", "a\xff": "b", "\xff\xff": "\x00", "": "\x00", "a\xfe\xff": "a\xff"} {
		if got := kvstore.PrefixEnd(prefix); got != want {
			t.Errorf("end of %q: got %q, want %q", prefix, got, want)
		}
	}
}

// TestMemoryAgainstSnapshots compares every readable revision with a copy of
// the whole content taken when it was current.
func TestMemoryAgainstSnapshots(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m, now := kvstore.NewMemory(), map[string]string{}
		snapshots := map[int64]map[string]string{1: {}}
		compacted := int64(0)
		for i := range rapid.IntRange(0, 30).Draw(rt, "steps") {
			key := fmt.Sprint(rapid.IntRange(0, 4).Draw(rt, "key"))
			op := kvstore.Op{Key: key, Value: fmt.Append(nil, i), Delete: rapid.Bool().Draw(rt, "delete")}
			if err := m.Apply(context.Background(), []kvstore.Op{op}); err != nil {
				rt.Fatal(err)
			}
			if now[key] = string(op.Value); op.Delete {
				delete(now, key)
			}
			snapshots[m.Revision()] = maps.Clone(now)
			if rapid.IntRange(0, 9).Draw(rt, "compact") == 0 {
				compacted = max(compacted, m.Revision()-int64(rapid.IntRange(0, 5).Draw(rt, "back")))
				m.Compact(compacted)
			}
		}
		for revision, want := range snapshots {
			checkRevision(rt, m, revision, compacted, want)
		}
	})
}

func checkRevision(rt *rapid.T, m *kvstore.Memory, revision, compacted int64, want map[string]string) {
	r, err := m.Range(context.Background(), "\x00", "\x00", 0, revision)
	if revision < compacted {
		if !errors.Is(err, kvstore.ErrCompacted) {
			rt.Fatalf("revision %d, compacted %d: %v", revision, compacted, err)
		}
		return
	}
	got := map[string]string{}
	for _, kv := range r.KVs {
		got[kv.Key] = string(kv.Value)
	}
	if err != nil || !maps.Equal(got, want) || !slices.IsSortedFunc(r.KVs, func(a, b kvstore.KV) int { return slices.Compare([]byte(a.Key), []byte(b.Key)) }) {
		rt.Fatalf("revision %d: got %v, want %v (%v)", revision, r.KVs, want, err)
	}
}

func TestMemoryFaults(t *testing.T) {
	m, ctx := kvstore.NewMemory(), t.Context()
	put := func(v string) error { return m.Apply(ctx, []kvstore.Op{{Key: "k", Value: []byte(v)}}) }
	m.FailNext(kvstore.FaultApply, 2)
	if a, b, c := put("1"), put("2"), put("3"); !errors.Is(a, kvstore.ErrBroken) || !errors.Is(b, kvstore.ErrBroken) || c != nil || value(m, "k") != "3" {
		t.Fatalf("%v, %v, %v, value %q", a, b, c, value(m, "k"))
	}
	m.FailNext(kvstore.FaultApplied, 1)
	if err := put("4"); !errors.Is(err, kvstore.ErrBroken) || value(m, "k") != "4" {
		t.Fatalf("%v, value %q", err, value(m, "k"))
	}
	life := func() uint64 { r, _ := m.Range(ctx, "k", "", 1, 0); return r.Life }
	before := life()
	err := m.Watch(ctx, "k", "", 0, func(kvstore.Changes) error {
		m.NewLife()
		return nil
	})
	if !errors.Is(err, kvstore.ErrBroken) || life() == before || m.Revision() != 1 || value(m, "k") != "" {
		t.Fatalf("new life: %v, revision %d", err, m.Revision())
	}
	cause := errors.New("cause")
	err = m.Watch(ctx, "k", "", 0, func(kvstore.Changes) error {
		m.BreakWatches(cause)
		return nil
	})
	if !errors.Is(err, cause) {
		t.Fatal(err)
	}
	if _, err := m.Range(ctx, "k", "", 0, 99); !errors.Is(err, kvstore.ErrLifeChanged) {
		t.Fatalf("a revision to come: %v", err)
	}
}
