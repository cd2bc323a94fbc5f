package conformance

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"
)

// pageLimit is how many keys Cilium's clients ask for at a time.
const pageLimit = 256

const serverRemedy = "the server is not etcd, or something between changes its replies; connect to etcd 3.5 or newer or to clustermesh-apiserver's gateway"

func pageChecks() []Check {
	return []Check{{
		ID: "page-order", Group: "paging", Title: "listings are ascending and inside what was asked for", Needs: []string{"read-synced", "read-state"},
		Why: "the client misses entries, and deletes what it had of them", Remedy: serverRemedy,
		run: checkPageOrder,
	}, {
		ID: "page-limit", Group: "paging", Title: "a page has no more keys than asked for", Needs: []string{"page-order"},
		Why: "the client's memory is not bounded by what it asks for", Remedy: serverRemedy,
		run: func(_ context.Context, s *session) finding { return s.survey.verdict(s.survey.limit) },
	}, {
		ID: "page-more", Group: "paging", Title: "a page says whether more follow", Needs: []string{"page-order"},
		Why: "the client takes a part for the whole and deletes what it had of the rest", Remedy: serverRemedy,
		run: func(_ context.Context, s *session) finding { return s.survey.verdict(s.survey.more) },
	}, {
		ID: "page-revision", Group: "paging", Title: "later pages are of the first one's revision", Needs: []string{"page-order"},
		Why: "the client misses what changes between two pages", Remedy: serverRemedy,
		run: checkPageRevision,
	}, {
		ID: "future-revision", Group: "paging", Title: "a revision that does not exist yet is refused as etcd does", Needs: []string{"page-order"},
		Why: "a client does not notice that the server lost its data and shows old entries", Remedy: serverRemedy,
		run: checkFutureRevision,
	}, {
		ID: "compacted-range", Group: "paging", Title: "a revision that is no longer kept is refused as etcd does", Needs: []string{"page-order"},
		Why: "a client does not list again from the start and misses entries", Remedy: serverRemedy,
		run: checkCompactedRange,
	}}
}

// maxListed bounds one listing, for a server that never comes to an end.
const maxListed = 5_000_000

// maxSurveyed bounds how many keys a survey remembers.
const maxSurveyed = 500_000

// survey is what listing everything showed.
type survey struct {
	revisions   map[string]int64 // of every entry's last change
	truncated   bool             // revisions is not complete
	revision    int64            // at which entries were listed
	keys, pages int
	newest      place  // the key changed last, of all kinds
	limit, more string // what was wrong, "" if nothing
}

// place is a change of a key.
type place struct {
	key      string
	revision int64
}

func newSurvey() survey { return survey{revisions: map[string]int64{}} }

func (v *survey) verdict(problem string) finding {
	if problem != "" {
		return fail("%s", problem)
	}
	return pass("%s in %s", count(v.keys, "key"), count(v.pages, "page"))
}

func (v *survey) note(kv *mvccpb.KeyValue) {
	if kv.ModRevision > v.newest.revision {
		v.newest = place{string(kv.Key), kv.ModRevision}
	}
}

func (v *survey) remember(kv *mvccpb.KeyValue) {
	v.note(kv)
	if len(v.revisions) < maxSurveyed {
		v.revisions[string(kv.Key)] = kv.ModRevision
	} else {
		v.truncated = true
	}
}

func checkPageOrder(ctx context.Context, s *session) finding {
	if beat, err := s.ask(ctx, heartbeatRange(), pageLimit, 0); err == nil {
		for _, kv := range beat.Kvs {
			s.survey.note(kv)
		}
	}
	// Pages of one key show how the server pages even where there is little.
	if _, err := s.list(ctx, s.canaryRange(), 1, s.survey.note); err != nil {
		return fail("list %s: %v", s.canaryRange(), err)
	}
	revision, err := s.list(ctx, s.entries(), pageLimit, s.survey.remember)
	if err != nil {
		return fail("list %s: %v", s.entries(), err)
	}
	s.survey.revision = revision
	return s.survey.verdict("")
}

