package kvstore_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/clustermesh/clustermesh/kvstore"
)

// etcdServer serves a Memory through the etcd API: what a Conn needs of it.
type etcdServer struct {
	etcdserverpb.UnimplementedKVServer
	etcdserverpb.UnimplementedWatchServer
	store     *kvstore.Memory
	noCluster bool // headers without a cluster id
	fragment  int  // events per fragment of a watch reply; 0 for no fragments
	ranges    atomic.Int64

	mu      sync.Mutex
	headers []metadata.MD // of watch streams
}

func (s *etcdServer) header(life uint64, revision int64) *etcdserverpb.ResponseHeader {
	if s.noCluster {
		life = 0
	}
	return &etcdserverpb.ResponseHeader{ClusterId: life, MemberId: 1, Revision: revision, RaftTerm: 1}
}

func (s *etcdServer) Range(ctx context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	s.ranges.Add(1)
	got, err := s.store.Range(ctx, string(r.Key), string(r.RangeEnd), r.Limit, r.Revision)
	switch {
	case errors.Is(err, kvstore.ErrCompacted):
		return nil, rpctypes.ErrGRPCCompacted
	case errors.Is(err, kvstore.ErrLifeChanged):
		return nil, rpctypes.ErrGRPCFutureRev
	case err != nil:
		return nil, err
	}
	reply := &etcdserverpb.RangeResponse{Header: s.header(got.Life, got.Revision), More: got.More, Count: int64(len(got.KVs))}
	for _, kv := range got.KVs {
		reply.Kvs = append(reply.Kvs, toWire(kv))
	}
	return reply, nil
}

func toWire(kv kvstore.KV) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(kv.Key), Value: kv.Value, ModRevision: kv.ModRevision}
}

func (s *etcdServer) Watch(stream etcdserverpb.Watch_WatchServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	s.mu.Lock()
	s.headers = append(s.headers, md)
	s.mu.Unlock()
	create := request.GetCreateRequest()
	const id = 7
	first := true
	err = s.store.Watch(stream.Context(), string(create.Key), string(create.RangeEnd), create.StartRevision, func(c kvstore.Changes) error {
		header := s.header(c.Life, c.Revision)
		if first {
			first = false
			if err := stream.Send(&etcdserverpb.WatchResponse{Header: header, WatchId: id, Created: true}); err != nil {
				return err
			}
			if len(c.Changes) == 0 {
				return nil
			}
		}
		return s.send(stream, &etcdserverpb.WatchResponse{Header: header, WatchId: id, Events: events(c.Changes)})
	})
	if errors.Is(err, kvstore.ErrCompacted) {
		r, _ := s.store.Range(stream.Context(), "x", "", 1, 0)
		return s.compacted(stream, id, s.header(r.Life, r.Revision))
	}
	return err
}

func events(changes []kvstore.Change) (out []*mvccpb.Event) {
	for _, c := range changes {
		kind := mvccpb.Event_PUT
		if c.Deleted {
			kind = mvccpb.Event_DELETE
		}
		out = append(out, &mvccpb.Event{Type: kind, Kv: toWire(c.KV)})
	}
	return out
}

func (s *etcdServer) send(stream etcdserverpb.Watch_WatchServer, reply *etcdserverpb.WatchResponse) error {
	for s.fragment > 0 && len(reply.Events) > s.fragment {
		part := &etcdserverpb.WatchResponse{Header: reply.Header, WatchId: reply.WatchId, Fragment: true, Events: reply.Events[:s.fragment]}
		if err := stream.Send(part); err != nil {
			return err
		}
		reply.Events = reply.Events[s.fragment:]
	}
	return stream.Send(reply)
}

// compacted answers as etcd does: created, then canceled, the stream stays.
func (s *etcdServer) compacted(stream etcdserverpb.Watch_WatchServer, id int64, h *etcdserverpb.ResponseHeader) error {
	if err := stream.Send(&etcdserverpb.WatchResponse{Header: h, WatchId: id, Created: true}); err != nil {
		return err
	}
	if err := stream.Send(&etcdserverpb.WatchResponse{Header: h, WatchId: id, Canceled: true, CompactRevision: h.Revision}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// serve starts the server on loopback and returns its address.
func serve(t testing.TB, s *etcdServer, secure *tls.Config) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, secure, listener)
	return listener.Addr().String()
}

func serveOn(t testing.TB, s *etcdServer, secure *tls.Config, listener net.Listener) {
	var options []grpc.ServerOption
	if secure != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(secure)))
	}
	server := grpc.NewServer(options...)
	etcdserverpb.RegisterKVServer(server, s)
	etcdserverpb.RegisterWatchServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
}

func dial(t testing.TB, cfg kvstore.ConnConfig) *kvstore.Conn {
	t.Helper()
	conn, err := kvstore.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func dialMemory(t testing.TB, s *etcdServer) *kvstore.Conn {
	t.Helper()
	return dial(t, kvstore.ConnConfig{Endpoints: []string{"http://" + serve(t, s, nil)}})
}
