package interop

import (
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/kvstore"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// silence is how long Cilium's client stays without a heartbeat before it takes
// the connection for dead, and a little more.
const silence = 2*kvstore.HeartbeatWriteInterval + 5*time.Second

// heartbeatsKeepCiliumConnected: for longer than Cilium's client would bear
// silence it stays connected without a failure. Heartbeats come as often as
// Cilium's own exporter writes them, and every answer has the same etcd cluster
// id, which is not 0.
func heartbeatsKeepCiliumConnected(t *testing.T, g *ground) {
	if testing.Short() {
		t.Skipf("takes %v", silence)
	}
	east := newCluster("east", 7, 7)
	apiserver := g.startApiserver(t, east)
	agent := g.startAgentSide(t, "west", 9)
	agent.add(t, "east", g.etcdConfig(apiserver.listen, "remote-west"))
	agent.awaitStatus(t, isReady)
	client := g.etcdClient(t, apiserver.listen, "remote-west")
	defer client.Close()
	answer, err := client.Get(t.Context(), heartbeatPath, clientv3.WithPrefix())
	must(t, err)
	id, begin := answer.Header.ClusterId, time.Now()
	if id == 0 {
		t.Error("the etcd cluster id is 0")
	}
	t.Logf("%d heartbeat keys at the connection", len(answer.Kvs))
	watch := client.Watch(clientv3.WithRequireLeader(t.Context()), heartbeatPath, clientv3.WithPrefix(), clientv3.WithRev(answer.Header.Revision+1))
	end := time.After(silence)
	last := begin
	var gaps times
	for waiting := true; waiting; {
		select {
		case r := <-watch:
			must(t, r.Err())
			if r.Header.ClusterId != id {
				t.Errorf("the etcd cluster id changed from %x to %x", id, r.Header.ClusterId)
			}
			gaps, last = append(gaps, time.Since(last)), time.Now()
		case <-end:
			waiting = false
		}
	}
	if r := agent.status(); r.NumFailures > 0 || !r.Ready {
		t.Errorf("Cilium's agent does not find the connection sound: %s", text(r))
	}
	if len(gaps) == 0 || time.Since(last) > 2*kvstore.HeartbeatWriteInterval {
		t.Errorf("heartbeats within %v: %v", silence, gaps)
	}
	t.Logf("connected for %v; heartbeats: %v", time.Since(begin), gaps)
}
