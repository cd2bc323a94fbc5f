package kvstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
)

// PublisherConfig configures a Publisher. Zero values take the defaults named.
type PublisherConfig struct {
	// Prefix is what the publisher owns: at rest, the keys of the store that
	// begin with it are exactly the published ones. It should end in a slash.
	Prefix string
	// Canary is the key written once the initial set is complete in the store;
	// empty for none.
	Canary string
	// CanaryValue makes the canary's value, by default the time in RFC 3339.
	CanaryValue func() []byte
	// MaxOps bounds the operations of one transaction; default 128, which is
	// also etcd's default limit.
	MaxOps int
	// MaxBytes bounds the keys and values of one transaction of more than one
	// operation; default 1 MiB, below etcd's request limit of 1.5 MiB.
	MaxBytes int
	// PageSize is the page of the listing that finds leftovers; default 5000.
	PageSize int64
	// LifeCheck is how often the store is asked whether it still is the one that
	// was filled; default 5 s.
	LifeCheck time.Duration
	// RetryMin and RetryMax bound the delay after a failure; default 50 ms, 5 s.
	RetryMin, RetryMax time.Duration
	// Acknowledged, if set, is told for each change how long it waited until the
	// store had it. Changes of one key that coalesced count as the first of them.
	// It must not block.
	Acknowledged func(time.Duration)
	// Log receives failures; default is to discard.
	Log *slog.Logger
}

// Validate reports every problem of the configuration.
func (c PublisherConfig) Validate() error {
	var problems []error
	if c.Prefix == "" {
		problems = append(problems, errors.New("check publisher: prefix is empty; name the keys to own"))
	}
	if c.MaxOps < 0 || c.MaxBytes < 0 || c.PageSize < 0 {
		problems = append(problems, fmt.Errorf("check publisher %s: max ops %d, max bytes %d and page size %d must not be negative; use 0 for the default",
			c.Prefix, c.MaxOps, c.MaxBytes, c.PageSize))
	}
	if c.LifeCheck < 0 || c.RetryMin < 0 || c.RetryMax < 0 {
		problems = append(problems, fmt.Errorf("check publisher %s: life check %s, retry min %s and retry max %s must not be negative; use 0 for the default",
			c.Prefix, c.LifeCheck, c.RetryMin, c.RetryMax))
	}
	return errors.Join(problems...)
}

