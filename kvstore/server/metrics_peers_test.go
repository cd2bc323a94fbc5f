package server

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestPeersAndLagAreShown: connections and watches count for whom they are of,
// and come to nothing when they end; a watch that was sent all is not behind.
func TestPeersAndLagAreShown(t *testing.T) {
	t.Parallel()
	w := start(t)
	remote := w.watch(t, "remote-west")
	remote.create(&pb.WatchCreateRequest{})
	if n := w.metric("clustermesh_gateway_peer_watches", labelOther); n != 1 {
		t.Errorf("%v watches of others", n)
	}
	if n := w.metric("clustermesh_gateway_peer_connections", labelOther); n != 1 || w.s.RemoteReaders() != 1 {
		t.Errorf("%v connections of others, %d remote readers", n, w.s.RemoteReaders())
	}
	if n := w.metric("clustermesh_gateway_peer_connections", labelLocal); n != 0 {
		t.Errorf("%v connections of own agents", n)
	}
	w.put("cilium/state/a=1", "cilium/state/b=1")
	remote.recv()
	eventually(t, "nothing is left to send", func() bool { return w.metric("clustermesh_gateway_watch_lag_revisions", "") == 0 })
}

func TestLagOfTheSlowest(t *testing.T) {
	s := newStreams()
	fast, slow, idle := &watchStream{}, &watchStream{}, &watchStream{}
	for _, ws := range []*watchStream{fast, slow, idle} {
		s.add(ws)
	}
	fast.next.Store(101)
	slow.next.Store(91)
	if lag := s.lag(100); lag != 10 {
		t.Errorf("lag is %d", lag)
	}
	s.remove(slow)
	if lag := s.lag(100); lag != 0 {
		t.Errorf("lag is %d after the slowest has ended", lag)
	}
}
