package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore"
)

// canned is a Reader of prepared replies.
type canned struct {
	pages   []kvstore.Range
	changes []kvstore.Changes
	asked   []string // what was asked for
}

func (c *canned) Range(_ context.Context, start, _ string, limit, revision int64) (kvstore.Range, error) {
	c.asked = append(c.asked, fmt.Sprintf("%q limit %d at %d", start, limit, revision))
	if len(c.pages) == 0 {
		return kvstore.Range{}, errStop
	}
	page := c.pages[0]
	c.pages = c.pages[1:]
	return page, nil
}

func (c *canned) Watch(_ context.Context, _, _ string, _ int64, fn func(kvstore.Changes) error) error {
	for _, change := range c.changes {
		if err := fn(change); err != nil {
			return err
		}
	}
	return errStop
}

func kvs(pairs ...string) (out []kvstore.KV) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, kvstore.KV{Key: pairs[i], Value: []byte(pairs[i+1]), ModRevision: 5})
	}
	return out
}

func page(more bool, pairs ...string) kvstore.Range {
	return kvstore.Range{KVs: kvs(pairs...), Revision: 9, Life: 1, More: more}
}

func change(key, value string, revision int64) kvstore.Change {
	return kvstore.Change{KV: kvstore.KV{Key: key, Value: []byte(value), ModRevision: revision}}
}

func TestWatcherRefusesWhatNoStoreAnswers(t *testing.T) {
	empty := []kvstore.Range{page(false)}
	otherLife, older := page(false), page(false, "p/b", "1")
	otherLife.Life, older.Revision = 2, 8
	tests := []struct {
		name   string
		reader canned
		want   string
		is     error
	}{
		{"endless empty pages", canned{pages: []kvstore.Range{page(true)}}, "announces more", nil},
		{"the same page again", canned{pages: []kvstore.Range{page(true, "p/a", "1"), page(true, "p/a", "1")}}, "out of place", nil},
		{"unordered page", canned{pages: []kvstore.Range{page(false, "p/b", "1", "p/a", "1")}}, "out of place", nil},
		{"key twice", canned{pages: []kvstore.Range{page(false, "p/b", "1", "p/b", "1")}}, "out of place", nil},
		{"foreign key behind", canned{pages: []kvstore.Range{page(false, "q/a", "1")}}, "out of place", nil},
		{"foreign key before", canned{pages: []kvstore.Range{page(false, "o/a", "1")}}, "out of place", nil},
		{"life changes in the list", canned{pages: []kvstore.Range{page(true, "p/a", "1"), otherLife}}, "cluster id 2 after 1", kvstore.ErrLifeChanged},
		{"revision goes back in the list", canned{pages: []kvstore.Range{page(true, "p/a", "1"), older}}, "revision 8 after 9", kvstore.ErrLifeChanged},
		{"life changes in the watch", canned{pages: empty, changes: []kvstore.Changes{{Revision: 10, Life: 2}}}, "cluster id", kvstore.ErrLifeChanged},
		{"store behind the list", canned{pages: empty, changes: []kvstore.Changes{{Revision: 8, Life: 1}}}, "revision 8 after 9", kvstore.ErrLifeChanged},
		{"change from before the list", canned{pages: empty, changes: []kvstore.Changes{{Revision: 10, Life: 1, Changes: []kvstore.Change{change("p/a", "1", 9)}}}}, "revision 9", nil},
		{"unordered changes", canned{pages: empty, changes: []kvstore.Changes{{Revision: 12, Life: 1, Changes: []kvstore.Change{change("p/a", "1", 12), change("p/a", "2", 11)}}}}, "revision 11", nil},
		{"changes again", canned{pages: empty, changes: []kvstore.Changes{{Revision: 12, Life: 1}, {Revision: 13, Life: 1, Changes: []kvstore.Change{change("p/a", "1", 12)}}}}, "revision 12", nil},
		{"foreign change", canned{pages: empty, changes: []kvstore.Changes{{Revision: 12, Life: 1, Changes: []kvstore.Change{change("q/a", "1", 12)}}}}, "not under p/", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/"})
			err := w.Follow(t.Context(), &test.reader, func(u kvstore.Update) error {
				for _, c := range u.Changes {
					if c.Deleted || !strings.HasPrefix(c.Key, "p/") {
						t.Errorf("delivered %+v", c)
					}
				}
				return nil
			})
			if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
				t.Fatalf("got %v, want %q and %v", err, test.want, test.is)
			}
		})
	}
}

