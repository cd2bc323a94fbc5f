package source

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// feeds are those of a source that runs.
type feeds struct {
	mu    sync.Mutex
	queue *queue // nil before the source runs
	all   map[string]*feed
}

func (f *feeds) begin(q *queue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue, f.all = q, map[string]*feed{}
}

func (f *feeds) add(one *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[one.resource] = one
}

func (f *feeds) get(resource string) (*feed, *queue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[resource], f.queue
}

// errNotRunning says that a source was asked before it ran.
var errNotRunning = errors.New("the source does not run yet; try again")

// CatchUp returns when the sink has taken everything that the API server had,
// when it was called, of the kinds that services are made of: namespaces,
// services and endpoint slices. It lists them anew and waits until the watches
// have brought at least that. It fails if the API server does not answer, or
// with ctx.
func (k *Kubernetes) CatchUp(ctx context.Context) error {
	for _, r := range k.always() {
		f, q := k.feeds.get(r.name)
		if f == nil {
			return errNotRunning
		}
		list, err := r.list(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("list %s: %w; check the API server", r.name, plain(err))
		}
		now, err := snapshotOf(list)
		if err != nil {
			return fmt.Errorf("list %s: %w", r.name, err)
		}
		if err := q.await(ctx, func() bool { return now.reached(f) }); err != nil {
			return fmt.Errorf("wait until the watch of %s has brought what the API server has: %w", r.name, err)
		}
	}
	_, q := k.feeds.get("")
	if err := q.flush(ctx); err != nil {
		return fmt.Errorf("wait until what was read is taken: %w", err)
	}
	return nil
}

// snapshot is what a list says: its version, the highest of its objects, and
// which objects there are.
type snapshot struct {
	version, highest uint64
	present          map[key]struct{}
}

func snapshotOf(list runtime.Object) (snapshot, error) {
	s := snapshot{present: map[key]struct{}{}}
	head, err := meta.ListAccessor(list)
	if err != nil {
		return s, err
	}
	if s.version, err = versionOf(head.GetResourceVersion()); err != nil {
		return s, err
	}
	return s, meta.EachListItem(list, func(object runtime.Object) error {
		o, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		version, err := versionOf(o.GetResourceVersion())
		s.highest = max(s.highest, version)
		s.present[keyOf(o)] = struct{}{}
		return err
	})
}

// versionOf reads a resource version as Kubernetes lets clients compare them; an
// empty one, which only stand-ins for an API server have, is before all others.
func versionOf(text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resource version %q: not a number, so it cannot be compared", text)
	}
	return n, nil
}

// reached reports whether a feed has everything that the list had. Changes of
// one kind come in the order of their versions, so one that is as new as the
// newest object comes after all of them. What the list lacks and the feed has is
// either newer or on its way out.
func (s snapshot) reached(f *feed) bool {
	if f.seen < s.highest {
		return false
	}
	for k, object := range f.known {
		if _, there := s.present[k]; there {
			continue
		}
		o, ok := object.(metav1.Object)
		if !ok {
			continue
		}
		if version, err := versionOf(o.GetResourceVersion()); err == nil && version <= s.version {
			return false
		}
	}
	return true
}

// see notes the version of a change. One that is no number is not counted, and
// then CatchUp says so.
func (f *feed) see(version string) {
	if n, err := versionOf(version); err == nil {
		f.seen = max(f.seen, n)
	}
}
