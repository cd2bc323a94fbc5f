package server

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// kvsField is the number of RangeResponse.kvs in etcd's rpc.proto.
const kvsField = 2

// rangeChunk is how many keys are read from the store at a time.
const rangeChunk = 512

// debtorsChunk is as much for a reader in debt.
const debtorsChunk = 64

// listing is a request for a range, reduced to what we understand of it.
type listing struct {
	span      span
	limit     int64
	revision  int64
	keysOnly  bool
	countOnly bool
}

// parseRange makes a listing from a request, or says what it may not ask for.
func (g *gateway) parseRange(c *conn, r *pb.RangeRequest) (listing, error) {
	if len(r.Key) == 0 {
		c.refuse(refusedPermission)
		return listing{}, rpctypes.ErrGRPCEmptyKey
	}
	if err := g.tooLong(c, r.Key, r.RangeEnd); err != nil {
		return listing{}, err
	}
	s, ok := spanOf(r.Key, r.RangeEnd)
	if !ok || !c.grant.allows(s) {
		return listing{}, g.deny(c, r.Key, r.RangeEnd)
	}
	switch {
	case r.SortTarget != pb.RangeRequest_KEY || r.SortOrder == pb.RangeRequest_DESCEND:
		return listing{}, g.unsupported(c, "a sort order other than ascending by key")
	case r.MinModRevision|r.MaxModRevision|r.MinCreateRevision|r.MaxCreateRevision != 0:
		return listing{}, g.unsupported(c, "a filter by revision")
	}
	return listing{
		span: s, limit: max(r.Limit, 0), revision: max(r.Revision, 0), keysOnly: r.KeysOnly, countOnly: r.CountOnly,
	}, nil
}

// serveRange answers KV.Range. Differences to etcd: a page may end before its
// limit (more is set then), and count is the exact number of keys only if the
// listing is complete or asked for the count alone; otherwise it is the number
// returned plus one, because counting the rest would make paging quadratic.
func (g *gateway) serveRange(ctx context.Context, r *pb.RangeRequest) (*frame, error) {
	g.metrics.requests.WithLabelValues(kindRange).Inc()
	c, err := connOf(ctx)
	if err != nil {
		return nil, err
	}
	l, err := g.parseRange(c, r)
	if err != nil {
		return nil, err
	}
	paid, err := g.admitRange(ctx, c)
	if err != nil {
		return nil, err
	}
	defer releaseRange(c)
	f, err := g.answer(ctx, c, l)
	c.spend(-paid)
	if err == nil {
		g.pause(ctx, charge(c, f.parts.Len()))
	}
	return f, err
}

// answer reads from the store while it holds one of the slots of all.
func (g *gateway) answer(ctx context.Context, c *conn, l listing) (*frame, error) {
	defer func() { <-g.ranges }()
	if g.life.enter() != nil {
		return nil, errStopping()
	}
	defer g.life.leave()
	if l.countOnly {
		return g.count(ctx, c, l)
	}
	return g.list(ctx, c, l)
}

// admitRange waits for one of the connection's slots for listings and one of
// its peer's, then until both have read most of what they asked for before and
// owe no processor time, then for one of the slots of all. The order matters:
// checked before it has its slot, a burst of requests would pass all at once. It
// returns what was paid for the listing.
func (g *gateway) admitRange(ctx context.Context, c *conn) (paid time.Duration, err error) {
	a := c.account()
	var taken []chan struct{}
	for _, slots := range []chan struct{}{c.ranges, a.ranges, g.ranges} {
		if slots == g.ranges {
			if err = g.awaitReader(ctx, c); err == nil {
				var wait time.Duration
				paid, wait = c.payListing()
				g.pause(ctx, wait)
			}
		}
		if err == nil && slots != nil {
			err = g.takeSlot(ctx, slots)
		}
		if err != nil {
			for _, s := range taken {
				<-s
			}
			c.spend(-paid)
			return 0, err
		}
		if slots != nil {
			taken = append(taken, slots)
		}
	}
	return paid, nil
}

// releaseRange gives back the slots of the connection and its peer.
func releaseRange(c *conn) {
	if a := c.account(); a.ranges != nil {
		<-a.ranges
	}
	<-c.ranges
}

func (g *gateway) takeSlot(ctx context.Context, slots chan<- struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-g.closing:
		return errStopping()
	}
}

// awaitReader waits until the connection, and all of its peer, have read most
// of what they asked for. Who does not read is cut by the connections' guard.
func (g *gateway) awaitReader(ctx context.Context, c *conn) error {
	if err := g.awaitMeter(ctx, c.unread, g.cfg.Limits.UnreadBytes); err != nil {
		return err
	}
	a := c.account()
	return g.awaitMeter(ctx, a.unread, a.limits.UnreadBytes)
}

func (g *gateway) awaitMeter(ctx context.Context, m *meter, limit int64) error {
	waited := false
	for m.n.Load() > limit {
		waited = true
		select {
		case <-m.fewer:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-g.closing:
			return errStopping()
		}
	}
	if waited {
		m.wake() // others may wait for the same token
	}
	return nil
}

// list reads the range in chunks at one revision and encodes each key once.
func (g *gateway) list(ctx context.Context, c *conn, l listing) (*frame, error) {
	page := &page{listing: l, conn: c, chunk: chunkFor(c), soft: g.cfg.Limits.ReplyBytes, hard: g.cfg.Limits.UnpagedBytes}
	if err := g.walk(ctx, page, page.add); err != nil {
		page.parts.Free()
		return nil, err
	}
	return g.rangeFrame(page.response(g.header(page.header)), page.parts)
}

