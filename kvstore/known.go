package kvstore

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync/atomic"
)

// QuotaError says that a store holds more than its reader agreed to take. What
// was accepted before stays.
type QuotaError struct {
	Prefix string
	Limit  string // the setting: MaxKeys, MaxBytes or MaxValueBytes
	Key    string // the key that went over it
	Value  int64  // what it would have come to
	Max    int64  // the setting's value
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("accept key %s under %s: %d is over the limit %s of %d; remove data at its source or raise the limit",
		shownKey(e.Key), e.Prefix, e.Value, e.Limit, e.Max)
}

// known is what a sink has accepted: for every key under the prefix the hash of
// its value. Keys are kept without the prefix and records without pointers.
// Changes since the last commit can be rolled back.
type known struct {
	cfg     WatcherConfig
	seed    maphash.Seed
	index   map[string]int32
	records []record
	free    []int32
	listing uint32 // the current listing
	total   total  // of what the current listing or a live change confirmed
	held    int64  // bytes of all keys and values, stale ones too
	whole   bool   // the next commit ends a complete listing
	undo    []undone
	scratch []Change
	count   atomic.Int64
}

// record is one key; it is stale unless the current listing confirmed it.
type record struct {
	hash uint64
	size uint32 // of key and value
	list uint32 // the listing that confirmed it, and sure
}

// sure marks a key that was there when a listing was complete, or came live after
// one. Others came with a listing that was not finished.
const sure = 1 << 31

func (r record) of(listing uint32) bool { return r.list&^sure == listing }

type total struct {
	keys  int
	bytes int64
}

// undone is how to take one step back: the record a key had, or that it had
// none.
type undone struct {
	suffix string
	old    record
	had    bool
}

func newKnown(cfg WatcherConfig) known {
	return known{cfg: cfg, seed: maphash.MakeSeed(), index: make(map[string]int32)}
}

// beginList makes everything known stale. Listings that are not finished leave
// their keys behind; when these come to more than one listing may have, they are
// forgotten, and beginList returns their deletions.
func (k *known) beginList() []Change {
	k.listing = (k.listing + 1) &^ sure
	k.total = total{}
	if len(k.index) <= k.cfg.MaxKeys && k.held <= k.cfg.MaxBytes {
		return nil
	}
	return k.remove(nil, func(r record) bool { return r.list&sure == 0 })
}

// list notes a page and returns what is new or changed in it. The result is
// valid until the next call.
func (k *known) list(page []KV) ([]Change, error) {
	changes := k.scratch[:0]
	for _, kv := range page {
		changed, err := k.put(kv, 0)
		if err != nil {
			k.rollback()
			return nil, err
		}
		if changed {
			changes = append(changes, Change{KV: kv})
		}
	}
	k.scratch = changes
	return changes, nil
}

// apply notes live changes and returns those that are differences.
func (k *known) apply(all []Change) ([]Change, error) {
	changes := k.scratch[:0]
	for _, change := range all {
		differs, err := k.applyOne(change)
		if err != nil {
			k.rollback()
			return nil, err
		}
		if differs {
			changes = append(changes, change)
		}
	}
	k.scratch = changes
	return changes, nil
}

func (k *known) applyOne(change Change) (bool, error) {
	if !strings.HasPrefix(change.Key, k.cfg.Prefix) {
		return false, fmt.Errorf("check change of %s: not under %s", shownKey(change.Key), k.cfg.Prefix)
	}
	if change.Deleted {
		return k.drop(change.Key[len(k.cfg.Prefix):]), nil
	}
	return k.put(change.KV, sure)
}

// put notes a key's value, with its mark, and reports whether it is a difference.
func (k *known) put(kv KV, mark uint32) (bool, error) {
	suffix := kv.Key[len(k.cfg.Prefix):]
	now := record{
		hash: maphash.Bytes(k.seed, kv.Value),
		size: uint32(len(kv.Key) + len(kv.Value)),
		list: k.listing | mark,
	}
	at, had := k.index[suffix]
	var old record
	if had {
		old = k.records[at]
		now.list |= old.list & sure
	}
	next := k.total.with(now, old, had)
	if err := k.admit(kv, next); err != nil {
		return false, err
	}
	k.total = next
	k.note(suffix, old, had)
	k.set(suffix, at, had, now)
	return !had || old.hash != now.hash || old.size != now.size, nil
}

