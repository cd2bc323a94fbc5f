// Package kvstore moves sets of keys between processes through an etcd
// keyspace: a [Publisher] makes a prefix equal to a set, a [Watcher] follows a
// prefix as one gap-free stream of differences.
//
// Both talk to small interfaces declared here, which an in-memory store
// ([Memory]), the embedded etcd (package kvstore/server) and a client
// connection ([Conn]) implement. What etcd calls compaction, paging, fragments
// and another server life stays inside; callers see sets and changes.
//
// Values handed in or out are shared, not copied: whoever holds one reads it
// only.
package kvstore

import (
	"context"
	"errors"
)

// KV is a key with its value. ModRevision is the store revision of its last
// change.
type KV struct {
	Key         string
	Value       []byte
	ModRevision int64
}

// Range is one page of a listing at a fixed revision.
type Range struct {
	KVs      []KV
	Revision int64  // the store's revision of this reply
	Life     uint64 // which life of which server answered (etcd's cluster id)
	More     bool   // keys beyond the page exist
}

// Change is one event of a watch: a put (Deleted false) or a deletion.
type Change struct {
	KV
	Deleted bool
}

// Changes is one reply of a watch. Revision is the store revision up to which
// the watch is complete once the changes are applied. Changes are in revision
// order.
type Changes struct {
	Changes  []Change
	Revision int64
	Life     uint64
}

// ErrCompacted says that the revision asked for is no longer kept: list again.
var ErrCompacted = errors.New("revision compacted")

// ErrLifeChanged says that a reply belongs to another life of the server than
// the replies before it: another cluster id, or a revision that went backwards.
// Nothing learnt from the old life can be continued; list again.
var ErrLifeChanged = errors.New("store answers from another life")

// ErrReplyTooLarge says that a reply is over the size the reader accepts: ask
// for a smaller page.
var ErrReplyTooLarge = errors.New("reply too large")

// PrefixEnd returns the end of the range that holds exactly the keys beginning
// with prefix: the smallest key behind all of them. For a prefix without one
// (only 0xff bytes, or none) it is "\x00", the mark for no end at all.
func PrefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return noEnd
}

// noEnd is etcd's mark for a range without an upper bound.
const noEnd = "\x00"

// Reader reads a store. Ranges are etcd's: an empty end means the single key
// start, the end "\x00" means no upper bound. Implementations are safe for
// concurrent use.
type Reader interface {
	// Range lists up to limit keys in [start, end) in key order, at the given
	// revision or, when that is 0, at the current one.
	Range(ctx context.Context, start, end string, limit, revision int64) (Range, error)
	// Watch delivers the changes of [start, end) from the given revision on,
	// each exactly once and in order, to fn, from one goroutine, until ctx ends,
	// the stream breaks or fn fails; it then returns why, ErrCompacted included.
	// It never resumes by itself. The first call of fn may carry no changes: it
	// says that the watch is in place, and its Revision is below revision-1 when
	// the store has not come that far (a store that lost its data).
	Watch(ctx context.Context, start, end string, revision int64, fn func(Changes) error) error
}

// Op is one write: a put, or a deletion when Delete is set.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Writer writes a store. Apply makes all of ops happen in one revision or none
// of them; no key occurs twice in ops. Implementations are safe for concurrent
// use.
type Writer interface {
	Apply(ctx context.Context, ops []Op) error
}

// Store is a store that can be read and written.
type Store interface {
	Reader
	Writer
}
