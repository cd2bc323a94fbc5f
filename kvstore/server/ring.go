package server

import (
	"sort"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// eventsField is the number of WatchResponse.events in etcd's rpc.proto.
const eventsField = 11

// event is one change inside a revision: wire[start:end] is the complete field
// events of a WatchResponse, wire[body:end] the mvccpb.Event in it.
type event struct {
	key              string
	deleted          bool
	start, body, end int
}

// revision is all changes of one store revision, in order, encoded. It is not
// changed once it is in the ring.
type revision struct {
	rev    int64
	wire   []byte
	events []event
	marker bool // a marker was written in it
	memory int
}

// What a revision and an event take beside the encoded bytes, estimated.
const (
	revisionOverhead = 128
	eventOverhead    = 64
)

// encodeRevision encodes the changes of one revision.
func encodeRevision(rev int64, evs []*mvccpb.Event) (*revision, error) {
	r := &revision{rev: rev, events: make([]event, 0, len(evs)), memory: revisionOverhead}
	size := 0
	for _, ev := range evs {
		size += 16 + proto.Size(ev)
	}
	r.wire = make([]byte, 0, size)
	for _, ev := range evs {
		if err := r.append(ev); err != nil {
			return nil, err
		}
		r.memory += eventOverhead + len(ev.Kv.Key)
	}
	r.memory += cap(r.wire)
	return r, nil
}

func (r *revision) append(ev *mvccpb.Event) error {
	e := event{key: string(ev.Kv.Key), deleted: ev.Type == mvccpb.Event_DELETE, start: len(r.wire)}
	b := protowire.AppendTag(r.wire, eventsField, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(proto.Size(ev)))
	e.body = len(b)
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, ev)
	if err != nil {
		return err
	}
	e.end = len(b)
	r.wire, r.events, r.marker = b, append(r.events, e), r.marker || schema.IsMarkerKey(e.key)
	return nil
}

// ring is the store's newest history: every revision from floor to head,
// without a gap. One goroutine appends, any number read. Memory is bounded by
// dropping the oldest revisions.
type ring struct {
	maxRevs, maxBytes int

	mu    sync.RWMutex
	buf   []*revision // circular; grows up to maxRevs
	first int         // index of the oldest revision
	n     int         // number of revisions
	bytes int
	floor int64         // the lowest revision a watch may start at
	head  int64         // the highest revision that is complete
	moved chan struct{} // closed when head or floor moves
}

// newRing returns a ring that is complete up to head and knows nothing of what
// came before; floor is the lowest revision whose changes are all known.
func newRing(maxRevs, maxBytes int, floor, head int64) *ring {
	return &ring{maxRevs: maxRevs, maxBytes: maxBytes, floor: floor, head: head, moved: make(chan struct{})}
}

// append adds the next revision and wakes all readers.
func (r *ring) append(rev *revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.n > 0 && (r.n == r.maxRevs || r.bytes+rev.memory > r.maxBytes) {
		r.dropOldest()
	}
	if r.n == len(r.buf) {
		r.grow()
	}
	r.buf[(r.first+r.n)%len(r.buf)] = rev
	r.n++
	r.bytes += rev.memory
	r.head = rev.rev
	r.wake()
}

func (r *ring) dropOldest() {
	old := r.buf[r.first]
	r.buf[r.first] = nil
	r.first = (r.first + 1) % len(r.buf)
	r.n--
	r.bytes -= old.memory
	r.floor = old.rev + 1
}

func (r *ring) grow() {
	buf := make([]*revision, min(max(64, 2*len(r.buf)), r.maxRevs))
	for i := range r.n {
		buf[i] = r.at(i)
	}
	r.buf, r.first = buf, 0
}

func (r *ring) at(i int) *revision { return r.buf[(r.first+i)%len(r.buf)] }

func (r *ring) wake() {
	close(r.moved)
	r.moved = make(chan struct{})
}

// reset forgets everything and starts again after head: a watch that is not
// yet beyond head has to list again.
func (r *ring) reset(head int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.buf)
	r.first, r.n, r.bytes = 0, 0, 0
	r.floor, r.head = head+1, head
	r.wake()
}

// view is what a reader sees of the ring at one moment.
type view struct {
	revs   []*revision   // from the revision asked for on, in order
	events int           // in all of them
	upTo   int64         // complete up to here once revs are handled
	floor  int64         // watches below it have to list again
	moved  chan struct{} // closed when there is more to see
}

// read returns the revisions from the given one on, as many as fit into
// maxBytes, at least one if there is one. It appends to scratch.
func (r *ring) read(from int64, maxBytes int, scratch []*revision) view {
	r.mu.RLock()
	defer r.mu.RUnlock()
	v := view{revs: scratch, upTo: r.head, floor: r.floor, moved: r.moved}
	i := sort.Search(r.n, func(i int) bool { return r.at(i).rev >= from })
	for bytes := 0; i < r.n; i++ {
		rev := r.at(i)
		bytes += len(rev.wire)
		if len(v.revs) > 0 && bytes > maxBytes {
			v.upTo = v.revs[len(v.revs)-1].rev
			break
		}
		v.revs, v.events = append(v.revs, rev), v.events+len(rev.events)
	}
	return v
}

// stats returns the number of revisions and bytes held and the head.
func (r *ring) stats() (revs, bytes int, head int64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.n, r.bytes, r.head
}
