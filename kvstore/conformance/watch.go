package conformance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
)

func watchChecks() []Check {
	return []Check{{
		ID: "watch-start", Group: "watching", Title: "a watch begins at the revision asked for", Needs: []string{"watch-ranges", "page-order"},
		Why: "the client misses what changed between its listing and its watch", Remedy: serverRemedy,
		run: checkWatchStart,
	}, {
		ID: "compacted-watch", Group: "watching", Title: "a watch of a revision that is no longer kept is canceled as etcd does", Needs: []string{"watch-ranges"},
		Why: "the client does not list again and misses changes", Remedy: serverRemedy,
		run: checkCompactedWatch,
	}, {
		ID: "watch-range", Group: "watching", Title: "a watch brings nothing but what was asked for", Needs: []string{"watch-ranges", "page-order"},
		Why: "the client takes keys for entries that are none", Remedy: serverRemedy,
		run: checkWatchRange,
	}, {
		ID: "watch-order", Group: "watching", Title: "changes come in the order in which they happened", Needs: []string{"watch-range"},
		Why: "the client ends up with an old value", Remedy: serverRemedy,
		run: func(_ context.Context, s *session) finding { return s.history.verdict(s.history.disorder) },
	}, {
		ID: "watch-deletes", Group: "watching", Title: "what is gone was announced as deleted", Needs: []string{"watch-range"},
		Why: "the client keeps entries that no longer exist and sends traffic to them", Remedy: serverRemedy,
		run: func(_ context.Context, s *session) finding { return s.checkDeletes() },
	}, {
		ID: "watch-open", Group: "watching", Title: "a watch stays open", Needs: []string{"watch-ranges"},
		Why:    "the client lists everything again and again",
		Remedy: "raise the idle timeout of load balancers and proxies in between to more than a minute",
		run:    checkWatchOpen,
	}}
}

// errDone ends a watch that has shown what it was to show.
var errDone = errors.New("done")

// follow watches a range from a revision on (0: from now) and hands every reply
// to take until that fails, with errDone for instance. report also asks, until
// ctx ends, how far the watch has come.
func (s *session) follow(ctx context.Context, r keyRange, from int64, report bool, take func(*etcdserverpb.WatchResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.watch.Watch(metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader))
	if err != nil {
		return err
	}
	if err := stream.Send(watchRequest(r, from)); err != nil {
		return err
	}
	if report {
		asking := make(chan struct{})
		defer func() { cancel(); <-asking }()
		go func() { defer close(asking); askProgress(ctx, stream) }()
	}
	for {
		reply, err := stream.Recv()
		if err != nil {
			return err
		}
		s.heard.note(&s.heard.streams, reply)
		if err := take(reply); err != nil {
			return err
		}
		if reply.Canceled {
			return fmt.Errorf("canceled: %s (compacted up to %d)", reply.CancelReason, reply.CompactRevision)
		}
	}
}

func watchRequest(r keyRange, from int64) *etcdserverpb.WatchRequest {
	create := &etcdserverpb.WatchCreateRequest{Key: []byte(r.start), RangeEnd: []byte(r.end), StartRevision: from}
	return &etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: create}}
}

// askProgress asks repeatedly: etcd does not answer while a watch is behind.
func askProgress(ctx context.Context, stream etcdserverpb.Watch_WatchClient) {
	const pause = 100 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		err := stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_ProgressRequest{ProgressRequest: &etcdserverpb.WatchProgressRequest{}}})
		if err != nil {
			return
		}
	}
}

