package interop

import (
	"testing"
	"time"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/kvstore"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// hold is how long the connections are kept. Cilium's client takes one for dead
// after twice the interval of heartbeats without one, our agent after two and a
// half times that.
const hold = 5*kvstore.HeartbeatWriteInterval/2 + 5*time.Second

// heartbeatsKeepConnections: for longer than a client bears silence, Cilium's
// client of our apiserver stays connected without a failure, and so does our
// agent of an etcd that Cilium's writer keeps. Our heartbeats come as often as
// Cilium's, and every answer of ours has the same etcd cluster id, which is
// not 0.
func heartbeatsKeepConnections(t *testing.T, g *ground) {
	if testing.Short() {
		t.Skipf("takes %v", hold)
	}
	east, west := newCluster("east", 7, 7), newCluster("west", 9, 10)
	apiserver, etcd := g.startApiserver(t, east), g.startEtcd(t, "west")
	theirs := g.startAgentSide(t, "west", 9)
	theirs.add(t, "east", g.etcdConfig(apiserver.listen, "remote-west"))
	g.startWriter(t, etcd, west, layout{mode: cmtypes.EndpointSlicesExportModeServicesAndEndpointSlices})
	ours := g.startAgent(t, east, map[uint16]string{7: "east", 9: "west"}, map[string]string{
		"east": g.etcdConfig(apiserver.listen, "local-east"),
		"west": g.etcdConfig(etcd, "remote"),
	})
	theirs.awaitStatus(t, isReady)
	ours.await(t, expectedTable(east, west, fromSlices))
	failures := ours.cluster(t, "west").GetFailures()

	t.Logf("heartbeats in %v: %v", hold, g.heartbeats(t, apiserver))
	if r := theirs.status(); r.NumFailures > 0 || !r.Ready {
		t.Errorf("Cilium's agent does not find the connection sound: %s", text(r))
	}
	if c := ours.cluster(t, "west"); c.GetFailures() > failures || c.GetState() != "synced" {
		t.Errorf("our agent does not find the connection sound: %v", c)
	}
	theirs.awaitCluster(t, east)
	ours.await(t, expectedTable(east, west, fromSlices))
}

// heartbeats watches our apiserver's heartbeats and returns the gaps between
// them.
func (g *ground) heartbeats(t *testing.T, a *apiserver) times {
	t.Helper()
	client := g.etcdClient(t, a.listen, "remote-west")
	defer client.Close()
	answer, err := client.Get(t.Context(), heartbeatPath, clientv3.WithPrefix())
	must(t, err)
	id, last := answer.Header.ClusterId, time.Now()
	if id == 0 {
		t.Error("the etcd cluster id is 0")
	}
	watch := client.Watch(clientv3.WithRequireLeader(t.Context()), heartbeatPath, clientv3.WithPrefix(), clientv3.WithRev(answer.Header.Revision+1))
	end := time.After(hold)
	var gaps times
	for {
		select {
		case r := <-watch:
			must(t, r.Err())
			if r.Header.ClusterId != id {
				t.Errorf("the etcd cluster id changed from %x to %x", id, r.Header.ClusterId)
			}
			gaps, last = append(gaps, time.Since(last)), time.Now()
		case <-end:
			if len(gaps) < 2 || time.Since(last) > 2*kvstore.HeartbeatWriteInterval {
				t.Errorf("only %d heartbeats in %v", len(gaps), hold)
			}
			return gaps
		}
	}
}