// list hands every key of a range to visit, in pages at one revision, as
// Cilium's client lists. It notes in the survey what is wrong with the paging.
func (s *session) list(ctx context.Context, r keyRange, limit int64, visit func(*mvccpb.KeyValue)) (revision int64, err error) {
	for next, listed := r.start, 0; ; {
		page, err := s.ask(ctx, keyRange{next, r.end}, limit, revision)
		if err != nil {
			return 0, errors.New(text(err))
		}
		if revision == 0 {
			revision = page.Header.GetRevision()
		}
		if err := s.takePage(page, keyRange{next, r.end}, limit, visit); err != nil {
			return 0, err
		}
		listed += len(page.Kvs)
		switch {
		case len(page.Kvs) == 0:
			return revision, nil
		case listed > maxListed:
			return 0, fmt.Errorf("more than %d keys", maxListed)
		}
		next = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
		if !page.More {
			return revision, s.lookBeyond(ctx, keyRange{next, r.end}, revision)
		}
	}
}

func (s *session) takePage(page *etcdserverpb.RangeResponse, r keyRange, limit int64, visit func(*mvccpb.KeyValue)) error {
	if n := int64(len(page.Kvs)); n > limit {
		s.survey.limit = fmt.Sprintf("%s from %s, asked for: %d", count(int(n), "key"), r.start, limit)
	}
	if page.More && len(page.Kvs) == 0 {
		s.survey.more = fmt.Sprintf("an empty page from %s says that more follow", r.start)
	}
	last := ""
	for _, kv := range page.Kvs {
		key := string(kv.Key)
		if !r.has(key) || key <= last {
			return fmt.Errorf("key %q came after %q, asked for was [%q, %q)", key, last, r.start, r.end)
		}
		last = key
		visit(kv)
	}
	s.survey.keys += len(page.Kvs)
	s.survey.pages++
	return nil
}

// lookBeyond asks for what follows a page that says nothing does.
func (s *session) lookBeyond(ctx context.Context, r keyRange, revision int64) error {
	beyond, err := s.ask(ctx, r, 1, revision)
	if err != nil {
		return errors.New(text(err))
	}
	if len(beyond.Kvs) > 0 {
		s.survey.more = fmt.Sprintf("the last page does not say that %q follows", beyond.Kvs[0].Key)
	}
	return nil
}

func checkPageRevision(ctx context.Context, s *session) finding {
	key, at := s.survey.newest.key, s.survey.newest.revision-1
	if at < 1 {
		return skip("there is no key to look at")
	}
	page, err := s.ask(ctx, keyRange{start: key}, 1, at)
	if isCompacted(err) {
		return skip("revision %d is no longer kept", at)
	}
	if err != nil {
		return fail("read %s at revision %d: %s", key, at, text(err))
	}
	for _, kv := range page.Kvs {
		if kv.ModRevision > at {
			return fail("%s was asked for at revision %d and came as of %d", key, at, kv.ModRevision)
		}
	}
	return pass("%s at revision %d", key, at)
}

func checkFutureRevision(ctx context.Context, s *session) finding {
	const far = 1 << 40
	_, err := s.ask(ctx, s.canaryRange(), 1, s.survey.revision+far)
	if err == nil {
		return fail("it was answered")
	}
	if status.Convert(err).Message() != rpctypes.ErrorDesc(rpctypes.ErrGRPCFutureRev) {
		return fail("refused with: %s", text(err))
	}
	return pass("%s", text(err))
}

func isCompacted(err error) bool {
	return err != nil && status.Convert(err).Message() == rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted)
}

func checkCompactedRange(ctx context.Context, s *session) finding {
	_, err := s.ask(ctx, s.canaryRange(), 1, 1)
	switch {
	case err == nil:
		return skip("nothing has been compacted yet")
	case isCompacted(err):
		return pass("%s", text(err))
	}
	return fail("refused with: %s", text(err))
}
