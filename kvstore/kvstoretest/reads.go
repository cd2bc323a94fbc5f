package kvstoretest

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/clustermesh/clustermesh/kvstore"
)

func testRangeEnds(f fixture) {
	f.apply(put("a", "1"), put("a/b", "2"), put("a0", "3"), put("b", "4"))
	f.equal("single key", f.text(f.read(f.Prefix+"a", "", 0, 0).KVs), []string{"a=1"})
	f.equal("absent single key", f.text(f.read(f.Prefix+"c", "", 0, 0).KVs), []string{})
	f.equal("prefix a/", f.text(f.read(f.Prefix+"a/", kvstore.PrefixEnd(f.Prefix+"a/"), 0, 0).KVs), []string{"a/b=2"})
	f.equal("prefix a", f.text(f.read(f.Prefix+"a", kvstore.PrefixEnd(f.Prefix+"a"), 0, 0).KVs), []string{"a=1", "a/b=2", "a0=3"})
	f.equal("half-open range", f.text(f.read(f.Prefix+"a/", f.Prefix+"b", 0, 0).KVs), []string{"a/b=2", "a0=3"})
	f.equal("everything", f.text(f.page("", 0, 0).KVs), []string{"a=1", "a/b=2", "a0=3", "b=4"})
}

func testPaging(f fixture) {
	var want []string
	for i := range 25 {
		f.apply(put(fmt.Sprintf("%02d", 24-i), "v"))
		want = append(want, fmt.Sprintf("%02d=v", i))
	}
	first := f.page("", 10, 0)
	f.apply(put("055", "late"), del("24"), put("00", "changed"))
	got, page := f.text(first.KVs), first
	for page.More {
		next := page.KVs[len(page.KVs)-1].Key[len(f.Prefix):] + "\x00"
		page = f.page(next, 10, first.Revision)
		if page.Revision < first.Revision || len(page.KVs) == 0 {
			f.t.Fatalf("page from %q has revision %d and %d keys, first had revision %d", next, page.Revision, len(page.KVs), first.Revision)
		}
		got = append(got, f.text(page.KVs)...)
	}
	f.equal("pages at one revision", got, want)
}

func testOldRevision(f fixture) {
	f.apply(put("a", "1"), put("b", "1"))
	old := f.page("", 0, 0)
	f.apply(put("a", "2"), del("b"), put("c", "1"))
	f.equal("old revision", f.text(f.page("", 0, old.Revision).KVs), []string{"a=1", "b=1"})
	f.equal("current revision", f.text(f.page("", 0, 0).KVs), []string{"a=2", "c=1"})
	for _, kv := range old.KVs {
		if kv.ModRevision != old.Revision {
			f.t.Fatalf("key %q was changed at revision %d, got %d", kv.Key, old.Revision, kv.ModRevision)
		}
	}
}

func testDeletes(f fixture) {
	f.apply(put("a", "1"), put("b", ""))
	f.apply(del("a"))
	f.equal("after a deletion", f.text(f.page("", 0, 0).KVs), []string{"b="})
	f.apply(put("a", "2"))
	f.equal("after it came back", f.text(f.page("", 0, 0).KVs), []string{"a=2", "b="})
}

func testTransactions(f fixture) {
	before := f.page("", 1, 0).Revision
	ops := []kvstore.Op{del("absent")}
	for i := range 100 {
		ops = append(ops, put(fmt.Sprintf("%03d", i), "v"))
	}
	f.apply(ops...)
	after := f.page("", 0, 0)
	if len(after.KVs) != 100 || after.Revision != before+1 {
		f.t.Fatalf("one transaction: got %d keys and %d revisions", len(after.KVs), after.Revision-before)
	}
	twice := []kvstore.Op{{Key: f.Prefix + "x", Value: []byte("1")}, {Key: f.Prefix + "x", Value: []byte("2")}}
	if err := f.Store.Apply(f.ctx, twice); err == nil {
		f.t.Fatal("a transaction with one key twice was accepted")
	}
	f.equal("after the refused one", f.text(f.page("x", 0, 0).KVs), []string{})
}

func testNoChange(f fixture) {
	f.apply(put("a", "1"))
	before := f.page("", 0, 0).Revision
	f.apply(del("absent"))
	f.apply()
	if after := f.page("", 0, 0).Revision; after != before {
		f.t.Fatalf("nothing changed but the revision went from %d to %d", before, after)
	}
}

func testLife(f fixture) {
	first := f.page("", 1, 0)
	f.apply(put("a", "1"))
	if second := f.page("", 1, 0); first.Life == 0 || second.Life != first.Life {
		f.t.Fatalf("life went from %x to %x", first.Life, second.Life)
	}
}

func testCompaction(f fixture) {
	f.apply(put("a", "1"))
	old := f.page("", 0, 0).Revision
	f.apply(put("a", "2"))
	f.apply(put("a", "3"), put("b", "1"))
	now := f.page("", 0, 0).Revision
	if err := f.Compact(f.ctx, now); err != nil {
		f.t.Fatalf("compact at %d: %v", now, err)
	}
	if _, err := f.Reader.Range(f.ctx, f.Prefix, kvstore.PrefixEnd(f.Prefix), 0, old); !errors.Is(err, kvstore.ErrCompacted) {
		f.t.Fatalf("range at a compacted revision: got error %v", err)
	}
	err := f.Reader.Watch(f.ctx, f.Prefix, kvstore.PrefixEnd(f.Prefix), old, func(c kvstore.Changes) error {
		if len(c.Changes) > 0 {
			return errors.New("changes came from a compacted revision")
		}
		return nil
	})
	if !errors.Is(err, kvstore.ErrCompacted) {
		f.t.Fatalf("watch from a compacted revision: got error %v", err)
	}
	f.equal("the compacted revision itself", f.text(f.page("", 0, now).KVs), []string{"a=3", "b=1"})
}

func testConcurrent(f fixture) {
	const writers, writes = 4, 25
	var group sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		group.Go(func() {
			for i := range writes {
				key := fmt.Sprintf("%s%d/%d", f.Prefix, w, i)
				errs[w] = errors.Join(errs[w], f.Store.Apply(f.ctx, []kvstore.Op{{Key: key, Value: []byte("v")}}))
			}
		})
	}
	start := f.page("", 1, 0).Revision + 1
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		f.t.Fatal(err)
	}
	all := f.page("", 0, 0)
	revisions := map[int64]bool{}
	for _, kv := range all.KVs {
		revisions[kv.ModRevision] = true
	}
	if len(all.KVs) != writers*writes || len(revisions) != writers*writes {
		f.t.Fatalf("got %d keys at %d revisions, want %d", len(all.KVs), len(revisions), writers*writes)
	}
	seen := f.watch(start, func(got []kvstore.Change) bool {
		return len(got) > 0 && got[len(got)-1].ModRevision == all.Revision || start > all.Revision
	})
	if !slices.IsSortedFunc(seen, func(a, b kvstore.Change) int { return int(a.ModRevision - b.ModRevision) }) {
		f.t.Fatal("watch delivered changes out of revision order")
	}
}
