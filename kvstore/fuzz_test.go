package kvstore

import (
	"net"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/clustermesh/clustermesh/kvstore/cost"
)

// FuzzWatchReplies feeds a watch what a hostile server may send: length-prefixed
// messages. Nothing may panic, and the completeness told must not go back.
func FuzzWatchReplies(f *testing.F) {
	header := &etcdserverpb.ResponseHeader{ClusterId: 1, Revision: 5}
	event := func(revision int64) *mvccpb.Event {
		return &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("p/a"), ModRevision: revision}}
	}
	f.Add(stream(f, &etcdserverpb.WatchResponse{Header: header, Created: true},
		&etcdserverpb.WatchResponse{Header: header, Fragment: true, Events: []*mvccpb.Event{event(6), event(7)}},
		&etcdserverpb.WatchResponse{Header: header, Events: []*mvccpb.Event{event(7), nil, event(8)}}))
	f.Add(stream(f, &etcdserverpb.WatchResponse{Header: header, Created: true, Canceled: true, CompactRevision: 3}))
	f.Fuzz(func(t *testing.T, data []byte) {
		end, far := net.Pipe()
		far.Close()
		conn, err := newConn(ConnConfig{MaxRecvBytes: 1 << 16}, target{host: "h", port: "1"}, end)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		complete := int64(-1 << 62)
		w := watching{conn: conn, from: 6, fn: func(c Changes) error {
			if len(c.Changes) == 0 && c.Revision < complete {
				t.Fatalf("complete up to %d after %d", c.Revision, complete)
			}
			complete = c.Revision
			return nil
		}}
		for len(data) > 0 {
			message, n := protowire.ConsumeBytes(data)
			if n < 0 {
				return
			}
			data = data[n:]
			var reply etcdserverpb.WatchResponse
			bad := false
			cost.Bounded(t, len(message), 0, func() {
				bad = (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(message)}, &reply) != nil || w.take(&reply) != nil
			})
			if bad {
				return
			}
		}
	})
}

func stream(f *testing.F, replies ...*etcdserverpb.WatchResponse) (out []byte) {
	for _, reply := range replies {
		raw, err := proto.Marshal(reply)
		if err != nil {
			f.Fatal(err)
		}
		out = protowire.AppendBytes(out, raw)
	}
	return out
}

// FuzzDecodeRange checks that a reply is either refused or built within bounds.
func FuzzDecodeRange(f *testing.F) {
	raw, _ := proto.Marshal(&etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{ClusterId: 1},
		Kvs: []*mvccpb.KeyValue{{Key: []byte("some/key"), Value: []byte("v"), ModRevision: 3}}})
	f.Add(raw)
	f.Add([]byte{0x12, 0, 0x12, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var reply etcdserverpb.RangeResponse
		var err error
		cost.Bounded(t, len(data), 0, func() { err = codec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, &reply) })
		if err == nil && len(reply.Kvs)*minElementBytes > len(data) {
			t.Fatalf("%d keys out of %d bytes", len(reply.Kvs), len(data))
		}
	})
}