// walk reads a listing part by part, each at the reader's expense, and lets take
// say where it goes on.
func (g *gateway) walk(ctx context.Context, page *page, take func(part) (next string, err error)) error {
	windows, asked := page.conn.grant.visible(page.span), page.revision
	for next := page.span.start; next != ""; {
		begin, size := time.Now(), page.size
		found, err := g.life.read(ctx, windows, next, page.options(), page.chunk)
		if err != nil {
			return rangeError(err)
		}
		if page.header == 0 {
			page.header = found.rev
			page.pin(found.rev)
		}
		if next, err = take(found); err != nil {
			page.conn.refuse(refusedSize)
			return err
		}
		most := mostForReading(found.looked, page.size-size)
		if found.sparse && asked > 0 && asked < found.rev {
			most = max(most, longestLook) // at keys that did not exist yet
		}
		page.pay(min(time.Since(begin), most))
		if next != "" {
			page.chunk = g.breathe(ctx, page.conn)
		}
	}
	page.conn.account().listing.Store(int64(page.busy))
	return nil
}

// longestLook is the most that is paid where it is unknown how much was looked at:
// what some hundred thousand keys take. Longer lists end with such a look, so it
// must not be what an honest reader waits for.
const longestLook = 20 * time.Millisecond

// mostForReading is the most that is paid for looking at so many keys and
// encoding so many bytes together: what takes longer waited for the store, which
// is being written to, or for a processor.
func mostForReading(keys, bytes int) time.Duration {
	return 200*time.Microsecond + 5*time.Microsecond*time.Duration(keys) + 4*time.Duration(bytes)
}

func chunkFor(c *conn) int64 {
	if c.owes() {
		return debtorsChunk
	}
	return rangeChunk
}

// breathe lets others come in between two chunks of a listing of a reader in
// debt, also to its slot. It returns how large the next chunk may be.
func (g *gateway) breathe(ctx context.Context, c *conn) (chunk int64) {
	wait := c.purses.Take(0)
	if wait == 0 {
		return rangeChunk
	}
	<-g.ranges
	g.pause(ctx, min(wait, breath))
	g.ranges <- struct{}{}
	return debtorsChunk
}

func (g *gateway) rangeFrame(r *pb.RangeResponse, kvs mem.BufferSlice) (*frame, error) {
	head, err := proto.Marshal(r)
	if err != nil {
		kvs.Free()
		return nil, status.Errorf(codes.Internal, "encode reply: %v", err)
	}
	return &frame{parts: append(mem.BufferSlice{mem.SliceBuffer(head)}, kvs...)}, nil
}

func rangeError(err error) error {
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		return rpctypes.ErrGRPCCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		return rpctypes.ErrGRPCFutureRev
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Errorf(codes.Internal, "list store: %v", err)
}

// page is the reply to a listing while it is being put together.
type page struct {
	listing
	conn   *conn
	soft   int // size at which a page with a limit ends early
	hard   int // size at which a listing without limit fails
	parts  mem.BufferSlice
	size   int
	n      int64
	more   bool
	header int64         // the store's revision when it began
	chunk  int64         // keys to be read next
	busy   time.Duration // what it took
}

func (p *page) pay(took time.Duration) {
	p.busy += took
	p.conn.spend(took)
}

// options reads one chunk, plus one key to know whether there are more.
func (p *page) options() mvcc.RangeOptions {
	return mvcc.RangeOptions{Rev: p.revision, Limit: p.want() + 1, FastKeysOnly: p.keysOnly}
}

func (p *page) want() int64 {
	if p.limit == 0 {
		return p.chunk
	}
	return min(p.chunk, p.limit-p.n)
}

// pin makes later chunks read at the revision of the first.
func (p *page) pin(rev int64) {
	if p.revision == 0 {
		p.revision = rev
	}
}

// add encodes a part and returns the key to go on from, "" at the end.
func (p *page) add(found part) (next string, err error) {
	kvs, want := found.kvs, p.want()
	rest := int64(len(kvs)) > want
	if rest {
		kvs = kvs[:want]
	}
	b, taken, err := p.encode(kvs)
	if err != nil {
		return "", err
	}
	if len(b) > 0 {
		p.parts = append(p.parts, p.conn.buffer(b))
	}
	p.n += int64(taken)
	rest = rest || taken < len(kvs)
	p.more = rest && p.limit > 0 && (p.n >= p.limit || p.size >= p.soft)
	switch {
	case p.more:
		return "", nil
	case !rest:
		return found.next, nil
	}
	return string(kvs[taken-1].Key) + "\x00", nil
}

// encode appends keys as fields of a RangeResponse until the page is full.
func (p *page) encode(kvs []*mvccpb.KeyValue) (b []byte, taken int, err error) {
	size := 0
	for _, kv := range kvs {
		if taken > 0 && p.limit > 0 && p.size+size >= p.soft {
			break
		}
		size += 12 + proto.Size(kv)
		taken++
	}
	if p.limit == 0 && p.size+size > p.hard {
		return nil, 0, status.Errorf(codes.ResourceExhausted, "listing is larger than %d bytes: set a limit and read pages", p.hard)
	}
	if taken == 0 {
		return nil, 0, nil
	}
	b = make([]byte, 0, max(size, smallestBuffer))
	for _, kv := range kvs[:taken] {
		b = protowire.AppendTag(b, kvsField, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(proto.Size(kv)))
		if b, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(b, kv); err != nil {
			return nil, 0, status.Errorf(codes.Internal, "encode key: %v", err)
		}
	}
	p.size += len(b)
	return b, taken, nil
}

// response is the reply without its keys.
func (p *page) response(h *pb.ResponseHeader) *pb.RangeResponse {
	r := &pb.RangeResponse{Header: h, Count: p.n, More: p.more}
	if p.more {
		r.Count++
	}
	return r
}