func (c PublisherConfig) withDefaults() PublisherConfig {
	c.MaxOps = orDefault(c.MaxOps, 128)
	c.MaxBytes = orDefault(c.MaxBytes, 1<<20)
	c.PageSize = orDefault(c.PageSize, 5000)
	c.LifeCheck = orDefault(c.LifeCheck, 5*time.Second)
	if c.CanaryValue == nil {
		c.CanaryValue = func() []byte { return []byte(time.Now().UTC().Format(time.RFC3339)) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func orDefault[T int | int64 | time.Duration](v, fallback T) T {
	if v == 0 {
		return fallback
	}
	return v
}

// PublisherStats counts what a publisher did since it was made. Puts and
// Deletes are acknowledged operations, Txns acknowledged transactions, Errors
// failed attempts of any kind, Refills the listings of the store (1 is the
// normal start, more mean that the store lost its data), Refused the keys that
// were outside the prefix.
type PublisherStats struct {
	Puts, Deletes, Txns, Errors, Refills, Refused uint64
}

// Publisher makes the keys under a prefix of a store equal to a set.
//
// The set is kept in memory, so the store may fail, time out after having done
// the work, or lose everything: the difference is always worked out again.
// Writing has no timer: while one transaction is under way changes coalesce by
// key, and the next transaction takes what is there. A value the store refuses
// is isolated by halving the transaction and then tried alone, so that it does
// not hold up the others.
//
// What a former life of the process left under the prefix stays until the
// initial set is complete (Synced): a reader of the store never sees less than
// the former set without somebody having said so. What is left over and not in
// the set then goes. The canary is this life's promise that the set is
// complete, so a canary of a former life is deleted before anything else is
// written: readers that hold data already keep it (for them a canary going
// away means nothing, and leftovers are still there), new ones wait. After
// everything pending at Synced and every leftover is dealt with, the canary is
// written.
//
// All methods are safe for concurrent use, and usable before Run.
type Publisher struct {
	cfg   PublisherConfig
	store Store
	seed  maphash.Seed
	wake  chan struct{}
	done  chan struct{}

	mu       sync.Mutex
	entries  map[string]*entry
	queue    fifo
	parked   map[string]parking
	pending  int                      // entries queued
	inflight int                      // entries in the transaction under way
	written  int64                    // since when the oldest of these waits, in Unix nanoseconds; 0 for none
	limit    int                      // operations of the next transaction
	synced   bool                     // the initial set is complete
	listed   bool                     // the store's content is known
	armed    bool                     // the canary is queued or written
	finished bool                     // done is closed
	barriers map[string]chan struct{} // waiting in the queue, by their marks
	passed   uint64                   // barriers that were made
	stats    PublisherStats

	// Used by Run alone.
	life     uint64
	revision int64
	checked  time.Time
	suspect  bool // an operation failed: check the life before going on
	backoff  Backoff
}

// entry is one key: what is wanted, and what the store has.
type entry struct {
	want    []byte
	wanted  bool
	queued  bool
	stored  bool   // the store has the key, or may have it
	certain bool   // stored and hash are known to be so
	hash    uint64 // of the stored value
	since   int64  // when it was queued, in Unix nanoseconds; 0 if it is not
}

// NewPublisher returns a publisher into the store. The configuration must be
// valid.
func NewPublisher(store Store, cfg PublisherConfig) *Publisher {
	cfg = cfg.withDefaults()
	return &Publisher{
		cfg: cfg, store: store, seed: maphash.MakeSeed(),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		entries: make(map[string]*entry), parked: make(map[string]parking), barriers: map[string]chan struct{}{}, limit: cfg.MaxOps,
		backoff: Backoff{Min: cfg.RetryMin, Max: cfg.RetryMax},
	}
}

// Put adds key with value to the set, or changes its value. It does not block.
// The value belongs to the publisher from then on. An unchanged value is no
// work. A key outside the prefix is refused, logged and counted.
func (p *Publisher) Put(key string, value []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.owns(key) {
		return
	}
	e := p.entry(key)
	if e.wanted && bytes.Equal(e.want, value) {
		return
	}
	e.want, e.wanted = value, true
	p.enqueue(key, e)
}

// Delete takes key out of the set. It does not block.
func (p *Publisher) Delete(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[key]
	if e == nil || !e.wanted {
		return
	}
	e.want, e.wanted = nil, false
	p.enqueue(key, e)
}

func (p *Publisher) owns(key string) bool {
	if strings.HasPrefix(key, p.cfg.Prefix) && key != p.cfg.Canary {
		return true
	}
	p.stats.Refused++
	p.cfg.Log.Error("refused to publish a key outside the prefix", "key", key)
	return false
}

func (p *Publisher) entry(key string) *entry {
	e := p.entries[key]
	if e == nil {
		e = &entry{certain: p.listed}
		p.entries[key] = e
	}
	return e
}

// enqueue has the entry looked at by Run. Callers hold the lock.
func (p *Publisher) enqueue(key string, e *entry) {
	if spot, ok := p.parked[key]; ok {
		p.parked[key] = parking{delay: spot.delay} // due now, for it changed
	} else if !e.queued {
		p.queue.push(key)
	}
	p.markQueued(e)
	p.nudge()
}

func (p *Publisher) markQueued(e *entry) {
	if !e.queued {
		e.queued = true
		p.pending++
	}
	if e.since == 0 {
		e.since = time.Now().UnixNano()
	}
}

func (p *Publisher) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Synced says that the initial set is complete: everything Put before belongs
// to it. Calling it again does nothing.
func (p *Publisher) Synced() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = true
	p.arm()
	p.nudge()
}

// arm queues the leftovers for deletion and the canary behind everything
// queued so far, once both the set and the store's content are known.
func (p *Publisher) arm() {
	if p.armed || !p.synced || !p.listed {
		return
	}
	p.armed = true
	for key, e := range p.entries {
		if !e.wanted && !e.queued {
			p.enqueue(key, e)
		}
	}
	p.queue.push(canaryMark)
}

// Resync has Run list the store again and repair every difference, the canary
// included.
func (p *Publisher) Resync() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listed, p.armed = false, false
	p.queue.remove(canaryMark)
	p.nudge()
}

// Flush returns when the store has acknowledged every Put and Delete that
// returned before the call, or a later one of the same key, or has refused them
// alone; refused is the number of keys that are refused at that moment. It needs
// a running Run; the error is ctx's. The initial set need not be complete.
func (p *Publisher) Flush(ctx context.Context) (refused int, err error) {
	mark, reached := p.barrier()
	select {
	case <-reached:
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.parked), nil
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.barriers, mark)
		return 0, ctx.Err()
	}
}

