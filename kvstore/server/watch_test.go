package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchCall is a raw Watch call of a test.
type watchCall struct {
	t      *testing.T
	stream pb.Watch_WatchClient
}

func (w *world) watch(t *testing.T, name string) watchCall {
	t.Helper()
	s, err := pb.NewWatchClient(w.dial(name)).Watch(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	return watchCall{t, s}
}

func (c watchCall) send(req *pb.WatchRequest) {
	c.t.Helper()
	if err := c.stream.Send(req); err != nil {
		c.t.Fatal(err)
	}
}

func (c watchCall) recv() *pb.WatchResponse {
	c.t.Helper()
	r, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	if r.Header.ClusterId == 0 || r.Header.MemberId == 0 || r.Header.Revision == 0 || r.Header.RaftTerm == 0 {
		c.t.Fatalf("incomplete header in %v", r)
	}
	return r
}

// create creates a watch on cilium/state/ unless r says otherwise.
func (c watchCall) create(r *pb.WatchCreateRequest) *pb.WatchResponse {
	c.t.Helper()
	if r.Key == nil {
		r.Key, r.RangeEnd = []byte("cilium/state/"), []byte("cilium/state0")
	}
	c.send(createRequest(r))
	return c.recv()
}

func (c watchCall) cancel(id int64) {
	c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (c watchCall) progress() {
	c.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

func keys(evs []*mvccpb.Event) string {
	var b strings.Builder
	for _, ev := range evs {
		sign := "+"
		if ev.Type == mvccpb.Event_DELETE {
			sign = "-"
		}
		fmt.Fprintf(&b, "%s%s@%d ", sign, strings.TrimPrefix(string(ev.Kv.Key), "cilium/state/"), ev.Kv.ModRevision)
	}
	return strings.TrimSpace(b.String())
}

func TestWatchIDs(t *testing.T) {
	w := start(t)
	c := w.watch(t, "remote")
	for _, step := range []struct{ ask, want int64 }{{0, 0}, {0, 1}, {3, 3}, {2, 2}, {0, 4}, {3, noWatch}} {
		r := c.create(&pb.WatchCreateRequest{WatchId: step.ask})
		if !r.Created || r.WatchId != step.want || r.Canceled != (step.want == noWatch) {
			t.Fatalf("asked for id %d: %v", step.ask, r)
		}
	}
	c.cancel(17) // nobody's; no reply
	c.cancel(2)
	if r := c.recv(); !r.Canceled || r.WatchId != 2 || r.CompactRevision != 0 {
		t.Fatalf("after cancel: %v", r)
	}
	w.put("cilium/state/a=1")
	got := map[int64]bool{}
	for range 4 {
		r := c.recv()
		got[r.WatchId] = true
		if keys(r.Events) != "+a@2" {
			t.Fatalf("got %v", r)
		}
	}
	if got[2] || len(got) != 4 {
		t.Fatalf("events went to %v", got)
	}
	if n := w.metric("clustermesh_gateway_watches", ""); n != 4 {
		t.Fatalf("%v watches counted", n)
	}
	c.stream.CloseSend()
	eventually(t, "watches are forgotten", func() bool { return w.metric("clustermesh_gateway_watches", "") == 0 })
}

func TestWatchStarts(t *testing.T) {
	w := start(t)
	w.put("cilium/state/a=1", "cilium/state/b=1") // revision 2
	w.put("cilium/other=1")
	w.put("cilium/state/a", "cilium/state/b=2") // revision 4
	c := w.watch(t, "remote")
	if r := c.create(&pb.WatchCreateRequest{StartRevision: 1}); r.Header.Revision != 4 {
		t.Fatalf("created at %d", r.Header.Revision)
	}
	if r := c.recv(); keys(r.Events) != "+a@2 +b@2 -a@4 +b@4" || r.Header.Revision != 4 {
		t.Fatalf("history: %v", r)
	}
	c.create(&pb.WatchCreateRequest{})                                                // 1: from now
	c.create(&pb.WatchCreateRequest{StartRevision: 6})                                // 2: future
	c.create(&pb.WatchCreateRequest{Key: []byte("cilium/state/b"), StartRevision: 4}) // 3: one key
	if r := c.recv(); r.WatchId != 3 || keys(r.Events) != "+b@4" {
		t.Fatalf("one key: %v", r)
	}
	if r := c.create(&pb.WatchCreateRequest{StartRevision: -1}); !r.Canceled || !r.Created || r.WatchId != noWatch {
		t.Fatalf("negative revision: %v", r)
	}
	w.put("cilium/state/c=1") // 5
	w.put("cilium/state/d=1") // 6
	got := map[int64]string{}
	for len(got[0]) < 10 || len(got[1]) < 10 || len(got[2]) < 5 {
		r := c.recv()
		got[r.WatchId] += keys(r.Events) + " "
	}
	if got[0] != "+c@5 +d@6 " || got[1] != "+c@5 +d@6 " || got[2] != "+d@6 " || got[3] != "" {
		t.Fatalf("got %v", got)
	}
}

func TestWatchFilters(t *testing.T) {
	w := start(t)
	c := w.watch(t, "remote")
	c.create(&pb.WatchCreateRequest{Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	c.create(&pb.WatchCreateRequest{Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}})
	w.put("cilium/state/a=1", "cilium/state/b=1")
	w.put("cilium/state/a", "cilium/state/c=1")
	got := map[int64]string{}
	for len(got[0]) < 4 || len(got[1]) < 12 {
		r := c.recv()
		got[r.WatchId] += keys(r.Events) + " "
	}
	if got[0] != "-a@3 " || got[1] != "+a@2 +b@2 +c@3 " {
		t.Fatalf("got %v", got)
	}
}

func TestWatchBelowTheRingIsCompacted(t *testing.T) {
	w := start(t, func(c *Config) { c.Limits.RingRevisions = 8 })
	for i := range 20 { // revisions 2..21
		w.put(fmt.Sprintf("cilium/state/k=%d", i))
	}
	ring := w.s.life.Load().ring
	eventually(t, "ring holds the newest", func() bool { _, _, head := ring.stats(); return head == 21 })
	c := w.watch(t, "remote")
	if r := c.create(&pb.WatchCreateRequest{StartRevision: 13}); !r.Created || r.Canceled {
		t.Fatalf("got %v", r)
	}
	r := c.recv()
	if !r.Canceled || r.CompactRevision != 14 || r.WatchId != 0 {
		t.Fatalf("got %v", r)
	}
	c.create(&pb.WatchCreateRequest{StartRevision: r.CompactRevision})
	if r := c.recv(); len(r.Events) != 8 || r.Header.Revision != 21 {
		t.Fatalf("got %v", r)
	}
	// The same through etcd's client, which knows it as its own error.
	reply := <-w.client("remote").Watch(w.ctx(), "cilium/state/", clientv3.WithPrefix(), clientv3.WithRev(2))
	if !errors.Is(reply.Err(), rpctypes.ErrCompacted) || reply.CompactRevision != 14 {
		t.Fatalf("got %v", reply.Err())
	}
	if n := w.metric("clustermesh_gateway_refusals_total", "compacted"); n != 2 {
		t.Errorf("%v counted", n)
	}
}

func TestWatchProgress(t *testing.T) {
	w := start(t, func(c *Config) { c.Limits.ProgressInterval = 50 * time.Millisecond })
	w.put("cilium/state/a=1")
	w.put("clustermesh/b=1") // 3: nothing for this reader
	c := w.watch(t, "remote")
	c.create(&pb.WatchCreateRequest{StartRevision: 2})
	c.recv()
	c.progress()
	if r := c.recv(); r.WatchId != noWatch || len(r.Events) != 0 || r.Header.Revision != 3 || r.Created || r.Canceled {
		t.Fatalf("got %v", r)
	}
	c.create(&pb.WatchCreateRequest{ProgressNotify: true})
	if r := c.recv(); r.WatchId != 1 || len(r.Events) != 0 || r.Header.Revision != 3 {
		t.Fatalf("got %v", r)
	}
}

func TestWatchFragments(t *testing.T) {
	w := start(t, func(c *Config) { c.Limits.ReplyBytes = 1000 })
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprintf("cilium/state/k%02d=%s", i, strings.Repeat("v", 90)))
	}
	w.put(want...)
	c := w.watch(t, "remote")
	c.create(&pb.WatchCreateRequest{StartRevision: 2, Fragment: true})
	var got []string
	for n := 1; ; n++ {
		r := c.recv()
		for _, ev := range r.Events {
			got = append(got, string(ev.Kv.Key)+"="+string(ev.Kv.Value))
		}
		if !r.Fragment {
			if n < 6 {
				t.Fatalf("only %d fragments", n)
			}
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got %v", got)
	}
	c.create(&pb.WatchCreateRequest{StartRevision: 2})
	if r := c.recv(); len(r.Events) != 50 || r.Fragment {
		t.Fatalf("without fragments: %d events", len(r.Events))
	}
}

func TestWatchLimits(t *testing.T) {
	w := start(t, func(c *Config) {
		c.Limits.WatchesPerStream, c.Limits.WatchesPerConnection, c.Limits.CreatesPerSecond = 3, 4, 0.001
	})
	conn := w.dial("remote")
	open := func() watchCall {
		s, err := pb.NewWatchClient(conn).Watch(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		return watchCall{t, s}
	}
	refused := func(c watchCall, why string) {
		t.Helper()
		if r := c.create(&pb.WatchCreateRequest{}); !r.Canceled || !strings.Contains(r.CancelReason, why) {
			t.Fatalf("got %v", r)
		}
	}
	a, b := open(), open()
	for range 3 {
		a.create(&pb.WatchCreateRequest{})
	}
	refused(a, "one call")
	b.create(&pb.WatchCreateRequest{})
	refused(b, "one connection")
	a.cancel(0)
	a.recv()
	if r := b.create(&pb.WatchCreateRequest{}); r.Canceled {
		t.Fatalf("a freed place is not given away: %v", r)
	}
	refused(b, "one connection") // the eighth create of 2*4
	refused(b, "too fast")
	w.put("cilium/state/a=1")
	if r := b.recv(); len(r.Events) != 1 {
		t.Fatalf("a refused create hurt the others: %v", r)
	}
}
