package kvstore

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"
)

// canaryMark stands for the canary in the queue. No key is empty.
const canaryMark = ""

// barrierMark begins a mark in the queue that Flush waits for. Keys begin with
// the prefix, so none begins like it.
const barrierMark = "\x00"

// parking is a key the store refused alone: it is tried again, alone, when due.
type parking struct {
	due   time.Time
	delay time.Duration
}

// batch is one transaction.
type batch struct {
	ops     []Op
	entries []*entry
	hashes  []uint64
	since   []int64 // when each was queued
	bytes   int
	canary  bool
	barrier bool          // one was reached
	parked  bool          // a single key from the parking
	delay   time.Duration // its last delay
}

func (b *batch) add(op Op, e *entry, hash uint64) {
	b.ops, b.entries, b.hashes = append(b.ops, op), append(b.entries, e), append(b.hashes, hash)
	b.since = append(b.since, e.since)
	e.since = 0
	b.bytes += len(op.Key) + len(op.Value)
}

// take removes the next transaction from the queue.
func (p *Publisher) take(now time.Time) batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b batch
	if p.takeParked(now, &b) {
		return b
	}
	for len(b.ops) < p.limit {
		key, ok := p.queue.pop()
		if !ok {
			break
		}
		if key == canaryMark {
			b.canary = p.canaryTurn(len(b.ops))
			break
		}
		if strings.HasPrefix(key, barrierMark) {
			if b.barrier = p.barrierTurn(key, len(b.ops)); !b.barrier {
				break
			}
			continue
		}
		if !p.takeKey(key, &b) {
			break
		}
	}
	p.inflight = len(b.ops)
	if len(b.since) > 0 {
		p.written = slices.Min(b.since)
	}
	return b
}

// canaryTurn decides about the canary at the head of the queue: it goes alone,
// and behind what is parked.
func (p *Publisher) canaryTurn(before int) bool {
	switch {
	case before > 0:
		p.queue.unpop(canaryMark)
	case len(p.parked) > 0:
		if !p.queue.empty() {
			p.nudge()
		}
		p.queue.push(canaryMark)
	default:
		return true
	}
	return false
}

// barrierTurn decides about a barrier at the head of the queue: it is reached
// when nothing before it is still to be written.
func (p *Publisher) barrierTurn(mark string, before int) bool {
	if before > 0 {
		p.queue.unpop(mark)
		return false
	}
	if reached := p.barriers[mark]; reached != nil {
		delete(p.barriers, mark)
		close(reached)
	}
	return true
}

// takeKey adds what the key needs to the batch; it reports false when the batch
// is full, the key being back at the head of the queue.
func (p *Publisher) takeKey(key string, b *batch) bool {
	e := p.entries[key]
	if _, parked := p.parked[key]; parked || e == nil || !e.queued {
		return true
	}
	if len(b.ops) > 0 && b.bytes+len(key)+len(e.want) > p.cfg.MaxBytes {
		p.queue.unpop(key)
		return false
	}
	e.queued = false
	p.pending--
	hash := maphash.Bytes(p.seed, e.want)
	if e.settled(hash) {
		e.since = 0
		p.release(key, e)
		return true
	}
	e.certain = false
	b.add(Op{Key: key, Value: e.want, Delete: !e.wanted}, e, hash)
	return true
}

// settled tells whether the store has what is wanted, whose hash is given.
func (e *entry) settled(hash uint64) bool {
	return e.certain && e.stored == e.wanted && (!e.wanted || e.hash == hash)
}

// release forgets an entry that says nothing any more.
func (p *Publisher) release(key string, e *entry) {
	if e.certain && !e.stored && !e.wanted && !e.queued {
		delete(p.entries, key)
	}
}

// takeParked takes one due key from the parking.
func (p *Publisher) takeParked(now time.Time, b *batch) bool {
	for key, spot := range p.parked {
		if now.Before(spot.due) {
			continue
		}
		delete(p.parked, key)
		p.takeKey(key, b)
		if len(b.ops) == 1 { // else it is wanted as stored again
			b.parked, b.delay = true, spot.delay
			p.inflight, p.written = 1, b.since[0]
			return true
		}
	}
	return false
}

