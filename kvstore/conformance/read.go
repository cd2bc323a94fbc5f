package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

const (
	nameRemedy  = "check that the cluster calls itself CLUSTER, for no other name may be read; then " + grantRemedy
	grantRemedy = "let the certificate's name read it: in etcd grant the role of its user, as cilium's etcdinit does; clustermesh-apiserver does so for remote, remote-<cluster> and local-<its own cluster>"
)

func readChecks() []Check {
	return []Check{{
		ID: "read-heartbeat", Group: "reading", Title: "the heartbeat's prefix may be listed", Needs: []string{"etcd-api"},
		Why:    "the client never counts as connected: this listing is its first request, tried for 15 minutes",
		Remedy: grantRemedy,
		run:    func(ctx context.Context, s *session) finding { return s.checkReadable(ctx, heartbeatRange()) },
	}, {
		ID: "read-synced", Group: "reading", Title: "the cluster's canaries may be listed", Needs: []string{"etcd-api"},
		Why:    "the client waits for canaries for ever, without an error in its log",
		Remedy: nameRemedy,
		run:    checkReadCanaries,
	}, {
		ID: "read-state", Group: "reading", Title: "the cluster's entries may be listed", Needs: []string{"etcd-api"},
		Why:    "the client waits for entries for ever, without an error in its log",
		Remedy: grantRemedy,
		run:    func(ctx context.Context, s *session) finding { return s.checkReadable(ctx, s.entries()) },
	}, {
		ID: "watch-ranges", Group: "reading", Title: "what may be listed may be watched", Needs: []string{"read-heartbeat", "read-config", "read-synced", "read-state"},
		Why:    "the client sees the state of the moment and no change; it lists everything again and again",
		Remedy: grantRemedy,
		run:    checkWatchable,
	}}
}

// entries is the range of everything the cluster publishes.
func (s *session) entries() keyRange {
	unknown := s.announced == nil && s.role.Kind == certs.Local
	if s.cached() || unknown {
		return prefixRange("cilium/cache/")
	}
	return prefixRange("cilium/state/")
}

func (s *session) canaryRange() keyRange {
	return prefixRange(schema.CanaryPrefix(s.target.Cluster))
}

func (s *session) configRange() keyRange {
	return keyRange{start: schema.ClusterConfigKey(s.target.Cluster)}
}

func (s *session) checkReadable(ctx context.Context, r keyRange) finding {
	reply, err := s.ask(ctx, r, pageLimit, 0)
	if err != nil {
		return fail("list %s: %s", r, text(err))
	}
	more := ""
	if reply.More {
		more = " and more"
	}
	return pass("%s: %s%s", r, count(len(reply.Kvs), "key"), more)
}

func checkReadCanaries(ctx context.Context, s *session) finding {
	reply, err := s.ask(ctx, s.canaryRange(), pageLimit, 0)
	if err != nil {
		return fail("list %s: %s", s.canaryRange(), text(err))
	}
	for _, kv := range reply.Kvs {
		rest, _ := strings.CutPrefix(string(kv.Key), s.canaryRange().start)
		s.canaries = append(s.canaries, rest)
	}
	return pass("%s: %s", s.canaryRange(), count(len(s.canaries), "key"))
}

func checkWatchable(ctx context.Context, s *session) finding {
	ranges := []keyRange{heartbeatRange(), s.configRange(), s.canaryRange(), s.entries()}
	for _, r := range ranges {
		if err := s.tryWatch(ctx, r); err != nil {
			return fail("watch %s: %s", r, status.Convert(err).Message())
		}
	}
	return pass("%s", count(len(ranges), "watch"))
}

// tryWatch creates a watch and cancels it.
func (s *session) tryWatch(ctx context.Context, r keyRange) error {
	ctx, cancel := s.timeout(ctx)
	defer cancel()
	err := s.follow(ctx, r, 0, false, func(reply *etcdserverpb.WatchResponse) error {
		if reply.Created && !reply.Canceled {
			return errDone
		}
		return nil
	})
	if errors.Is(err, errDone) {
		return nil
	}
	return fmt.Errorf("not created: %w", orEnd(err))
}

func orEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the server ended the call")
	}
	return err
}
