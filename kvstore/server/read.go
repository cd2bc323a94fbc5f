package server

import (
	"context"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// part is a piece of a listing.
type part struct {
	kvs    []*mvccpb.KeyValue // those that may be seen
	rev    int64              // the store's
	looked int                // keys that were looked at, seen or not, and ranges, in keys
	sparse bool               // a range was looked at to its end, and how many keys were skipped there is unknown
	next   string             // where it goes on, "" at the end
}

// rangeKeys is what asking etcd for a range costs beside its keys, in keys.
const rangeKeys = 8

// read returns keys of the windows from the given key on, at most o.Limit of
// them, all of one revision. It ends early when it has looked at most keys, for
// those that may not be seen cost as much.
func (l *life) read(ctx context.Context, windows []window, from string, o mvcc.RangeOptions, most int64) (p part, err error) {
	want := o.Limit
	i := sort.Search(len(windows), func(i int) bool { return windows[i].end > from })
	for ; i < len(windows); i++ {
		w := windows[i]
		for p.next = max(w.start, from); p.next < w.end; {
			if int64(len(p.kvs)) >= want || int64(p.looked) >= most {
				return p, nil
			}
			o.Limit = want - int64(len(p.kvs))
			if w.services != nil {
				o.Limit = most - int64(p.looked)
			}
			if o.Rev, err = l.readRange(ctx, &p, w, o); err != nil {
				return part{}, err
			}
		}
	}
	p.next = ""
	if p.rev == 0 {
		p.rev, err = l.probe(ctx, o.Rev)
	}
	return p, err
}

// readRange adds to a part what etcd gives of a window, and returns the revision
// that it was read at.
func (l *life) readRange(ctx context.Context, p *part, w window, o mvcc.RangeOptions) (at int64, err error) {
	r, err := l.etcd.KV().Range(ctx, []byte(p.next), []byte(w.end), o)
	if err != nil {
		return 0, err
	}
	p.rev, at = pinned(p.rev, o.Rev, r.Rev)
	p.kvs = appendShown(p.kvs, w, r.KVs)
	p.looked += len(r.KVs) + rangeKeys
	p.next = w.end
	if int64(len(r.KVs)) < o.Limit {
		p.sparse = true
	} else {
		p.next = string(r.KVs[len(r.KVs)-1].Key) + "\x00"
	}
	return at, nil
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

// count answers a listing that asks for the number of keys alone. etcd would
// count without a pause, and keep writers waiting meanwhile.
func (g *gateway) count(ctx context.Context, c *conn, l listing) (*frame, error) {
	l.keysOnly, l.limit = true, 0
	page := &page{listing: l, conn: c, chunk: chunkFor(c)}
	err := g.walk(ctx, page, func(p part) (next string, err error) {
		page.n += int64(len(p.kvs))
		return p.next, nil
	})
	if err != nil {
		return nil, err
	}
	return g.rangeFrame(&pb.RangeResponse{Header: g.header(page.header), Count: page.n}, nil)
}
