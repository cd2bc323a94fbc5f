// Package kvstore moves sets of keys between processes through an etcd
// keyspace: a [Publisher] makes a prefix equal to a set, a [Watch] follows a
// prefix as one gap-free stream.
//
// Both talk to small interfaces declared here, which an in-memory store
// ([Memory]), an embedded or remote etcd ([Etcd]) and the agent's own
// connection ([Dial]) implement. What etcd calls compaction, lost connection,
// paging and another server life stays inside; callers see sets and changes.
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

// Reader reads a store. Implementations are safe for concurrent use.
type Reader interface {
	// Range lists up to limit keys in [start, end) in key order, at the given
	// revision or, when that is 0, at the current one.
	Range(ctx context.Context, start, end string, limit, revision int64) (Range, error)
	// Watch delivers the changes of [start, end) from the given revision on,
	// each exactly once and in order, to fn, from one goroutine, until ctx ends,
	// the stream breaks or fn fails; it then returns why, ErrCompacted included.
	// It never resumes by itself.
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
