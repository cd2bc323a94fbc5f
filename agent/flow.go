package agent

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/purse"
)

// flow is how fast one cluster's changes are taken. They are handed to the core
// in pieces that take little time, one piece a turn. When they take more than
// the cluster's share of the processors nothing more is read from it until that
// is paid for: a flood costs the one who sends it his freshness, and nobody else
// anything.
type flow struct {
	purse *purse.Purse // nil for the own cluster, which has no limit
	side  *purse.Purse // for all that is no service, see sideReader
	piece int          // how many changes are handed over next; of the remote's goroutine
	put   atomic.Int64 // nanoseconds for which changes were put off
}

const (
	// pieceTime is what a piece should take the core: other clusters' changes wait
	// for it.
	pieceTime  = 100 * time.Microsecond
	firstPiece = 16
	mostPiece  = 256
	leastOfOne = 8
	pieceBytes = 64 << 10
	// changeCost and byteCost are what reading a change takes.
	changeCost = 3 * time.Microsecond
	byteCost   = 3 * time.Nanosecond
	// mostPerChange, mostPerByte and mostPerRecord bound what a piece may be charged
	// for: if it took longer, others had the processor. Records are those of the
	// services that changed, for a change of one has all of them looked at.
	mostPerChange = 30 * time.Microsecond
	mostPerByte   = 100 * time.Nanosecond
	mostPerRecord = time.Microsecond
)

// readingCost is what reading so many changes of so many bytes takes.
func readingCost(n, bytes int) time.Duration {
	return time.Duration(n)*changeCost + time.Duration(bytes)*byteCost
}

func newFlow(cfg Config, cluster string) *flow {
	f := &flow{piece: firstPiece}
	if cluster != cfg.ClusterName {
		f.purse = purse.New(cfg.ClusterShare, cfg.ClusterBurst)
		f.side = purse.New(cfg.ClusterShare, min(cfg.ClusterBurst, sideBurst))
	}
	return f
}

// putOff says for each cluster how long its changes were put off.
func (c *core) putOff() map[string]time.Duration {
	out := map[string]time.Duration{}
	for name, l := range c.links {
		out[name] = time.Duration(l.flow.put.Load())
	}
	return out
}

// cut returns how many changes make the next piece, and their size.
func (f *flow) cut(changes []kvstore.Change) (n, bytes int) {
	for n < min(len(changes), f.piece) {
		more := len(changes[n].Key) + len(changes[n].Value)
		if n > 0 && bytes+more > pieceBytes {
			break
		}
		n, bytes = n+1, bytes+more
	}
	return n, bytes
}

// piece is a part of an update that the core took in one turn.
type piece struct {
	changes, bytes int
	records        int // that it had looked at, see [mesh.Mesh.Work]
	services       int // that they are of
	took           time.Duration
}

// price is what the cluster pays for a piece.
func (p piece) price() time.Duration {
	return min(p.took, time.Duration(p.changes)*mostPerChange+time.Duration(p.bytes)*mostPerByte+time.Duration(p.records)*mostPerRecord)
}

// settle notes what a piece took the core, and reading took before it, and waits
// until the cluster has paid for both.
func (f *flow) settle(ctx context.Context, p piece, read time.Duration) error {
	if p.changes > 0 {
		least := 1
		if p.services <= 1 { // changes of one service cost little more than one of them
			least = leastOfOne
		}
		f.piece = max(least, min(2*f.piece, mostPiece, int(int64(p.changes)*int64(pieceTime)/max(1, int64(p.took)))))
	}
	return f.await(ctx, f.purse.Take(p.price()+read))
}

// await puts what comes next off.
func (f *flow) await(ctx context.Context, wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	f.put.Add(int64(wait))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// deliver hands the core what comes into the box until that is closed and empty.
func (r *remote) deliver(ctx context.Context, box *inbox, synced *bool) error {
	for {
		updates, read := box.take(ctx)
		if len(updates) == 0 {
			return ctx.Err()
		}
		for _, u := range updates {
			if err := r.deliverOne(ctx, u, read); err != nil {
				return err
			}
			read = 0
			*synced = *synced || u.Synced
		}
	}
}

// deliverOne hands over an update, by pieces.
func (r *remote) deliverOne(ctx context.Context, u kvstore.Update, read time.Duration) error {
	changes := latest(u.Changes)
	for {
		var p piece
		p.changes, p.bytes = r.flow.cut(changes)
		n, part := p.changes, u
		last := n == len(changes)
		part.Changes, part.Complete, part.Synced = changes[:n], u.Complete && last, u.Synced && last
		took, err := r.core.turn(ctx, func(c *core) { p.records, p.services = c.update(r.name, part) })
		if p.took = took; err == nil {
			err = r.flow.settle(ctx, p, read)
		}
		if changes, read = changes[n:], 0; err != nil || len(changes) == 0 {
			return err
		}
	}
}

// latest leaves only the last change of each key, in order. It may reorder what
// lies before them.
func latest(changes []kvstore.Change) []kvstore.Change {
	if len(changes) < 2 {
		return changes
	}
	seen := make(map[string]struct{}, len(changes))
	first := len(changes)
	for i, ch := range slices.Backward(changes) {
		if _, later := seen[ch.Key]; !later {
			seen[ch.Key] = struct{}{}
			first--
			changes[first], changes[i] = changes[i], changes[first]
		}
	}
	return changes[first:]
}
