package apiserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

const (
	// stampInterval is how often a marker is written although nothing changes.
	stampInterval = 5 * time.Second
	// stampGap is the least time between two markers that nobody asked for.
	stampGap = 200 * time.Millisecond
	// stampRetry is how soon a marker that could not be written is tried again.
	stampRetry = 500 * time.Millisecond
)

// stamps makes stamps that only grow, over all lives of the store in this
// process. It is safe for concurrent use.
type stamps struct {
	mu   sync.Mutex
	last int64
}

func (s *stamps) next(now time.Time) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last+1, now.UnixMicro())
	return s.last
}

// stamper writes the marker of one life behind everything that the core has
// exported. One goroutine runs it.
type stamper struct {
	key         string
	store       kvstore.Store
	publishers  map[schema.Kind]*kvstore.Publisher
	stamps      *stamps
	incarnation func() uint64
	// meet returns when the core has exported everything that it was handed before
	// the call.
	meet    func(context.Context) error
	note    func(schema.Marker, error)
	changed chan struct{}       // a token: something was exported since
	asks    chan chan<- stamped // of ask
	began   int64               // the first stamp, 0 before
}

// stamped is the outcome of a stamp that was asked for.
type stamped struct {
	marker schema.Marker
	err    error
}

func (a *apiserver) newStamper(l *life) *stamper {
	return &stamper{
		key: schema.MarkerKey(a.config.ClusterName), store: l.server.Store(), publishers: l.publishers, stamps: &a.stamps,
		incarnation: l.server.ClusterID, meet: a.core.meet, note: a.status.setMarker,
		changed: make(chan struct{}, 1), asks: make(chan chan<- stamped),
	}
}

// touch says that something was exported.
func (s *stamper) touch() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// ask returns a marker that stands behind everything that the core has been
// handed before the call.
func (s *stamper) ask(ctx context.Context) (schema.Marker, error) {
	answer := make(chan stamped, 1)
	select {
	case s.asks <- answer:
	case <-ctx.Done():
		return schema.Marker{}, fmt.Errorf("wait for a marker: %w", ctx.Err())
	}
	select {
	case got := <-answer:
		return got.marker, got.err
	case <-ctx.Done():
		return schema.Marker{}, fmt.Errorf("wait for a marker: %w", ctx.Err())
	}
}

// run writes markers until ctx ends.
func (s *stamper) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for {
		var asked []chan<- stamped
		select {
		case <-ctx.Done():
			return nil
		case one := <-s.asks:
			asked = append(asked, one)
		case <-timer.C:
		case <-s.changed:
			if wait := time.Until(last.Add(stampGap)); wait > 0 {
				timer.Reset(wait)
				continue
			}
		}
		asked = s.moreAsked(asked)
		got := s.write(ctx, len(asked) > 0)
		for _, one := range asked {
			one <- got
		}
		last = time.Now()
		timer.Reset(pauseAfter(got.err))
	}
}

func pauseAfter(err error) time.Duration {
	if err != nil {
		return stampRetry
	}
	return stampInterval
}

// moreAsked takes those who are waiting already: one marker serves all of them.
func (s *stamper) moreAsked(asked []chan<- stamped) []chan<- stamped {
	for {
		select {
		case one := <-s.asks:
			asked = append(asked, one)
		default:
			return asked
		}
	}
}

// write writes a marker, or says why it cannot.
func (s *stamper) write(ctx context.Context, asked bool) stamped {
	m, err := s.mark(ctx, asked)
	if ctx.Err() == nil {
		s.note(m, err)
	}
	return stamped{m, err}
}

// mark takes the stamp first, so that everything that had been said by then is
// behind the marker.
func (s *stamper) mark(ctx context.Context, asked bool) (schema.Marker, error) {
	m := schema.Marker{Stamp: schema.Stamp{Micros: s.stamps.next(time.Now()), Incarnation: s.incarnation()}, Begun: s.began, Asked: asked}
	if s.began == 0 {
		m.Begun = m.Micros
	}
	if err := s.flush(ctx); err != nil {
		return schema.Marker{}, err
	}
	if err := s.store.Apply(ctx, []kvstore.Op{{Key: s.key, Value: m.Encode()}}); err != nil {
		return schema.Marker{}, fmt.Errorf("write the marker: %w", err)
	}
	s.began = m.Begun
	return m, nil
}

// flush returns when the store has everything that the core was handed. A record
// that the store refuses keeps markers back, for nobody could say then that all
// is programmed.
func (s *stamper) flush(ctx context.Context) error {
	if err := s.meet(ctx); err != nil {
		return err
	}
	for kind, p := range s.publishers {
		refused, err := p.Flush(ctx)
		if err != nil {
			return err
		}
		if refused > 0 {
			return fmt.Errorf("write a marker behind everything: the store refuses records of %[2]s, %[1]d of them; see the log for the reason", refused, kind)
		}
	}
	return nil
}
