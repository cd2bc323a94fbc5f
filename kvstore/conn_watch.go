package kvstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
)

// Watch implements Reader with a stream of its own. It asks for a server that
// has a leader, as Cilium's client does, for large replies in fragments, and of
// more than one key for progress.
func (c *Conn) Watch(ctx context.Context, start, end string, revision int64, fn func(Changes) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream, on the server too
	stream, err := c.openWatch(ctx, start, end, revision)
	if err != nil {
		return fmt.Errorf("watch %q at %w", start, c.fail(ctx, err))
	}
	w := watching{conn: c, from: revision, fn: fn}
	for {
		reply, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch %q from revision %d at %w", start, revision, c.fail(ctx, err))
		}
		if err := w.take(reply); err != nil {
			return fmt.Errorf("watch %q from revision %d at %s: %w", start, revision, c.endpoint, err)
		}
	}
}

func (c *Conn) openWatch(ctx context.Context, start, end string, revision int64) (etcdserverpb.Watch_WatchClient, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	stream, err := c.watch.Watch(ctx)
	if err != nil {
		return nil, err
	}
	create := &etcdserverpb.WatchCreateRequest{
		Key: []byte(start), RangeEnd: []byte(end), StartRevision: revision, Fragment: true, ProgressNotify: end != "",
	}
	err = stream.Send(&etcdserverpb.WatchRequest{
		RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: create},
	})
	return stream, err
}

// watching is one watch: it turns replies into Changes of whole revisions.
type watching struct {
	conn    *Conn
	from    int64 // the revision asked for
	fn      func(Changes) error
	created bool
	id      int64
	at      int64           // the watch is complete up to this revision
	held    []*mvccpb.Event // of one revision, of which more may follow
	heldFor int             // what they cost
}

func (w *watching) take(reply *etcdserverpb.WatchResponse) error {
	if err := w.conn.admit(reply.GetHeader()); err != nil {
		return err
	}
	switch {
	case reply.CompactRevision != 0:
		return fmt.Errorf("%w: up to %d", ErrCompacted, reply.CompactRevision)
	case reply.Canceled:
		return canceled(reply.CancelReason)
	case reply.Created:
		return w.begin(reply)
	case !w.created || reply.WatchId != w.id:
		return fmt.Errorf("reply is for watch %d, which was not asked for", reply.WatchId)
	case len(reply.Events) == 0 && len(w.held) == 0:
		return w.progress(reply.Header.Revision)
	}
	return w.events(reply)
}

func canceled(reason string) error {
	if strings.Contains(reason, rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted)) {
		return ErrCompacted
	}
	if reason == "" {
		reason = "no reason given"
	}
	return fmt.Errorf("server canceled the watch: %s", foreign(reason))
}

// begin answers the creation. A server behind the revision asked for has lost
// data; it would stay silent until it has written as much again.
func (w *watching) begin(reply *etcdserverpb.WatchResponse) error {
	if w.created {
		return errors.New("server created a watch twice")
	}
	w.created, w.id = true, reply.WatchId
	w.at = reply.Header.Revision
	if w.from > 0 {
		w.at = min(w.at, w.from-1)
	}
	return w.tell(nil)
}

func (w *watching) progress(revision int64) error {
	if revision < w.at {
		return fmt.Errorf("%w: revision %d after %d", ErrLifeChanged, revision, w.at)
	}
	w.at = revision
	return w.tell(nil)
}

// events holds back the events of the last revision while more fragments
// follow, for they may belong to the same revision.
func (w *watching) events(reply *etcdserverpb.WatchResponse) error {
	whole := len(reply.Events)
	if reply.Fragment {
		whole = lastRevision(reply.Events)
		if whole == 0 && sameRevision(w.held, reply.Events) {
			return w.hold(reply.Events)
		}
	}
	complete := append(w.held, reply.Events[:whole]...)
	w.held, w.heldFor = nil, 0
	if err := w.hold(reply.Events[whole:]); err != nil || len(complete) == 0 {
		return err
	}
	w.at = complete[len(complete)-1].GetKv().GetModRevision()
	return w.tell(complete)
}

// lastRevision returns where the events of the last revision begin.
func lastRevision(events []*mvccpb.Event) int {
	at := len(events)
	for at > 0 && events[at-1].GetKv().GetModRevision() == events[len(events)-1].GetKv().GetModRevision() {
		at--
	}
	return at
}

// sameRevision tells whether events go on with the revision of those held.
func sameRevision(held, events []*mvccpb.Event) bool {
	return len(held) == 0 || len(events) == 0 || held[0].GetKv().GetModRevision() == events[0].GetKv().GetModRevision()
}

// heldMessages is how many largest messages one revision may be made of.
const heldMessages = 4

// eventBytes is what an event takes in memory besides its key and value.
const eventBytes = 256

// hold keeps events until their revision is complete, in bounds: the server alone
// decides how many there are.
func (w *watching) hold(events []*mvccpb.Event) error {
	for _, e := range events {
		e.PrevKv = nil // it was not asked for
		w.heldFor += eventBytes + len(e.GetKv().GetKey()) + len(e.GetKv().GetValue())
	}
	if w.heldFor > heldMessages*w.conn.cfg.MaxRecvBytes {
		return fmt.Errorf("%w: one revision of more than %d bytes; raise MaxRecvBytes (now %d)",
			ErrReplyTooLarge, heldMessages*w.conn.cfg.MaxRecvBytes, w.conn.cfg.MaxRecvBytes)
	}
	w.held = append(w.held, events...)
	return nil
}

func (w *watching) tell(events []*mvccpb.Event) error {
	changes := make([]Change, len(events))
	for i, e := range events {
		changes[i] = Change{KV: fromWire(e.GetKv()), Deleted: e.GetType() == mvccpb.Event_DELETE}
	}
	return w.fn(Changes{Changes: changes, Revision: w.at, Life: w.conn.Life()})
}
