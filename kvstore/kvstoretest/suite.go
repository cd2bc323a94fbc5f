// Package kvstoretest is the contract of a kvstore.Store as tests: what the
// publisher and the watcher rely on, and that these work over it. Every store
// and every reader in the repository runs it.
package kvstoretest

import (
	"context"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
)

// Fixture is a store under test.
type Fixture struct {
	// Store is written to.
	Store kvstore.Store
	// Reader reads what Store writes, through whatever is under test; nil for
	// Store itself.
	Reader kvstore.Reader
	// Compact makes the store forget what was before a revision. It is required.
	Compact func(ctx context.Context, revision int64) error
	// Prefix is where tests write, "cilium/state/services/v1/contract/" when
	// empty. Each test uses a prefix of its own below it, so that fixtures may
	// share a store.
	Prefix string
}

// fixture is a Fixture prepared for one test.
type fixture struct {
	Fixture
	ctx context.Context
	t   *testing.T
}

// Run runs the contract. factory is called once per test, with the test's own t
// for its cleanups.
func Run(t *testing.T, factory func(t *testing.T) Fixture) {
	tests := []struct {
		name string
		test func(fixture)
	}{
		{"RangeEnds", testRangeEnds},
		{"Paging", testPaging},
		{"OldRevision", testOldRevision},
		{"Deletes", testDeletes},
		{"Transactions", testTransactions},
		{"NoChangeNoRevision", testNoChange},
		{"LifeIsStable", testLife},
		{"WatchFromRevision", testWatchFrom},
		{"WatchLive", testWatchLive},
		{"WatchSingleKey", testWatchSingle},
		{"WatchEnds", testWatchEnds},
		{"Compaction", testCompaction},
		{"ConcurrentWriters", testConcurrent},
		{"PublisherToWatcher", testPublisherToWatcher},
		{"PublisherTakesOver", testTakeOver},
		{"WatcherReconnects", testReconnect},
		{"ToldIsListed", testToldIsListed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.test(prepare(t, factory(t), test.name))
		})
	}
}

func prepare(t *testing.T, f Fixture, name string) fixture {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	if f.Reader == nil {
		f.Reader = f.Store
	}
	if f.Prefix == "" {
		f.Prefix = "cilium/state/services/v1/contract/"
	}
	f.Prefix += name + "/"
	return fixture{f, ctx, t}
}
