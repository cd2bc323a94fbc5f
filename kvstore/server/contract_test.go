package server

import (
	"context"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/kvstoretest"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// forget drops what was before a revision.
func (r *ring) forget(before int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.n > 0 && r.at(0).rev < before {
		r.dropOldest()
	}
	r.floor = max(r.floor, before)
	r.wake()
}

// compact makes etcd and the ring forget what was before a revision.
func (w *world) compact(ctx context.Context, rev int64) error {
	l := w.s.life.Load()
	_, err := l.etcd.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true})
	eventually(w.t, "ring follows the store", func() bool { _, _, head := l.ring.stats(); return head >= rev })
	l.ring.forget(rev)
	return err
}

func TestContractInProcess(t *testing.T) {
	kvstoretest.Run(t, func(t *testing.T) kvstoretest.Fixture {
		w := start(t)
		return kvstoretest.Fixture{Store: w.s.Store(), Compact: w.compact}
	})
}

func TestContractThroughGateway(t *testing.T) {
	kvstoretest.Run(t, func(t *testing.T) kvstoretest.Fixture {
		w := start(t)
		c, err := kvstore.Dial(w.ctx(), kvstore.ConnConfig{
			Endpoints: []string{"https://" + w.s.Addr().String()}, TLS: w.ca.clientTLS("remote"),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return kvstoretest.Fixture{Store: w.s.Store(), Reader: c, Compact: w.compact}
	})
}