// write applies the batch and notes the outcome.
func (p *Publisher) write(ctx context.Context, b batch) error {
	ops := b.ops
	if b.canary {
		if p.cfg.Canary == "" {
			p.finish(true)
			return nil
		}
		ops = []Op{{Key: p.cfg.Canary, Value: p.cfg.CanaryValue()}}
	}
	err := p.store.Apply(ctx, ops)
	if b.canary {
		p.finish(err == nil)
	}
	p.settle(b, err == nil)
	if err == nil {
		p.acknowledge(b)
	}
	switch {
	case err == nil:
		p.backoff.Reset()
	case b.parked:
		p.cfg.Log.Debug("store still refuses a key", "key", ops[0].Key, "err", err)
	default:
		return fmt.Errorf("write %d keys from %q: %w", len(ops), ops[0].Key, err)
	}
	return nil
}

func (p *Publisher) finish(ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !ok && p.armed:
		p.queue.unpop(canaryMark)
	case ok && !p.finished:
		p.finished = true
		close(p.done)
	}
}

func (p *Publisher) settle(b batch, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inflight, p.written = 0, 0
	if !ok {
		p.giveBack(b)
		return
	}
	p.limit = min(2*p.limit, p.cfg.MaxOps)
	p.stats.Txns++
	for i, e := range b.entries {
		op := b.ops[i]
		e.certain, e.stored, e.hash = true, !op.Delete, b.hashes[i]
		p.count(op)
		p.release(op.Key, e)
	}
}

// acknowledge tells how long the changes of a written batch had waited.
func (p *Publisher) acknowledge(b batch) {
	if p.cfg.Acknowledged == nil {
		return
	}
	now := time.Now().UnixNano()
	for _, since := range b.since {
		p.cfg.Acknowledged(max(0, time.Duration(now-since)))
	}
}

func (p *Publisher) count(op Op) {
	if op.Delete {
		p.stats.Deletes++
		return
	}
	p.stats.Puts++
}

// giveBack returns a failed batch to the head of the queue, where it is before
// the canary whatever happened meanwhile, and makes the next one smaller. What
// failed alone is parked. Whether the store did it is unknown.
func (p *Publisher) giveBack(b batch) {
	if !b.parked {
		p.limit = max(1, len(b.ops)/2)
	}
	for i := len(b.ops) - 1; i >= 0; i-- {
		e, key := b.entries[i], b.ops[i].Key
		e.stored, e.certain = true, false
		e.since = b.since[i] // it waits on
		p.markQueued(e)
		if len(b.ops) > 1 {
			p.queue.unpop(key)
		}
	}
	if len(b.ops) == 1 {
		p.park(b.ops[0].Key, b)
	}
}

func (p *Publisher) park(key string, b batch) {
	low, high := p.backoff.bounds()
	delay := min(max(2*b.delay, low), high)
	p.parked[key] = parking{due: time.Now().Add(delay), delay: delay}
	if b.parked {
		p.stats.Errors++
	}
}

// seen notes the life and revision of the store.
func (p *Publisher) seen(r Range) {
	p.life, p.revision = r.Life, r.Revision
	p.checked, p.suspect = time.Now(), false
}

// fifo is a queue of keys that also takes keys back at its head.
type fifo struct {
	returned []string // last one first
	keys     []string
	head     int
}

func (q *fifo) push(key string) { q.keys = append(q.keys, key) }

func (q *fifo) unpop(key string) { q.returned = append(q.returned, key) }

func (q *fifo) empty() bool { return len(q.returned) == 0 && q.head == len(q.keys) }

func (q *fifo) pop() (string, bool) {
	if n := len(q.returned); n > 0 {
		key := q.returned[n-1]
		q.returned = q.returned[:n-1]
		return key, true
	}
	if q.head == len(q.keys) {
		return "", false
	}
	key := q.keys[q.head]
	q.keys[q.head] = ""
	q.head++
	q.shrink()
	return key, true
}

// shrink gives the room of popped keys back, so that a queue which never runs
// empty does not grow.
func (q *fifo) shrink() {
	if 2*q.head >= len(q.keys) {
		n := copy(q.keys, q.keys[q.head:])
		clear(q.keys[n:])
		q.keys, q.head = q.keys[:n], 0
	}
}

// remove takes every occurrence of key out.
func (q *fifo) remove(key string) {
	q.returned = without(q.returned, key)
	q.keys, q.head = without(q.keys[q.head:], key), 0
}

func without(keys []string, key string) []string {
	var rest []string
	for _, k := range keys {
		if k != key {
			rest = append(rest, k)
		}
	}
	return rest
}