func TestWatcherQuotas(t *testing.T) {
	tests := []struct {
		name  string
		cfg   kvstore.WatcherConfig
		limit string
	}{
		{"keys", kvstore.WatcherConfig{MaxKeys: 3}, "MaxKeys"},
		{"bytes", kvstore.WatcherConfig{MaxBytes: 3 * 6}, "MaxBytes"},
		{"value", kvstore.WatcherConfig{MaxValueBytes: 3}, "MaxValueBytes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Prefix = "p/"
			w, have := kvstore.NewWatcher(test.cfg), map[string]string{}
			sink := func(u kvstore.Update) error {
				for _, c := range u.Changes {
					if have[c.Key] = string(c.Value); c.Deleted {
						delete(have, c.Key)
					}
				}
				return nil
			}
			fits := &canned{pages: []kvstore.Range{page(false, "p/a", "123", "p/b", "123", "p/c", "123")}}
			if err := w.Follow(t.Context(), fits, sink); !errors.Is(err, errStop) || len(have) != 3 {
				t.Fatalf("what fits: %v, %d keys", err, len(have))
			}
			// Other keys of the same number replace them, however often.
			fits = &canned{pages: []kvstore.Range{page(true, "p/d", "123", "p/e", "123"), page(false, "p/f", "123")}}
			if err := w.Follow(t.Context(), fits, sink); !errors.Is(err, errStop) || len(have) != 3 {
				t.Fatalf("what fits in its place: %v, %d keys", err, len(have))
			}
			over := &canned{
				pages:   []kvstore.Range{page(false, "p/d", "123", "p/e", "123", "p/f", "123")},
				changes: []kvstore.Changes{{Revision: 10, Life: 1, Changes: []kvstore.Change{change("p/d", "1", 10), change("p/g", "1234567", 10)}}},
			}
			err := w.Follow(t.Context(), over, sink)
			var quota *kvstore.QuotaError
			if !errors.As(err, &quota) || quota.Limit != test.limit || !strings.Contains(err.Error(), "raise the limit") {
				t.Fatalf("what does not fit: %v", err)
			}
			if len(have) != 3 || have["p/d"] != "123" || w.Len() != 3 {
				t.Fatalf("the sink has %v, %d known", have, w.Len())
			}
			big := &canned{pages: []kvstore.Range{page(false, "p/a", "1234", "p/b", "1234", "p/c", "1234", "p/d", "1234")}}
			if err := w.Follow(t.Context(), big, sink); !errors.As(err, &quota) || len(have) != 3 {
				t.Fatalf("a list that does not fit: %v, %d keys", err, len(have))
			}
		})
	}
}

func TestWatcherQuotaForgetsWhatTheSinkRefused(t *testing.T) {
	r := func() *canned {
		return &canned{
			pages:   []kvstore.Range{page(false, "p/a", "1")},
			changes: []kvstore.Changes{{Revision: 10, Life: 1, Changes: []kvstore.Change{change("p/b", "1", 10)}}},
		}
	}
	w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/", MaxKeys: 2})
	for range 5 {
		err := w.Follow(t.Context(), r(), func(u kvstore.Update) error {
			if !u.Synced {
				return errRefused
			}
			return nil
		})
		if !errors.Is(err, errRefused) {
			t.Fatal(err)
		}
	}
	many := r()
	for i := range int64(5) { // in one session too: replaced, deleted, put again
		many.changes = append(many.changes, kvstore.Changes{Revision: 11 + i, Life: 1, Changes: []kvstore.Change{
			change("p/b", fmt.Sprint(i), 11+i), {KV: change("p/b", "", 11+i).KV, Deleted: true}, change("p/b", "x", 11+i)}})
	}
	if err := w.Follow(t.Context(), many, nothing); !errors.Is(err, errStop) || w.Len() != 2 {
		t.Fatal(err)
	}
}

func TestWatcherSizesPagesByWeight(t *testing.T) {
	r := &canned{pages: []kvstore.Range{
		page(true, "p/a", "12345678", "p/b", "12345678"), // 11 bytes a key
		page(true, "p/c", strings.Repeat("x", 2000)),     // 2003 bytes
		page(true, "p/d", strings.Repeat("x", 97)),       // 100 bytes
	}}
	w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/", PageBytes: 10_000, PageSize: 700})
	if err := w.Follow(t.Context(), r, func(kvstore.Update) error { return nil }); !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	want := []string{`"p/" limit 500 at 0`, `"p/b\x00" limit 700 at 9`, `"p/c\x00" limit 4 at 9`, `"p/d\x00" limit 8 at 9`}
	if !slices.Equal(r.asked, want) {
		t.Fatalf("asked for\n%q\nwant\n%q", r.asked, want)
	}
}

