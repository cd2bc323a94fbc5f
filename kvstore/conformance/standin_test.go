package conformance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/kvstore"
)

// standin is a small server of etcd's API over a store in memory. As made by
// newStandin it does what clients rely on; every field spoils one thing.
type standin struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	pb.UnimplementedLeaseServer

	store     *kvstore.Memory
	compacted int64
	granted   []keyRange
	watchable func(keyRange) bool
	writable  string // "put", "delete", "txn" or "lease"
	id        func(of string) uint64
	noKV      bool
	minPing   time.Duration

	onRange  func(*pb.RangeRequest, *pb.RangeResponse, error) (*pb.RangeResponse, error)
	onCreate func(*pb.WatchCreateRequest)
	onWatch  func(keyRange, *pb.WatchResponse)
	onOpen   func(keyRange) error // ends the call if it returns an error
}

const standinID = 0xabc

func newStandin(cluster string) *standin {
	s := &standin{
		store: kvstore.NewMemory(), minPing: time.Millisecond,
		granted: []keyRange{
			heartbeatRange(), prefixRange("cilium/state/"), {start: "cilium/cluster-config/" + cluster}, prefixRange("cilium/synced/" + cluster + "/"),
		},
		watchable: func(keyRange) bool { return true },
		id:        func(string) uint64 { return standinID },
		onRange:   func(_ *pb.RangeRequest, r *pb.RangeResponse, err error) (*pb.RangeResponse, error) { return r, err },
		onCreate:  func(*pb.WatchCreateRequest) {},
		onWatch:   func(keyRange, *pb.WatchResponse) {},
		onOpen:    func(keyRange) error { return nil },
	}
	return s
}

// revoke takes away the right to read what begins with a key.
func (s *standin) revoke(start string) {
	s.granted = slices.DeleteFunc(s.granted, func(r keyRange) bool { return r.start == start })
}

func (s *standin) allows(r keyRange) bool {
	return slices.ContainsFunc(s.granted, func(g keyRange) bool {
		return g == r || g.has(r.start) && (r.end == "" || r.end <= g.end)
	})
}

// Range implements pb.KVServer.
func (s *standin) Range(ctx context.Context, q *pb.RangeRequest) (*pb.RangeResponse, error) {
	r := keyRange{string(q.Key), string(q.RangeEnd)}
	if !s.allows(r) {
		return nil, rpctypes.ErrGRPCPermissionDenied
	}
	reply, err := s.read(ctx, r, q.Limit, q.Revision)
	return s.onRange(q, reply, err)
}

func (s *standin) read(ctx context.Context, r keyRange, limit, revision int64) (*pb.RangeResponse, error) {
	found, err := s.store.Range(ctx, r.start, r.end, limit, revision)
	switch {
	case errors.Is(err, kvstore.ErrCompacted):
		return nil, rpctypes.ErrGRPCCompacted
	case errors.Is(err, kvstore.ErrLifeChanged):
		return nil, rpctypes.ErrGRPCFutureRev
	}
	reply := &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: s.id(r.start), Revision: found.Revision}, More: found.More}
	for _, kv := range found.KVs {
		reply.Kvs = append(reply.Kvs, &mvccpb.KeyValue{Key: []byte(kv.Key), Value: kv.Value, ModRevision: kv.ModRevision})
	}
	return reply, err
}

// write answers a write that the suite asks for; none has an effect.
func (s *standin) write(kind string, allowed error) error {
	if s.writable == kind {
		return allowed
	}
	return rpctypes.ErrGRPCPermissionDenied
}

func (s *standin) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	return nil, s.write("put", rpctypes.ErrGRPCKeyNotFound)
}

func (s *standin) DeleteRange(context.Context, *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{ClusterId: standinID}}, s.write("delete", nil)
}

func (s *standin) Txn(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error) {
	return &pb.TxnResponse{Header: &pb.ResponseHeader{ClusterId: standinID}}, s.write("txn", nil)
}

func (s *standin) LeaseGrant(context.Context, *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return nil, s.write("lease", rpctypes.ErrGRPCLeaseTTLTooLarge)
}

// watching is one Watch call.
type watching struct {
	*standin
	pb.Watch_WatchServer
	sending sync.Mutex
	at      atomic.Int64 // the watch of the call has come this far
	over    chan error
}

// Watch implements pb.WatchServer, with one watch per call.
func (s *standin) Watch(call pb.Watch_WatchServer) error {
	w := &watching{standin: s, Watch_WatchServer: call, over: make(chan error, 2)}
	go func() { w.over <- w.receive() }()
	err := <-w.over
	if status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}

func (w *watching) receive() error {
	for {
		request, err := w.Recv()
		if err != nil {
			return err
		}
		if request.GetProgressRequest() != nil && w.at.Load() > 0 {
			err = w.send(keyRange{}, &pb.WatchResponse{WatchId: -1, Header: &pb.ResponseHeader{Revision: w.at.Load()}})
		}
		if create := request.GetCreateRequest(); create != nil {
			err = w.create(create)
		}
		if err != nil {
			return err
		}
	}
}

