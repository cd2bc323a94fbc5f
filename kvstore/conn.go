package kvstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Conn is a connection to one etcd server, made by [Dial]. It reads through the
// etcd v3 API (etcdserverpb) and implements Reader.
//
// One Conn is one transport connection to one server in one life: it never
// reconnects. When the transport breaks, when the server stops answering, or
// when a reply carries another cluster id, the Conn is over: Done is closed,
// Err tells why and every call fails. Dial again then. Its methods are safe for
// concurrent use.
type Conn struct {
	cfg      ConnConfig
	endpoint string
	grpc     *grpc.ClientConn
	wire     *transport
	kv       etcdserverpb.KVClient
	watch    etcdserverpb.WatchClient
	life     atomic.Uint64

	done   chan struct{}
	err    atomic.Pointer[error]
	ended  atomic.Bool
	cancel context.CancelFunc
	pinger chan struct{} // closed when the pinger has ended
}

// errClosed ends a Conn that its owner closed.
var errClosed = errors.New("connection closed")

// Endpoint returns the endpoint, as configured, that answered.
func (c *Conn) Endpoint() string { return c.endpoint }

// Life returns the cluster id that every reply of this Conn carries.
func (c *Conn) Life() uint64 { return c.life.Load() }

// Done is closed when the Conn is over.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the Conn is over, and nil while it is not.
func (c *Conn) Err() error {
	if err := c.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Invoke makes another call on the connection than those of a Reader; it implements
// [grpc.ClientConnInterface]. The error is gRPC's.
func (c *Conn) Invoke(ctx context.Context, method string, request, reply any, opts ...grpc.CallOption) error {
	return c.grpc.Invoke(ctx, method, request, reply, opts...)
}

// NewStream is for streams what Invoke is for calls with one reply.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.grpc.NewStream(ctx, desc, method, opts...)
}

// Close ends the Conn, every call and watch on it, and waits for its
// goroutines.
func (c *Conn) Close() error {
	c.end(errClosed)
	if c.pinger != nil {
		<-c.pinger
	}
	return nil
}

// end makes the Conn over; the first reason stays.
func (c *Conn) end(reason error) {
	if !c.ended.CompareAndSwap(false, true) {
		return
	}
	c.err.Store(&reason)
	close(c.done)
	c.cancel()
	c.wire.Close()
	c.grpc.Close() //nolint:errcheck // it only says that it was closed before
}

// fail explains err of a call: the end of ctx by its error, a known condition by its sentinel, a broken
// transport by what broke it.
func (c *Conn) fail(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", c.endpoint, ctx.Err())
	}
	if sentinel := translate(err); sentinel != nil {
		return fmt.Errorf("%s: %w (%w)", c.endpoint, sentinel, foreignError{err})
	}
	if over := c.Err(); over != nil {
		return fmt.Errorf("%s: %w", c.endpoint, over)
	}
	return fmt.Errorf("%s: %w", c.endpoint, foreignError{c.wire.cause(err)})
}

func translate(err error) error {
	s := status.Convert(err)
	switch {
	case s.Message() == rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted):
		return ErrCompacted
	case s.Message() == rpctypes.ErrorDesc(rpctypes.ErrGRPCFutureRev):
		return ErrLifeChanged
	case s.Code() == codes.ResourceExhausted && strings.Contains(s.Message(), "message larger than max"):
		return ErrReplyTooLarge
	}
	return nil
}

// admit holds every reply to the cluster id of the first. A server without one
// cannot be told from another and is refused.
func (c *Conn) admit(h *etcdserverpb.ResponseHeader) error {
	life := h.GetClusterId()
	if life == 0 {
		return errors.New("reply has no cluster id; the server is not etcd, or a proxy that hides it")
	}
	if c.life.CompareAndSwap(0, life) || c.life.Load() == life {
		return nil
	}
	err := fmt.Errorf("%w: cluster id %x after %x", ErrLifeChanged, life, c.life.Load())
	c.end(err)
	return err
}

// Get returns one key and whether it exists.
func (c *Conn) Get(ctx context.Context, key string) (KV, bool, error) {
	r, err := c.Range(ctx, key, "", 1, 0)
	if err != nil || len(r.KVs) == 0 {
		return KV{}, false, err
	}
	return r.KVs[0], true, nil
}

// Range implements Reader. The error wraps ErrCompacted, ErrReplyTooLarge or
// ErrLifeChanged where these apply.
func (c *Conn) Range(ctx context.Context, start, end string, limit, revision int64) (Range, error) {
	reply, err := c.kv.Range(ctx, &etcdserverpb.RangeRequest{
		Key: []byte(start), RangeEnd: []byte(end), Limit: limit, Revision: revision,
	})
	if err != nil {
		return Range{}, fmt.Errorf("range %q at %w", start, c.fail(ctx, err))
	}
	if err := c.admit(reply.GetHeader()); err != nil {
		return Range{}, fmt.Errorf("range %q at %s: %w", start, c.endpoint, err)
	}
	if limit > 0 && int64(len(reply.Kvs)) > limit {
		return Range{}, fmt.Errorf("range %q at %s: %d keys came although at most %d were asked for", start, c.endpoint, len(reply.Kvs), limit)
	}
	kvs := make([]KV, len(reply.Kvs))
	for i, kv := range reply.Kvs {
		kvs[i] = fromWire(kv)
	}
	return Range{KVs: kvs, Revision: reply.Header.Revision, Life: reply.Header.ClusterId, More: reply.More}, nil
}

func fromWire(kv *mvccpb.KeyValue) KV {
	return KV{Key: string(kv.GetKey()), Value: kv.GetValue(), ModRevision: kv.GetModRevision()}
}
