package server

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// noWatch is the watch id of replies that concern no watch, as in etcd.
const noWatch = -1

// watcher is one watch of a stream.
type watcher struct {
	id       int64
	span     span
	grant    grant // of the connection: what it may know of
	next     int64 // the first revision not yet looked at
	born     int64 // the store's revision when it was created
	noPut    bool
	noDelete bool
	fragment bool
	progress bool // wants a reply from time to time even if nothing happens
	idle     bool // nothing was sent since the last progress tick
}

func (w *watcher) wants(e *event) bool {
	return w.span.has(e.key) && w.grant.sees(e.key) && !(e.deleted && w.noDelete) && !(!e.deleted && w.noPut)
}

// watchStream is one Watch call. Its own goroutine, the handler's, owns all of
// it and does all sending; a second one only receives.
type watchStream struct {
	g        *gateway
	c        *conn
	grpc     grpc.ServerStream
	watches  []*watcher // by age
	nextID   int64
	scratch  []*revision
	revision int64        // everything up to here is sent
	slow     *time.Timer  // closes the connection if a reply stays unread
	report   bool         // a progress reply is asked for
	target   int64        // the revision it must have reached
	next     atomic.Int64 // the first revision not sent; 0 without a watch
}

// serveWatch answers Watch.Watch.
func (g *gateway) serveWatch(s grpc.ServerStream) error {
	g.metrics.requests.WithLabelValues(kindWatch).Inc()
	c, err := connOf(s.Context())
	if err != nil {
		return err
	}
	ws := &watchStream{g: g, c: c, grpc: s}
	ws.slow = time.AfterFunc(time.Hour, func() { c.cut(refusedUnread) })
	ws.slow.Stop()
	g.streams.add(ws)
	defer ws.close()
	reqs, done := make(chan *pb.WatchRequest), make(chan error, 1)
	go receive(s, reqs, done)
	return ws.run(reqs, done)
}

// receive passes on requests until the call ends. It does not read ahead: a
// reader that floods us with requests waits for our replies.
func receive(s grpc.ServerStream, reqs chan<- *pb.WatchRequest, done chan<- error) {
	for {
		req := new(pb.WatchRequest)
		if err := s.RecvMsg(req); err != nil {
			done <- err
			return
		}
		select {
		case reqs <- req:
		case <-s.Context().Done():
			return
		}
	}
}

func (ws *watchStream) close() {
	ws.slow.Stop()
	ws.g.streams.remove(ws)
	ws.forget(len(ws.watches))
}

// forget gives back n watches.
func (ws *watchStream) forget(n int) {
	ws.c.watches.Add(-int64(n))
	ws.c.account().watches.Add(-int64(n))
	ws.g.metrics.watches.Sub(float64(n))
}

func (ws *watchStream) run(reqs <-chan *pb.WatchRequest, done <-chan error) error {
	tick := time.NewTicker(ws.g.cfg.Limits.ProgressInterval)
	defer tick.Stop()
	for {
		moved, err := ws.catchUp()
		if err != nil {
			return err
		}
		select {
		case req := <-reqs:
			ws.c.spend(requestCost)
			if err = ws.g.pace(ws.grpc.Context(), ws.c); err == nil {
				err = ws.handle(req)
			}
		case err := <-done:
			return endOf(err)
		case <-moved:
		case <-tick.C:
			err = ws.tick()
		case <-ws.grpc.Context().Done():
			return rpctypes.ErrGRPCWatchCanceled
		case <-ws.g.closing:
			return errStopping()
		}
		if err != nil {
			return err
		}
	}
}

