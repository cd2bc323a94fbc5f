package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// markerRetry is how soon markers are asked for again that could not be read:
// Cilium's apiserver and older ones of ours do not let us.
const markerRetry = time.Minute

// followMarker hands the core the cluster's markers. Nothing else depends on it,
// so it ends no connection.
func (r *remote) followMarker(ctx context.Context, conn connection) error {
	for ctx.Err() == nil {
		w := kvstore.NewWatcher(oneKey(schema.MarkerPrefix(r.name)))
		err := w.Follow(ctx, conn, func(u kvstore.Update) error { return r.takeMarkers(ctx, u) })
		r.log().Debug("markers cannot be followed", "cluster", r.name, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(markerRetry):
		}
	}
	return ctx.Err()
}

func (r *remote) takeMarkers(ctx context.Context, u kvstore.Update) error {
	for _, ch := range u.Changes {
		if ch.Deleted || ch.Key != schema.MarkerKey(r.name) {
			continue
		}
		m, err := schema.DecodeMarker(r.name, ch.Value)
		if err != nil {
			r.log().Warn("marker is not understood", "cluster", r.name, "err", err)
			continue
		}
		if err := r.core.do(ctx, func(c *core) { c.marked(r.name, m, ch.ModRevision) }); err != nil {
			return err
		}
	}
	return nil
}

// errNoMarker says that a cluster writes no markers.
var errNoMarker = errors.New("it writes no markers; nothing can wait for a cluster of Cilium's or of an older version")

// newestMarker reads a cluster's marker as it is now.
func newestMarker(ctx context.Context, conn connection, name string) (schema.Marker, error) {
	found, err := conn.Range(ctx, schema.MarkerKey(name), "", 1, 0)
	switch {
	case err != nil:
		return schema.Marker{}, fmt.Errorf("read the newest marker: %w", err)
	case len(found.KVs) == 0:
		return schema.Marker{}, errNoMarker
	}
	return schema.DecodeMarker(name, found.KVs[0].Value)
}

// answerMarkers reads the newest marker for those who ask.
func (r *remote) answerMarkers(ctx context.Context, conn connection) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ask := <-r.newest:
			m, err := newestMarker(ctx, conn, r.name)
			ask <- newest{m, err}
		}
	}
}

// newest is a cluster's marker as it was when it was asked for.
type newest struct {
	marker schema.Marker
	err    error
}