func (w *watching) send(r keyRange, reply *pb.WatchResponse) error {
	w.sending.Lock()
	defer w.sending.Unlock()
	if reply.Header == nil {
		reply.Header = &pb.ResponseHeader{Revision: w.store.Revision()}
	}
	reply.Header.ClusterId = w.id("watch")
	w.onWatch(r, reply)
	return w.Send(reply)
}

func (w *watching) create(q *pb.WatchCreateRequest) error {
	r := keyRange{string(q.Key), string(q.RangeEnd)}
	if !w.allows(r) || !w.watchable(r) {
		return w.send(r, &pb.WatchResponse{WatchId: -1, Created: true, Canceled: true, CancelReason: rpctypes.ErrGRPCPermissionDenied.Error()})
	}
	if err := w.send(r, &pb.WatchResponse{Created: true}); err != nil {
		return err
	}
	if err := w.onOpen(r); err != nil {
		return err
	}
	w.onCreate(q)
	go func() {
		err := w.store.Watch(w.Context(), r.start, r.end, q.StartRevision, func(c kvstore.Changes) error { return w.deliver(r, c) })
		if errors.Is(err, kvstore.ErrCompacted) {
			err = w.send(r, &pb.WatchResponse{Canceled: true, CompactRevision: w.compacted})
		}
		if err != nil {
			w.over <- err
		}
	}()
	return nil
}

func (w *watching) deliver(r keyRange, c kvstore.Changes) error {
	reply := &pb.WatchResponse{Header: &pb.ResponseHeader{Revision: c.Revision}}
	for _, change := range c.Changes {
		e := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(change.Key), Value: change.Value, ModRevision: change.ModRevision}}
		if change.Deleted {
			e.Type = mvccpb.Event_DELETE
		}
		reply.Events = append(reply.Events, e)
	}
	defer w.at.Store(c.Revision)
	if len(reply.Events) == 0 {
		return nil
	}
	return w.send(r, reply)
}

// serve answers until the listener is closed.
func (s *standin) serve(lis net.Listener) *grpc.Server {
	server := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: s.minPing, PermitWithoutStream: true}))
	if !s.noKV {
		pb.RegisterKVServer(server, s)
	}
	pb.RegisterWatchServer(server, s)
	pb.RegisterLeaseServer(server, s)
	go server.Serve(lis) //nolint:errcheck // it ends with the test
	return server
}

// front is the listener's side of a stand-in: TLS, and what can be wrong there.
type front struct {
	net.Listener
	tls                     *tls.Config
	plain, silent, pingless bool
}

// Accept implements net.Listener.
func (f *front) Accept() (net.Conn, error) {
	conn, err := f.Listener.Accept()
	switch {
	case err != nil:
		return nil, err
	case f.silent:
		conn.Close()
	case f.plain:
		return &sniffed{Conn: conn, in: bufio.NewReader(conn), tls: f.tls}, nil
	case f.pingless:
		return &pingless{Conn: tls.Server(conn, f.tls)}, nil
	}
	return tls.Server(conn, f.tls), nil
}

// sniffed is plain text or TLS, whichever comes.
type sniffed struct {
	net.Conn
	in     *bufio.Reader
	tls    *tls.Config
	begin  sync.Once
	chosen net.Conn
}

func (c *sniffed) choose() net.Conn {
	c.begin.Do(func() {
		c.chosen = readFrom{c.Conn, c.in}
		if first, err := c.in.Peek(1); err == nil && first[0] == 0x16 {
			c.chosen = tls.Server(c.chosen, c.tls)
		}
	})
	return c.chosen
}

func (c *sniffed) Read(p []byte) (int, error)  { return c.choose().Read(p) }
func (c *sniffed) Write(p []byte) (int, error) { return c.choose().Write(p) }

type readFrom struct {
	net.Conn
	in io.Reader
}

func (c readFrom) Read(p []byte) (int, error) { return c.in.Read(p) }

// pingless swallows HTTP/2 pings.
type pingless struct {
	net.Conn
	in    *http2
	ready bytes.Buffer
}

func (c *pingless) Read(p []byte) (int, error) {
	if c.in == nil {
		c.in = &http2{in: bufio.NewReader(c.Conn)}
		if _, err := io.CopyN(&c.ready, c.in.in, int64(len(preface))); err != nil {
			return 0, err
		}
	}
	for c.ready.Len() == 0 {
		head, err := c.in.in.Peek(9)
		if err != nil {
			return 0, err
		}
		head = bytes.Clone(head)
		f, err := c.in.receive()
		if err != nil {
			return 0, err
		}
		if f.kind != framePing || f.flags&flagAck != 0 {
			c.ready.Write(head)
			c.ready.Write(f.payload)
		}
	}
	return c.ready.Read(p)
}