// checkWatchStart asks for the last change again: a watch that begins where it
// was told to brings it.
func checkWatchStart(ctx context.Context, s *session) finding {
	key, at := s.survey.newest.key, s.survey.newest.revision
	if at == 0 {
		return skip("there is no key to look at")
	}
	ctx, cancel := s.timeout(ctx)
	defer cancel()
	compacted := false
	err := s.follow(ctx, keyRange{start: key}, at, false, func(reply *etcdserverpb.WatchResponse) error {
		compacted = compacted || reply.CompactRevision > 0
		for _, e := range reply.Events {
			if e.GetKv().GetModRevision() == at {
				return errDone
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errDone):
		return pass("%s from revision %d", key, at)
	case compacted:
		return skip("revision %d is no longer kept", at)
	case ctx.Err() != nil:
		return fail("the change of %s at revision %d did not come", key, at)
	}
	return fail("watch %s from revision %d: %v", key, at, orEnd(err))
}

func checkCompactedWatch(ctx context.Context, s *session) finding {
	ctx, cancel := s.timeout(ctx)
	defer cancel()
	var ended *etcdserverpb.WatchResponse
	s.history = &history{from: 1}
	err := s.follow(ctx, s.entries(), 1, true, func(reply *etcdserverpb.WatchResponse) error {
		if reply.Canceled {
			ended = reply
		}
		if reply.Canceled || len(reply.Events) > 0 || !reply.Created {
			return errDone
		}
		return nil
	})
	switch {
	case ended != nil && ended.CompactRevision > 0:
		s.history.from = ended.CompactRevision
		return pass("canceled, compacted up to %d", ended.CompactRevision)
	case ended != nil:
		return fail("canceled without a compacted revision: %s", ended.CancelReason)
	case errors.Is(err, errDone):
		return skip("nothing has been compacted yet")
	}
	return fail("watch %s from revision 1: %v", s.entries(), orEnd(err))
}

// history is what watching everything from the oldest revision on showed.
type history struct {
	from     int64
	at       int64 // the revision of the last change seen
	events   int
	last     map[string]outlived // by key
	deletes  int
	outside  string // what was wrong, "" if nothing
	disorder string
}

// outlived is the last change of a key.
type outlived struct {
	revision int64
	deleted  bool
}

func (h *history) verdict(problem string) finding {
	if problem != "" {
		return fail("%s", problem)
	}
	return pass("%s from revision %d on, of them %s", count(h.events, "change"), h.from, count(h.deletes, "deletion"))
}

// maxEvents bounds how much of a long history is looked at.
const maxEvents = 500_000

var errTooMuch = fmt.Errorf("the history has more than %d changes", maxEvents)

func checkWatchRange(ctx context.Context, s *session) finding {
	h, until := s.history, s.survey.revision
	if h == nil {
		h = &history{from: 1}
		s.history = h
	}
	h.last = map[string]outlived{}
	ctx, cancel := context.WithTimeout(ctx, 4*s.opts.Timeout)
	defer cancel()
	err := s.follow(ctx, s.entries(), h.from, true, func(reply *etcdserverpb.WatchResponse) error {
		for _, e := range reply.Events {
			h.take(e, s.entries(), until)
		}
		switch {
		case h.events > maxEvents:
			return errTooMuch
		case h.at > until, len(reply.Events) == 0 && !reply.Created && !reply.Canceled && reply.Header.GetRevision() >= until:
			return errDone
		}
		return nil
	})
	switch {
	case h.outside == "" && errors.Is(err, errTooMuch):
		return skip("%v", err)
	case h.outside == "" && !errors.Is(err, errDone):
		return fail("watch %s from revision %d to %d: came to %d: %v", s.entries(), h.from, until, h.at, orEnd(err))
	}
	return h.verdict(h.outside)
}

// take notes a change, unless it is later than the survey.
func (h *history) take(e *mvccpb.Event, r keyRange, until int64) {
	key, at := string(e.GetKv().GetKey()), e.GetKv().GetModRevision()
	switch {
	case !r.has(key):
		h.outside = fmt.Sprintf("key %q came in a watch of %s", key, r)
		return
	case at < h.at || at < h.from:
		h.disorder = fmt.Sprintf("the change of %q at revision %d came after one of %d", key, at, max(h.at, h.from))
	}
	h.at = max(h.at, at)
	if at > until {
		return
	}
	h.events++
	deleted := e.Type == mvccpb.Event_DELETE
	if deleted {
		h.deletes++
	}
	if at >= h.last[key].revision {
		h.last[key] = outlived{at, deleted}
	}
}

// checkDeletes compares the end of the history with the survey.
func (s *session) checkDeletes() finding {
	h := s.history
	if s.survey.truncated {
		return skip("more than %d entries", maxSurveyed)
	}
	for key, last := range h.last {
		listed, exists := s.survey.revisions[key]
		switch {
		case last.deleted && exists:
			return fail("%s was deleted at revision %d and is listed as of %d", key, last.revision, listed)
		case !last.deleted && !exists:
			return fail("%s was put at revision %d, is not listed, and no deletion came", key, last.revision)
		}
	}
	if h.deletes == 0 {
		return skip("nothing was deleted in the history that is kept")
	}
	return h.verdict("")
}

func checkWatchOpen(ctx context.Context, s *session) finding {
	open := time.Second
	if s.opts.Wait {
		open = pingCount * s.opts.PingInterval
	}
	// Not a deadline, of which the server would be told and end the watch itself.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(open, cancel).Stop()
	err := s.follow(ctx, s.configRange(), 0, false, func(*etcdserverpb.WatchResponse) error { return nil })
	if ctx.Err() == nil {
		return fail("it ended within %s: %v", open, orEnd(err))
	}
	return pass("for %s", open)
}
