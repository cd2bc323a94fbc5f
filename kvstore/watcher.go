package kvstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// WatcherConfig configures a Watcher. Zero values take the defaults named.
type WatcherConfig struct {
	// Prefix is what is followed. It should end in a slash, or "c1" follows
	// "c10" too.
	Prefix string
	// PageSize is the most keys asked for at once; default 5000. The first page
	// is small, the next ones are sized by what keys turn out to weigh.
	PageSize int64
	// PageBytes is the weight a page should have; default 2 MiB. Replies over
	// the reader's own limit are asked for again in smaller pages.
	PageBytes int64
	// MaxKeys, MaxBytes (keys and values together) and MaxValueBytes bound what
	// the store may make this process hold; default 1,000,000 keys, 512 MiB,
	// 2 MiB (an etcd request is at most 1.5 MiB).
	MaxKeys       int
	MaxBytes      int64
	MaxValueBytes int
	// RetryMin and RetryMax bound the delay of Run between sessions; default
	// 50 ms, 5 s.
	RetryMin, RetryMax time.Duration
	// OnError is told by Run why a session ended.
	OnError func(error)
}

// Validate reports every problem of the configuration.
func (c WatcherConfig) Validate() error {
	var problems []error
	if c.Prefix == "" {
		problems = append(problems, errors.New("check watcher: prefix is empty; name the keys to follow"))
	}
	if c.PageSize < 0 || c.PageBytes < 0 || c.MaxKeys < 0 || c.MaxBytes < 0 || c.MaxValueBytes < 0 {
		problems = append(problems, fmt.Errorf("check watcher %s: a page size or limit is negative; use 0 for the default", c.Prefix))
	}
	if c.RetryMin < 0 || c.RetryMax < 0 {
		problems = append(problems, fmt.Errorf("check watcher %s: retry min %s and retry max %s must not be negative; use 0 for the default",
			c.Prefix, c.RetryMin, c.RetryMax))
	}
	return errors.Join(problems...)
}

func (c WatcherConfig) withDefaults() WatcherConfig {
	c.PageSize = orDefault(c.PageSize, 5000)
	c.PageBytes = orDefault(c.PageBytes, 2<<20)
	c.MaxKeys = orDefault(c.MaxKeys, 1_000_000)
	c.MaxBytes = orDefault(c.MaxBytes, 512<<20)
	c.MaxValueBytes = orDefault(c.MaxValueBytes, 2<<20)
	return c
}

// Update is what a watcher tells its sink. The slice is valid during the call
// only; the keys and values in it may be kept.
type Update struct {
	// Changes are differences to everything accepted before, to be applied in
	// order. An update without changes reports progress.
	Changes []Change
	// Synced says that with this update the sink has exactly what the store had
	// at Revision. It is set once per complete listing.
	Synced bool
	// Complete says that nothing is missing up to Revision. Only the pages of a
	// listing before its last one are not complete.
	Complete bool
	// Revision is the store's revision the update belongs to.
	Revision int64
}

// Watcher follows a prefix. It remembers, over sessions and over lives of
// servers, which keys its sink has accepted and a hash of their values, so that
// each session yields the difference and nothing else: a reconnect without
// changes yields one empty Update with Synced set.
//
// Keys are taken away only by a deletion seen live, or at the end of a complete
// listing without them: a lost connection, a failed listing or a server that
// lost its data and was not listed to its end deletes nothing. Only when
// unfinished listings have left more than the limits allow are the keys taken
// away that no complete listing had.
//
// A watcher is for one goroutine at a time; Len may be called by any.
type Watcher struct {
	cfg   WatcherConfig
	known known
}

// NewWatcher returns a watcher that knows nothing. The configuration must be
// valid.
func NewWatcher(cfg WatcherConfig) *Watcher {
	cfg = cfg.withDefaults()
	return &Watcher{cfg: cfg, known: newKnown(cfg)}
}

// Len returns the number of keys the sink has.
func (w *Watcher) Len() int { return int(w.known.count.Load()) }

// Run follows for ever: it begins a new session with backoff whenever one ends
// and returns nil when ctx does. It suits readers that recover by themselves
// (an embedded store); a Conn does not, so its owner dials anew and calls
// Follow.
func (w *Watcher) Run(ctx context.Context, r Reader, sink func(Update) error) error {
	backoff := Backoff{Min: w.cfg.RetryMin, Max: w.cfg.RetryMax}
	for {
		err := w.Follow(ctx, r, func(u Update) error {
			err := sink(u)
			if err == nil && u.Synced {
				backoff.Reset()
			}
			return err
		})
		if ctx.Err() != nil {
			return nil
		}
		if w.cfg.OnError != nil {
			w.cfg.OnError(err)
		}
		if backoff.Sleep(ctx) != nil {
			return nil
		}
	}
}

// Follow is one session: it lists the prefix completely at one revision and
// then watches from the next one on, telling sink every difference. Compaction
// is answered with another listing. The session is bound to the life of its
// first reply: ErrLifeChanged ends it. So does an error of the reader, an error
// of the sink (which then is taken to not have accepted that update), a reply
// that breaks the protocol and a *QuotaError. Follow returns that error, or
// ctx's.
func (w *Watcher) Follow(ctx context.Context, r Reader, sink func(Update) error) error {
	s := session{w: w, reader: r, sink: sink, limit: min(firstPage, w.cfg.PageSize)}
	for futile := 0; ; futile++ {
		live, err := s.round(ctx)
		if !errors.Is(err, ErrCompacted) || s.sinkErr != nil || futile == maxFutile {
			return fmt.Errorf("follow %s: %w", w.cfg.Prefix, err)
		}
		if live {
			futile = 0
		}
	}
}

