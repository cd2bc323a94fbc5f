package agent

import (
	"context"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
)

// sideReader reads what is little and seldom of a cluster that keeps to the
// protocol: its announcement, heartbeat, canaries, markers and nodes. It pays for
// each reply from a purse of its own, so that neither does a flood of these take
// more than the cluster's share, nor does a long list of services make heartbeats
// come late.
type sideReader struct {
	connection
	flow *flow
}

// What such replies may take at once, and what each costs besides its content: a
// turn of the core.
const (
	sideBurst = 100 * time.Millisecond
	replyCost = 20 * time.Microsecond
)

// Range implements [kvstore.Reader].
func (r sideReader) Range(ctx context.Context, start, end string, limit, revision int64) (kvstore.Range, error) {
	out, err := r.connection.Range(ctx, start, end, limit, revision)
	bytes := 0
	for _, kv := range out.KVs {
		bytes += len(kv.Key) + len(kv.Value)
	}
	if paid := r.flow.paySide(ctx, len(out.KVs), bytes); err == nil {
		err = paid
	}
	return out, err
}

// Watch implements [kvstore.Reader].
func (r sideReader) Watch(ctx context.Context, start, end string, revision int64, fn func(kvstore.Changes) error) error {
	return r.connection.Watch(ctx, start, end, revision, func(c kvstore.Changes) error {
		bytes := 0
		for _, ch := range c.Changes {
			bytes += len(ch.Key) + len(ch.Value)
		}
		if err := r.flow.paySide(ctx, len(c.Changes), bytes); err != nil {
			return err
		}
		return fn(c)
	})
}

// paySide waits until a reply is paid for.
func (f *flow) paySide(ctx context.Context, n, bytes int) error {
	return f.await(ctx, f.side.Take(replyCost+readingCost(n, bytes)))
}