func TestWatcherEndsASessionLostToCompaction(t *testing.T) {
	m := kvstore.NewMemory()
	ranges := 0
	m.SetFault(func(f kvstore.Fault) error {
		if f.Op == kvstore.FaultRange {
			if ranges++; ranges > 100 {
				t.Error("lists without end")
				return errStop
			}
		}
		if f.Op == kvstore.FaultWatch {
			return kvstore.ErrCompacted
		}
		return nil
	})
	err := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/"}).Follow(t.Context(), m, func(kvstore.Update) error { return nil })
	if !errors.Is(err, kvstore.ErrCompacted) {
		t.Fatal(err)
	}
}

func TestASinkMayReturnAnyError(t *testing.T) {
	m := kvstore.NewMemory()
	calls := 0
	err := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/"}).Follow(t.Context(), m, func(kvstore.Update) error {
		calls++
		return kvstore.ErrCompacted // of its own store
	})
	if calls != 1 || !errors.Is(err, kvstore.ErrCompacted) {
		t.Fatalf("%d calls, %v", calls, err)
	}
}

func TestConfigsValidate(t *testing.T) {
	for _, bad := range []interface{ Validate() error }{
		kvstore.WatcherConfig{}, kvstore.WatcherConfig{Prefix: "p/", MaxKeys: -1}, kvstore.WatcherConfig{Prefix: "p/", RetryMax: -1},
		kvstore.PublisherConfig{}, kvstore.PublisherConfig{Prefix: "p/", MaxOps: -1}, kvstore.PublisherConfig{Prefix: "p/", LifeCheck: -1},
	} {
		if bad.Validate() == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
	if err := errors.Join(kvstore.WatcherConfig{Prefix: "p/"}.Validate(), kvstore.PublisherConfig{Prefix: "p/"}.Validate()); err != nil {
		t.Error(err)
	}
}

// endless is a Reader whose listings bring keys never seen before and are never
// finished.
type endless struct{ next int }

func (e *endless) Range(_ context.Context, _, _ string, limit, _ int64) (kvstore.Range, error) {
	if e.next++; e.next%5 == 0 {
		return kvstore.Range{}, kvstore.ErrCompacted
	}
	out := kvstore.Range{Revision: 9, Life: 1, More: true}
	for i := range limit {
		out.KVs = append(out.KVs, kvstore.KV{Key: fmt.Sprintf("p/%09d-%06d", e.next, i), ModRevision: 5})
	}
	return out, nil
}

func (*endless) Watch(context.Context, string, string, int64, func(kvstore.Changes) error) error {
	return errStop
}

// TestUnfinishedListingsLeaveLittle lists what is never finished, over many
// sessions: what they leave is bounded, nothing that a complete listing had is
// taken away, and a complete listing is taken as ever.
func TestUnfinishedListingsLeaveLittle(t *testing.T) {
	const most = 5000
	w, has := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/", MaxKeys: most, PageSize: 500}), map[string]bool{}
	sink := func(u kvstore.Update) error {
		for _, c := range u.Changes {
			if has[c.Key] = true; c.Deleted {
				delete(has, c.Key)
			}
		}
		return nil
	}
	good := func(pairs ...string) error {
		return w.Follow(t.Context(), &canned{pages: []kvstore.Range{page(false, pairs...)}}, sink)
	}
	_ = good("p/a", "1", "p/b", "1")
	flood := &endless{}
	for range 50 {
		_ = w.Follow(t.Context(), flood, sink)
		if w.Len() > 2*most || len(has) != w.Len() || !has["p/a"] || !has["p/b"] {
			t.Fatalf("%d keys are known, the sink has %d, of those before %v and %v", w.Len(), len(has), has["p/a"], has["p/b"])
		}
	}
	if flood.next < 400 {
		t.Fatalf("only %d pages were asked for", flood.next)
	}
	_ = good("p/b", "2", "p/c", "1")
	if len(has) != 2 || !has["p/b"] || !has["p/c"] || w.Len() != 2 {
		t.Errorf("after a complete listing the sink has %v", has)
	}
}