const (
	// firstPage is asked for before the weight of keys is known.
	firstPage = 500
	// maxFutile is how many listings in a row may be lost to compaction before
	// the session ends, which makes the caller slow down.
	maxFutile = 8
)

// session is one run of Follow.
type session struct {
	w       *Watcher
	reader  Reader
	sink    func(Update) error
	sinkErr error
	life    uint64 // of the first reply
	at      int64  // the highest revision seen
	limit   int64  // keys to ask for in the next page
}

// round lists and watches once. It reports whether the watch brought anything.
func (s *session) round(ctx context.Context) (live bool, err error) {
	revision, err := s.list(ctx)
	if err != nil {
		return false, err
	}
	next := revision + 1
	err = s.reader.Watch(ctx, s.w.cfg.Prefix, PrefixEnd(s.w.cfg.Prefix), next, func(c Changes) error {
		live = live || len(c.Changes) > 0
		return s.live(c, &next)
	})
	if s.sinkErr != nil {
		err = s.sinkErr
	}
	return live, err
}

// live takes one reply of the watch; next is the lowest revision it may bring.
func (s *session) live(c Changes, next *int64) error {
	if err := s.admit(c.Life, c.Revision, *next-1); err != nil {
		return err
	}
	progress := c.Revision >= *next
	for _, change := range c.Changes {
		if change.ModRevision < *next {
			return fmt.Errorf("check change of %s: revision %d came after %d", shownKey(change.Key), change.ModRevision, *next)
		}
		*next = change.ModRevision
	}
	*next = max(*next, c.Revision+1)
	changes, err := s.w.known.apply(c.Changes)
	if err != nil {
		return err
	}
	if len(changes) == 0 && !progress {
		s.w.known.commit()
		return nil
	}
	return s.tell(Update{Changes: changes, Complete: true, Revision: c.Revision})
}

// admit holds every reply to the life of the first, and to a revision that does
// not go back behind least.
func (s *session) admit(life uint64, revision, least int64) error {
	if s.life == 0 {
		s.life = life
	}
	if life != s.life {
		return fmt.Errorf("%w: cluster id %x after %x", ErrLifeChanged, life, s.life)
	}
	if revision < least {
		return fmt.Errorf("%w: revision %d after %d", ErrLifeChanged, revision, least)
	}
	s.at = max(s.at, revision)
	return nil
}

// tell hands u to the sink and keeps the watcher's knowledge equal to what the
// sink accepted.
func (s *session) tell(u Update) error {
	if err := s.sink(u); err != nil {
		s.w.known.rollback()
		s.sinkErr = err
		return err
	}
	s.w.known.commit()
	return nil
}

// list delivers the whole prefix at one revision, which it returns.
func (s *session) list(ctx context.Context) (int64, error) {
	if left := s.w.known.beginList(); len(left) > 0 {
		if err := s.tell(Update{Changes: left, Revision: s.at}); err != nil {
			return 0, err
		}
	}
	start, revision := s.w.cfg.Prefix, int64(0)
	for {
		page, err := s.page(ctx, start, revision)
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = page.Revision
		}
		if err := s.deliver(page, revision); err != nil {
			return 0, err
		}
		if !page.More {
			return revision, nil
		}
		s.resize(page.KVs)
		start = page.KVs[len(page.KVs)-1].Key + "\x00"
	}
}

// deliver tells what is new in a page, with the last one also what is gone.
func (s *session) deliver(page Range, revision int64) error {
	changes, err := s.w.known.list(page.KVs)
	if err != nil {
		return err
	}
	if !page.More {
		changes = s.w.known.dropStale(changes)
		return s.tell(Update{Changes: changes, Synced: true, Complete: true, Revision: revision})
	}
	if len(changes) == 0 {
		s.w.known.commit()
		return nil
	}
	return s.tell(Update{Changes: changes, Revision: revision})
}

// page asks for one page, in ever smaller ones while replies are too large.
func (s *session) page(ctx context.Context, start string, revision int64) (Range, error) {
	end := PrefixEnd(s.w.cfg.Prefix)
	for {
		page, err := s.reader.Range(ctx, start, end, s.limit, revision)
		if errors.Is(err, ErrReplyTooLarge) && s.limit > 1 {
			s.limit /= 2
			continue
		}
		if err == nil {
			err = s.check(page, start)
		}
		return page, err
	}
}

// check refuses a page that is not what a store may answer; without it a broken
// or hostile server could keep the listing going for ever.
func (s *session) check(page Range, start string) error {
	if err := s.admit(page.Life, page.Revision, s.at); err != nil {
		return err
	}
	if page.More && len(page.KVs) == 0 {
		return fmt.Errorf("check page from %s: it is empty but announces more keys", shownKey(start))
	}
	for _, kv := range page.KVs {
		if kv.Key < start || !strings.HasPrefix(kv.Key, s.w.cfg.Prefix) {
			return fmt.Errorf("check page from %s: key %s is out of place", shownKey(start), shownKey(kv.Key))
		}
		start = kv.Key + "\x00"
	}
	return nil
}

// resize chooses the next page by the weight of the last one. It at most
// doubles, so that one page of small keys does not make the next too large.
func (s *session) resize(kvs []KV) {
	weight := int64(1)
	for _, kv := range kvs {
		weight += int64(len(kv.Key) + len(kv.Value))
	}
	fitting := s.w.cfg.PageBytes * int64(len(kvs)) / weight
	s.limit = max(1, min(fitting, 2*s.limit, s.w.cfg.PageSize))
}