// barrier queues a mark behind everything there is.
func (p *Publisher) barrier() (mark string, reached <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passed++
	mark = barrierMark + strconv.FormatUint(p.passed, 10)
	c := make(chan struct{})
	p.barriers[mark] = c
	p.queue.push(mark)
	p.nudge()
	return mark, c
}

// Done is closed when the initial set is complete in the store: leftovers gone
// and canary written.
func (p *Publisher) Done() <-chan struct{} { return p.done }

// Pending returns the number of keys whose last change the store has not
// acknowledged.
func (p *Publisher) Pending() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pending + p.inflight
}

// Lag returns for how long the oldest change that the store has not acknowledged
// has waited, 0 if there is none.
func (p *Publisher) Lag(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest := p.written
	if p.pending > 0 {
		for _, e := range p.entries {
			if e.since != 0 && (oldest == 0 || e.since < oldest) {
				oldest = e.since
			}
		}
	}
	if oldest == 0 {
		return 0
	}
	return max(0, time.Duration(now.UnixNano()-oldest))
}

// Len returns the size of the set plus the leftovers not dealt with.
func (p *Publisher) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.entries)
}

// Stats returns the counters.
func (p *Publisher) Stats() PublisherStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Run writes until ctx ends, and then returns nil. Failures are retried with
// backoff for ever and lose nothing. Run again after it returned to go on; two
// at the same time are not allowed.
func (p *Publisher) Run(ctx context.Context) error {
	p.Resync()
	p.backoff.Reset()
	for ctx.Err() == nil {
		err := p.step(ctx)
		if err == nil {
			continue
		}
		if ctx.Err() == nil {
			p.failed(err)
			p.backoff.Sleep(ctx) //nolint:errcheck // the loop looks at ctx itself
		}
	}
	return nil
}

func (p *Publisher) failed(err error) {
	p.mu.Lock()
	p.stats.Errors++
	p.mu.Unlock()
	p.suspect = true
	p.cfg.Log.Warn("failed to publish, will retry", "key", p.cfg.Prefix, "err", err)
}

// step does the next thing there is to do, or waits for one.
func (p *Publisher) step(ctx context.Context) error {
	if !p.known() {
		return p.adopt(ctx)
	}
	if p.suspect || time.Since(p.checked) >= p.cfg.LifeCheck {
		return p.checkLife(ctx)
	}
	b := p.take(time.Now())
	if len(b.ops) == 0 && !b.canary {
		if !b.barrier {
			p.idle(ctx)
		}
		return nil
	}
	return p.write(ctx, b)
}

func (p *Publisher) known() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listed
}

// idle waits for work, a parked key or the next life check.
func (p *Publisher) idle(ctx context.Context) {
	timer := time.NewTimer(p.untilDue(time.Now()))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-p.wake:
	case <-timer.C:
	}
}

func (p *Publisher) untilDue(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := p.checked.Add(p.cfg.LifeCheck).Sub(now)
	for _, spot := range p.parked {
		wait = min(wait, spot.due.Sub(now))
	}
	return max(wait, 0)
}