// with is the total after a record takes the place of an old one. Stale records
// are not part of it: they are bounded by the listing that brought them.
func (t total) with(now, old record, had bool) total {
	if had && old.of(now.list&^sure) {
		t.keys--
		t.bytes -= int64(old.size)
	}
	return total{t.keys + 1, t.bytes + int64(now.size)}
}

func (k *known) admit(kv KV, next total) error {
	over := func(limit string, value, most int64) error {
		return &QuotaError{Prefix: k.cfg.Prefix, Limit: limit, Key: kv.Key, Value: value, Max: most}
	}
	switch {
	case len(kv.Value) > k.cfg.MaxValueBytes:
		return over("MaxValueBytes", int64(len(kv.Value)), int64(k.cfg.MaxValueBytes))
	case next.keys > k.cfg.MaxKeys:
		return over("MaxKeys", int64(next.keys), int64(k.cfg.MaxKeys))
	case next.bytes > k.cfg.MaxBytes:
		return over("MaxBytes", next.bytes, k.cfg.MaxBytes)
	}
	return nil
}

func (k *known) set(suffix string, at int32, had bool, r record) {
	k.held += int64(r.size)
	if had {
		k.held -= int64(k.records[at].size)
		k.records[at] = r
		return
	}
	if n := len(k.free); n > 0 {
		at, k.free = k.free[n-1], k.free[:n-1]
		k.records[at] = r
	} else {
		at = int32(len(k.records))
		k.records = append(k.records, r)
	}
	k.index[strings.Clone(suffix)] = at // the caller's key holds the prefix too
}

// drop forgets a key and reports whether it was known.
func (k *known) drop(suffix string) bool {
	at, had := k.index[suffix]
	if !had {
		return false
	}
	old := k.records[at]
	if old.of(k.listing) {
		k.total.keys--
		k.total.bytes -= int64(old.size)
	}
	k.note(suffix, old, true)
	k.unset(suffix, at)
	return true
}

func (k *known) unset(suffix string, at int32) {
	delete(k.index, suffix)
	k.held -= int64(k.records[at].size)
	k.free = append(k.free, at)
}

// dropStale forgets every key the current listing has not confirmed and appends
// their deletions, in key order, to changes.
func (k *known) dropStale(changes []Change) []Change {
	k.whole = true
	return k.remove(changes, func(r record) bool { return !r.of(k.listing) })
}

// remove forgets the keys that are gone and appends their deletions, in key order,
// to changes.
func (k *known) remove(changes []Change, isGone func(record) bool) []Change {
	first := len(changes)
	for suffix, at := range k.index {
		if isGone(k.records[at]) {
			changes = append(changes, Change{KV: KV{Key: k.cfg.Prefix + suffix}, Deleted: true})
		}
	}
	gone := changes[first:]
	slices.SortFunc(gone, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	for _, change := range gone {
		k.drop(change.Key[len(k.cfg.Prefix):])
	}
	k.scratch = changes
	return changes
}

func (k *known) note(suffix string, old record, had bool) {
	k.undo = append(k.undo, undone{suffix, old, had})
}

// commit keeps what was noted since the last commit or rollback.
func (k *known) commit() {
	if k.whole {
		for i := range k.records {
			k.records[i].list |= sure
		}
		k.whole = false
	}
	k.forgetUndo()
	k.count.Store(int64(len(k.index)))
}

// rollback takes back what was noted since the last commit. It does not restore
// the total: a session ends with it, and the next listing counts anew.
func (k *known) rollback() {
	k.whole = false
	for _, u := range slices.Backward(k.undo) {
		at, has := k.index[u.suffix]
		if u.had {
			k.set(u.suffix, at, has, u.old)
		} else if has {
			k.unset(u.suffix, at)
		}
	}
	k.forgetUndo()
}

// forgetUndo empties the scratch space, and frees it when one large listing
// made it large.
func (k *known) forgetUndo() {
	const keep = 1 << 13
	clear(k.undo)
	clear(k.scratch)
	k.undo, k.scratch = k.undo[:0], k.scratch[:0]
	if cap(k.undo) > keep {
		k.undo = nil
	}
	if cap(k.scratch) > keep {
		k.scratch = nil
	}
}
