package server

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// read returns the first keys of the windows from the given key on, at most
// o.Limit of them, all of one revision, and the store's revision.
func (l *life) read(ctx context.Context, windows []window, from string, o mvcc.RangeOptions) (kvs []*mvccpb.KeyValue, rev int64, err error) {
	want := o.Limit
	for _, w := range windows {
		for next := max(w.start, from); next < w.end && int64(len(kvs)) < want; {
			o.Limit = want - int64(len(kvs))
			r, err := l.etcd.KV().Range(ctx, []byte(next), []byte(w.end), o)
			if err != nil {
				return nil, 0, err
			}
			rev, o.Rev = pinned(rev, o.Rev, r.Rev)
			kvs = appendShown(kvs, w, r.KVs)
			if int64(len(r.KVs)) < o.Limit {
				break
			}
			next = string(r.KVs[len(r.KVs)-1].Key) + "\x00"
		}
	}
	if rev == 0 {
		rev, err = l.probe(ctx, o.Rev)
	}
	return kvs, rev, err
}

// pinned keeps the revision of the first read for those after it.
func pinned(rev, asked, found int64) (first, at int64) {
	if rev == 0 {
		rev = found
	}
	if asked == 0 {
		asked = rev
	}
	return rev, asked
}

func appendShown(kvs []*mvccpb.KeyValue, w window, found []*mvccpb.KeyValue) []*mvccpb.KeyValue {
	if w.services == nil && kvs == nil {
		return found
	}
	for _, kv := range found {
		if w.shows(string(kv.Key)) {
			kvs = append(kvs, kv)
		}
	}
	return kvs
}

// probe returns the store's revision, and an error if it has not the one asked
// for, as a listing that finds nothing does.
func (l *life) probe(ctx context.Context, asked int64) (int64, error) {
	r, err := l.etcd.KV().Range(ctx, []byte{0}, nil, mvcc.RangeOptions{Rev: asked, CountOnly: true})
	if err != nil {
		return 0, err
	}
	return r.Rev, nil
}

// count answers a listing that asks for the number of keys alone.
func (g *gateway) count(ctx context.Context, c *conn, l listing) (*frame, error) {
	n, rev, at := int64(0), int64(0), l.revision
	for _, w := range c.grant.visible(l.span) {
		found, now, err := g.life.countWindow(ctx, w, at)
		if err != nil {
			return nil, rangeError(err)
		}
		n += found
		rev, at = pinned(rev, at, now)
	}
	if rev == 0 {
		var err error
		if rev, err = g.life.probe(ctx, at); err != nil {
			return nil, rangeError(err)
		}
	}
	return g.rangeFrame(&pb.RangeResponse{Header: g.header(rev), Count: n}, nil)
}

func (l *life) countWindow(ctx context.Context, w window, at int64) (n, rev int64, err error) {
	partly := w.services != nil // then the names must be seen
	r, err := l.etcd.KV().Range(ctx, []byte(w.start), []byte(w.end), mvcc.RangeOptions{Rev: at, CountOnly: !partly, FastKeysOnly: partly})
	if err != nil {
		return 0, 0, err
	}
	if !partly {
		return int64(r.Count), r.Rev, nil
	}
	return int64(len(appendShown(nil, w, r.KVs))), r.Rev, nil
}