// endOf translates why receiving ended.
func endOf(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case isEnd(err):
		return rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

// catchUp sends one reply's worth of history to the watches that lack it. It
// returns a channel that is closed when there is more to send, now or later.
func (ws *watchStream) catchUp() (<-chan struct{}, error) {
	if len(ws.watches) == 0 {
		ws.report = false
		ws.next.Store(0)
		return nil, nil
	}
	from := ws.watches[0].next
	for _, w := range ws.watches {
		from = min(from, w.next)
	}
	ws.next.Store(from)
	v := ws.g.life.ring.read(from, ws.g.cfg.Limits.ReplyBytes, ws.scratch[:0])
	defer func() { clear(v.revs); ws.scratch = v.revs }()
	if from < v.floor {
		return closed(), ws.cancelBelow(v)
	}
	if v.upTo >= from {
		return closed(), ws.sendAll(v)
	}
	ws.revision = v.upTo
	return v.moved, ws.sendReport()
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// sendAll sends each watch its part of the view. A watch that asked for
// progress hears of a marker that passed it, so that its reader knows that it
// has everything which the marker stands behind.
func (ws *watchStream) sendAll(v view) error {
	for _, w := range ws.watches {
		if w.next > v.upTo {
			continue
		}
		ws.pay(w, v)
		passed := w.progress && slices.ContainsFunc(v.revs, func(r *revision) bool { return r.marker && r.rev >= w.next })
		if err := ws.sendEvents(w, v); err != nil {
			return err
		}
		w.next = v.upTo + 1
		if !passed {
			continue
		}
		if err := ws.sendProgress(w, v.upTo); err != nil {
			return err
		}
	}
	return nil
}

func (ws *watchStream) sendProgress(w *watcher, upTo int64) error {
	return ws.send(&pb.WatchResponse{Header: ws.g.header(upTo), WatchId: w.id})
}

// lookCost is what looking at an event takes for one watch, twice as much where
// it has to be found out whether its reader may see it.
const lookCost = 100 * time.Nanosecond

// pay takes what it costs to tell a watch something, and waits as long as the
// reader owes: more is then told at once, which is cheaper. What it asked to be
// told again is not news, and is paid by event.
func (ws *watchStream) pay(w *watcher, v view) {
	wait := time.Duration(0)
	if w.next <= w.born {
		cost := time.Duration(v.events) * lookCost
		if w.grant.restricted {
			cost *= 2
		}
		wait = ws.c.purses.Take(cost)
	} else {
		wait = ws.c.news.Take(time.Duration(len(v.revs)) * lookCost)
	}
	ws.g.pause(ws.grpc.Context(), min(wait, longestPace))
}

// cancelBelow ends the watches whose history is gone; their readers list again.
func (ws *watchStream) cancelBelow(v view) error {
	for _, w := range slices.Clone(ws.watches) {
		if w.next >= v.floor {
			continue
		}
		ws.remove(w.id)
		ws.c.refuse(refusedCompacted)
		err := ws.send(&pb.WatchResponse{
			Header: ws.g.header(v.upTo), WatchId: w.id, Canceled: true, CompactRevision: v.floor,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sendEvents sends the events of a view that a watch wants, all of a revision
// in one reply unless fragments are allowed. The header's revision is the one
// up to which the watch is complete, so that a reader can resume after it.
func (ws *watchStream) sendEvents(w *watcher, v view) error {
	b := batch{limit: ws.g.cfg.Limits.ReplyBytes, fragment: w.fragment}
	b.flush = func(parts mem.BufferSlice, last bool) error {
		w.idle = false
		if w.next > w.born {
			ws.c.fresh.Add(int64(parts.Len()))
		}
		return ws.sendParts(&pb.WatchResponse{Header: ws.g.header(v.upTo), WatchId: w.id, Fragment: !last}, parts)
	}
	for _, r := range v.revs {
		if r.rev < w.next {
			continue
		}
		if err := b.add(w, r); err != nil {
			return err
		}
	}
	if len(b.parts) == 0 {
		return nil
	}
	return b.flush(b.parts, true)
}

// batch collects the encoded events of one reply. Neighbours in memory become
// one buffer; nothing is copied.
type batch struct {
	limit    int
	fragment bool
	flush    func(parts mem.BufferSlice, last bool) error
	parts    mem.BufferSlice
	size     int
}

func (b *batch) add(w *watcher, r *revision) error {
	for i := 0; i < len(r.events); {
		if !w.wants(&r.events[i]) {
			i++
			continue
		}
		j := i + 1
		for j < len(r.events) && w.wants(&r.events[j]) && !b.full(r.events[j].end-r.events[i].start) {
			j++
		}
		if err := b.push(r.wire[r.events[i].start:r.events[j-1].end]); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// full reports whether n more bytes belong into another fragment.
func (b *batch) full(n int) bool { return b.fragment && b.size+n > b.limit }

func (b *batch) push(run []byte) error {
	if b.size > 0 && b.full(len(run)) {
		if err := b.flush(b.parts, false); err != nil {
			return err
		}
		b.parts, b.size = nil, 0
	}
	b.parts = append(b.parts, mem.SliceBuffer(run))
	b.size += len(run)
	return nil
}

func (ws *watchStream) send(r *pb.WatchResponse) error { return ws.sendParts(r, nil) }

// sendParts sends a reply with encoded events. It blocks while the reader does
// not read, until the connection is closed for it.
func (ws *watchStream) sendParts(r *pb.WatchResponse, events mem.BufferSlice) error {
	head, err := proto.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode watch reply: %w", err)
	}
	ws.slow.Reset(ws.g.cfg.Limits.SendTimeout)
	defer ws.slow.Stop()
	return ws.grpc.SendMsg(&frame{parts: append(mem.BufferSlice{mem.SliceBuffer(head)}, events...)})
}

// tick sends progress to the watches that asked for it and were idle.
func (ws *watchStream) tick() error {
	for _, w := range ws.watches {
		due := w.progress && w.idle && w.next <= ws.revision+1
		w.idle = true
		if !due {
			continue
		}
		if err := ws.sendProgress(w, ws.revision); err != nil {
			return err
		}
	}
	return nil
}

// sendReport answers a progress request once the whole stream has reached the
// revision that the store had when it was made. Requests in between are
// answered by the same reply.
func (ws *watchStream) sendReport() error {
	if !ws.report || ws.revision < ws.target {
		return nil
	}
	ws.report = false
	for _, w := range ws.watches {
		if w.next > ws.revision+1 {
			return nil // one of them waits for the future; etcd says nothing then
		}
	}
	return ws.send(&pb.WatchResponse{Header: ws.g.header(ws.revision), WatchId: noWatch})
}

func (ws *watchStream) handle(req *pb.WatchRequest) error {
	switch r := req.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		if r.CreateRequest != nil {
			return ws.create(r.CreateRequest)
		}
	case *pb.WatchRequest_CancelRequest:
		if r.CancelRequest != nil && ws.remove(r.CancelRequest.WatchId) {
			return ws.confirm(r.CancelRequest.WatchId)
		}
	case *pb.WatchRequest_ProgressRequest:
		if !ws.report {
			now, err := ws.g.revision()
			ws.report, ws.target = true, now
			return err
		}
	}
	return nil
}

// confirm says that a watch is canceled, as asked for.
func (ws *watchStream) confirm(id int64) error {
	now, err := ws.g.revision()
	if err != nil {
		return err
	}
	return ws.send(&pb.WatchResponse{Header: ws.g.header(now), WatchId: id, Canceled: true})
}

// remove forgets a watch and reports whether there was one.
func (ws *watchStream) remove(id int64) bool {
	i := slices.IndexFunc(ws.watches, func(w *watcher) bool { return w.id == id })
	if i < 0 {
		return false
	}
	ws.watches = slices.Delete(ws.watches, i, i+1)
	ws.forget(1)
	return true
}

// create adds a watch or answers why not, as etcd does: with a reply that is
// both created and canceled.
func (ws *watchStream) create(r *pb.WatchCreateRequest) error {
	now, err := ws.g.revision()
	if err != nil {
		return err
	}
	w, err := ws.parseWatch(r, now)
	if err != nil {
		return ws.send(&pb.WatchResponse{
			Header: ws.g.header(now), WatchId: noWatch, Created: true, Canceled: true, CancelReason: err.Error(),
		})
	}
	ws.watches = append(ws.watches, w)
	ws.c.watches.Add(1)
	ws.c.account().watches.Add(1)
	ws.g.metrics.watches.Inc()
	return ws.send(&pb.WatchResponse{Header: ws.g.header(now), WatchId: w.id, Created: true})
}

// parseWatch makes a watch from a request, or says what it may not ask for.
func (ws *watchStream) parseWatch(r *pb.WatchCreateRequest, now int64) (*watcher, error) {
	if err := ws.g.tooLong(ws.c, r.Key, r.RangeEnd); err != nil {
		return nil, err
	}
	s, ok := spanOf(r.Key, r.RangeEnd)
	if !ok || !ws.c.grant.allows(s) {
		return nil, ws.g.deny(ws.c, r.Key, r.RangeEnd)
	}
	if err := ws.affordable(); err != nil {
		return nil, err
	}
	switch {
	case r.PrevKv:
		return nil, ws.g.unsupported(ws.c, "the previous value of a key")
	case r.StartRevision < 0:
		return nil, rpctypes.ErrCompacted
	}
	id, err := ws.assignID(r.WatchId)
	if err != nil {
		return nil, err
	}
	w := &watcher{id: id, span: s, grant: ws.c.grant, next: r.StartRevision, fragment: r.Fragment, progress: r.ProgressNotify, idle: true, born: now}
	if w.next == 0 {
		w.next = now + 1
	}
	w.noPut = slices.Contains(r.Filters, pb.WatchCreateRequest_NOPUT)
	w.noDelete = slices.Contains(r.Filters, pb.WatchCreateRequest_NODELETE)
	return w, nil
}

// affordable checks the limits of watches.
func (ws *watchStream) affordable() error {
	l, a := ws.g.cfg.Limits, ws.c.account()
	switch {
	case !ws.c.creates.Allow() || !a.creates.Allow():
		ws.c.refuse(refusedCreates)
		ws.c.hold(refusalPause)
		ws.g.pause(ws.grpc.Context(), refusalPause)
		return fmt.Errorf("watches are created too fast: at most %g per second", l.CreatesPerSecond)
	case len(ws.watches) >= l.WatchesPerStream:
		ws.c.refuse(refusedWatches)
		return fmt.Errorf("too many watches in one call: at most %d", l.WatchesPerStream)
	case ws.c.watches.Load() >= int64(l.WatchesPerConnection):
		ws.c.refuse(refusedWatches)
		return fmt.Errorf("too many watches on one connection: at most %d", l.WatchesPerConnection)
	case a.watches.Load() >= int64(a.limits.Watches):
		ws.c.refuse(refusedWatches)
		return fmt.Errorf("too many watches of one peer: at most %d", a.limits.Watches)
	}
	return nil
}

// assignID takes the reader's own watch id, or for 0 the next free one.
func (ws *watchStream) assignID(asked int64) (int64, error) {
	taken := func(id int64) bool {
		return slices.ContainsFunc(ws.watches, func(w *watcher) bool { return w.id == id })
	}
	if asked != 0 {
		if taken(asked) {
			return 0, errors.New("mvcc: duplicate watch ID provided on the WatchStream")
		}
		return asked, nil
	}
	for taken(ws.nextID) {
		ws.nextID++
	}
	ws.nextID++
	return ws.nextID - 1, nil
}
