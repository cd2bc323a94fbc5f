package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/clustermesh/clustermesh/kvstore"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/protobuf/proto"
)

var (
	errNotStarted = errors.New("store is not started")
	errStopped    = errors.New("store is stopped")
)

// store is the in-process way into the embedded etcd. Writes go through etcd's
// request checks and raft log (at most 16384 keys and 8 MiB a transaction),
// listings to its multi-version store, watches to the ring that the gateway's
// readers use too.
type store struct{ server *Server }

var _ kvstore.Store = store{}

// Range implements [kvstore.Reader].
func (s store) Range(ctx context.Context, start, end string, limit, revision int64) (kvstore.Range, error) {
	l, err := s.server.enter()
	if err != nil {
		return kvstore.Range{}, err
	}
	defer l.leave()
	opts := mvcc.RangeOptions{Rev: revision}
	if limit > 0 {
		opts.Limit = limit + 1
	}
	span := spanFor(start, end)
	found, err := l.etcd.KV().Range(ctx, []byte(span.start), []byte(span.end), opts)
	if err != nil {
		return kvstore.Range{}, storeError(err)
	}
	r := kvstore.Range{Revision: found.Rev, Life: l.cluster}
	if limit > 0 && int64(len(found.KVs)) > limit {
		found.KVs, r.More = found.KVs[:limit], true
	}
	for _, kv := range found.KVs {
		r.KVs = append(r.KVs, kvOf(kv))
	}
	return r, nil
}

func kvOf(kv *mvccpb.KeyValue) kvstore.KV {
	return kvstore.KV{Key: string(kv.Key), Value: kv.Value, ModRevision: kv.ModRevision}
}

func storeError(err error) error {
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		return kvstore.ErrCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		return kvstore.ErrLifeChanged
	}
	return fmt.Errorf("list embedded etcd: %w", err)
}

// spanFor reads etcd's spelling of a range: no end is a single key, the end
// "\x00" everything from start on, which a span writes as the empty end.
func spanFor(start, end string) span {
	switch end {
	case "":
		return keySpan(start)
	case "\x00":
		return span{start: start}
	}
	return span{start, end}
}

// Watch implements [kvstore.Reader]. A revision of 0 means from now on.
func (s store) Watch(ctx context.Context, start, end string, from int64, fn func(kvstore.Changes) error) error {
	l, err := s.server.enter()
	if err != nil {
		return err
	}
	now := l.etcd.KV().Rev()
	l.leave()
	if from <= 0 {
		from = now + 1
	}
	if err := fn(kvstore.Changes{Revision: min(now, from-1), Life: l.cluster}); err != nil {
		return err
	}
	return l.follow(ctx, spanFor(start, end), from, s.server.cfg.Limits.ReplyBytes, fn)
}

// follow calls fn for everything in the ring from the given revision on, and
// waits for more, until something ends it.
func (l *life) follow(ctx context.Context, s span, from int64, maxBytes int, fn func(kvstore.Changes) error) error {
	for {
		v := l.ring.read(from, maxBytes, nil)
		if from < v.floor {
			return kvstore.ErrCompacted
		}
		if err := deliver(v, s, l.cluster, fn); err != nil {
			return err
		}
		if v.upTo >= from {
			from = v.upTo + 1
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ctx.Done():
			return errStopped
		case <-v.moved:
		}
	}
}

// deliver calls fn if the view holds a change of the range.
func deliver(v view, s span, life uint64, fn func(kvstore.Changes) error) error {
	changes, err := changesOf(v.revs, s)
	if err != nil || len(changes) == 0 {
		return err
	}
	return fn(kvstore.Changes{Changes: changes, Revision: v.upTo, Life: life})
}

func changesOf(revs []*revision, s span) ([]kvstore.Change, error) {
	var changes []kvstore.Change
	for _, r := range revs {
		for _, e := range r.events {
			if !s.has(e.key) {
				continue
			}
			var ev mvccpb.Event
			if err := proto.Unmarshal(r.wire[e.body:e.end], &ev); err != nil {
				return nil, fmt.Errorf("decode change of %q: %w", e.key, err)
			}
			changes = append(changes, kvstore.Change{KV: kvOf(ev.Kv), Deleted: e.deleted})
		}
	}
	return changes, nil
}

// Apply implements [kvstore.Writer]. A full store ends the server's life.
func (s store) Apply(ctx context.Context, ops []kvstore.Op) error {
	if len(ops) == 0 {
		return nil
	}
	l, err := s.server.enter()
	if err != nil {
		return err
	}
	defer l.leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	done, err := l.kv.Txn(ctx, txnOf(ops))
	if err == nil {
		l.commitBursts(ctx, ops, s.server.cfg.QuotaBytes)
		l.makeRoom(ctx, done.Header.Revision, s.server.cfg.QuotaBytes)
		return nil
	}
	err = fmt.Errorf("write %d keys to embedded etcd: %w", len(ops), err)
	if errors.Is(err, rpctypes.ErrGRPCNoSpace) {
		l.fail(fmt.Errorf("%w; raise the quota (--quota-backend-bytes, now %d) or publish less", err, s.server.cfg.QuotaBytes))
	}
	return err
}

func txnOf(ops []kvstore.Op) *pb.TxnRequest {
	txn := &pb.TxnRequest{Success: make([]*pb.RequestOp, 0, len(ops))}
	for _, op := range ops {
		txn.Success = append(txn.Success, requestOf(op))
	}
	return txn
}

func requestOf(op kvstore.Op) *pb.RequestOp {
	if op.Delete {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(op.Key)},
		}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
		RequestPut: &pb.PutRequest{Key: []byte(op.Key), Value: op.Value},
	}}
}
