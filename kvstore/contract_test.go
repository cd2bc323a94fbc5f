package kvstore_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/kvstoretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func compact(m *kvstore.Memory) func(context.Context, int64) error {
	return func(_ context.Context, revision int64) error {
		m.Compact(revision)
		return nil
	}
}

func TestMemoryContract(t *testing.T) {
	kvstoretest.Run(t, func(*testing.T) kvstoretest.Fixture {
		m := kvstore.NewMemory()
		return kvstoretest.Fixture{Store: m, Compact: compact(m)}
	})
}

func TestConnContract(t *testing.T) {
	kvstoretest.Run(t, func(t *testing.T) kvstoretest.Fixture {
		m := kvstore.NewMemory()
		return kvstoretest.Fixture{Store: m, Reader: dialMemory(t, &etcdServer{store: m, fragment: 3}), Compact: compact(m)}
	})
}
