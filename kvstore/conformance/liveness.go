package conformance

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// maxSkew is how far ahead of ours a heartbeat's clock may be: certificates
// are issued with a begin a few minutes in the past at best.
const maxSkew = time.Minute

func livenessChecks() []Check {
	return []Check{{
		ID: "heartbeat-recent", Group: "liveness", Title: "the last heartbeat is recent", Needs: []string{"read-heartbeat"},
		Why:    "without a heartbeat for 2 minutes the client disconnects and lists everything again, every 2 minutes",
		Remedy: "check that CLUSTER's apiserver runs and writes (its log, its readiness), and both machines' clocks",
		run:    checkHeartbeatRecent,
	}, {
		ID: "clock-skew", Group: "liveness", Title: "the clocks of both sides agree", Needs: []string{"read-heartbeat"},
		Why:    "certificates look expired or not yet valid to one side",
		Remedy: "synchronise the clocks of both machines",
		run:    checkSkew,
	}, {
		ID: "heartbeat-put", Group: "liveness", Title: "heartbeats arrive", Needs: []string{"watch-ranges"},
		Why:    "without a heartbeat for 2 minutes the client disconnects and lists everything again, every 2 minutes",
		Remedy: "check that CLUSTER's apiserver runs and writes: its log and its readiness",
		run:    checkHeartbeatPut,
	}}
}

// beat reads when the last heartbeat was written, or says why that is unknown.
func (s *session) beat(ctx context.Context) (time.Time, finding) {
	reply, err := s.ask(ctx, keyRange{start: schema.HeartbeatKey}, 0, 0)
	if err != nil {
		return time.Time{}, fail("get %s: %s", schema.HeartbeatKey, text(err))
	}
	if len(reply.Kvs) == 0 {
		return time.Time{}, skip("there is none yet; Cilium's server writes the first a minute after its start")
	}
	at, err := time.Parse(time.RFC3339, string(reply.Kvs[0].Value))
	if err != nil {
		return time.Time{}, skip("it does not say when: %q", reply.Kvs[0].Value)
	}
	return at, finding{}
}

func checkHeartbeatRecent(ctx context.Context, s *session) finding {
	at, unknown := s.beat(ctx)
	if at.IsZero() {
		return unknown
	}
	if age := time.Since(at); age > s.opts.HeartbeatWait {
		return late(fail("it is %s old (%s)", age.Round(time.Second), stamp(at)), at, age, s.leaf())
	}
	return pass("%s", stamp(at))
}

func checkSkew(ctx context.Context, s *session) finding {
	at, unknown := s.beat(ctx)
	if at.IsZero() {
		return unknown
	}
	if ahead := time.Until(at); ahead > maxSkew {
		return fail("the heartbeat is %s in the future (%s)", ahead.Round(time.Second), stamp(at))
	}
	return pass("the heartbeat says %s", stamp(at))
}

func checkHeartbeatPut(ctx context.Context, s *session) finding {
	if !s.opts.Wait {
		return skip("takes up to %s; not asked for", s.opts.HeartbeatWait)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(s.opts.HeartbeatWait, cancel).Stop()
	began := time.Now()
	err := s.follow(ctx, heartbeatRange(), 0, false, func(reply *etcdserverpb.WatchResponse) error {
		for _, e := range reply.Events {
			if e.Type == mvccpb.Event_PUT {
				return errDone
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errDone):
		return pass("after %s", time.Since(began).Round(time.Millisecond))
	case ctx.Err() != nil:
		return fail("none within %s", s.opts.HeartbeatWait)
	}
	return fail("watch %s: %v", heartbeatRange(), orEnd(err))
}
