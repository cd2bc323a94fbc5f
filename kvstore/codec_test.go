package kvstore_test

import (
	"context"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/clustermesh/clustermesh/kvstore"
)

// stuffed answers a Range for "stuffed" with n empty keys.
type stuffed struct {
	*etcdServer
	n int
}

func (s stuffed) Range(_ context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	reply := &etcdserverpb.RangeResponse{Header: s.header(1, 1)}
	if string(r.Key) == "stuffed" {
		reply.Kvs = make([]*mvccpb.KeyValue, s.n)
		for i := range reply.Kvs {
			reply.Kvs[i] = &mvccpb.KeyValue{}
		}
	}
	if string(r.Key) == "many" {
		for range s.n {
			reply.Kvs = append(reply.Kvs, toWire(kvstore.KV{Key: "cilium/state/some/key", ModRevision: 1}))
		}
	}
	return reply, nil
}

func TestStuffedRepliesAreNotBuilt(t *testing.T) {
	events := make([]*mvccpb.Event, 100_000)
	for i := range events {
		events[i] = &mvccpb.Event{}
	}
	header := &etcdserverpb.ResponseHeader{ClusterId: 5, Revision: 9}
	conn := dialOdd(t, oddWatch{&etcdServer{store: kvstore.NewMemory()}, []*etcdserverpb.WatchResponse{
		{Header: header, Created: true}, {Header: header, Events: events}}})
	err := conn.Watch(t.Context(), "p/", "p0", 9, func(kvstore.Changes) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "no store sends such") {
		t.Fatalf("watch: %v", err)
	}
	conn = dialServices(t, stuffed{&etcdServer{}, 100_000})
	if _, err := conn.Range(t.Context(), "stuffed", "", 0, 0); err == nil || !strings.Contains(err.Error(), "100000 elements") {
		t.Fatalf("range: %v", err)
	}
	if _, err := conn.Range(t.Context(), "many", "", 10, 0); err == nil || !strings.Contains(err.Error(), "at most 10") {
		t.Fatalf("range: %v", err)
	}
	if r, err := conn.Range(t.Context(), "many", "", 0, 0); err != nil || len(r.KVs) != 100_000 {
		t.Fatalf("range without a limit: %d keys, %v", len(r.KVs), err)
	}
}
