package interop

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// weRead: our agent, reading what Cilium's writer publishes of another cluster,
// has in its node's maps exactly what follows from the objects of both
// clusters, change after change.
func weRead(l layout) func(*testing.T, *ground) {
	return func(t *testing.T, g *ground) {
		east, west := newCluster("east", 7, 2), newCluster("west", 9, 3)
		own := g.startApiserver(t, east)
		etcd := g.startEtcd(t, "west")
		writer := g.startWriter(t, etcd, west, l)
		agent := g.startAgent(t, east, map[uint16]string{7: "east", 9: "west"}, map[string]string{
			"east": g.etcdConfig(own.listen, "local-east"),
			"west": g.etcdConfig(etcd, l.user()),
		})
		want := func() oracle.Table { return expectedTable(east, west, l.format()) }
		t.Logf("equal %v after the agent was ready", agent.await(t, want()))
		var here, there times
		for len(here)+len(there) < changes {
			if east.rnd.IntN(4) == 0 {
				agent.follow(t, &here, want, func() { east.change().apply(t, own.manifests) })
				continue
			}
			agent.follow(t, &there, want, func() { west.change(); writer.publish(t) })
		}
		t.Logf("from Cilium's writer to the node's maps: %v", there)
		t.Logf("from our manifest to the node's maps: %v", here)
	}
}

// user is the etcd user that may read the layout.
func (l layout) user() string {
	if l.cached {
		return "local-west"
	}
	return "remote"
}

// format is what our agent reads of the layout.
func (l layout) format() format {
	if l.mode == cmtypes.EndpointSlicesExportModeServicesOnly {
		return fromServices
	}
	return fromSlices
}

// weReadKVStoreMesh: Cilium's KVStoreMesh mirrors our apiserver into an etcd
// byte for byte, and our agent of another cluster, which reads that mirror, has
// in its maps what follows from the objects, change after change. Nothing in
// the maps is touched when the agent is moved from our apiserver to the mirror,
// nor when our apiserver is killed.
func weReadKVStoreMesh(t *testing.T, g *ground) {
	east, west := newCluster("east", 7, 5), newCluster("west", 9, 6)
	source, own := g.startApiserver(t, east), g.startApiserver(t, west)
	agent := g.startAgent(t, west, map[uint16]string{7: "east", 9: "west"}, map[string]string{
		"west": g.etcdConfig(own.listen, "local-west"),
		"east": g.etcdConfig(source.listen, "remote-west"),
	})
	format := g.announced(t, source)
	want := func() oracle.Table { return expectedTable(west, east, format) }
	agent.await(t, want())

	etcd := g.startEtcd(t, "west")
	g.startKVStoreMesh(t, etcd, west, map[string]string{"east": g.etcdConfig(source.listen, "remote-west")})
	g.awaitMirror(t, source, etcd)
	agent.untouched(t, func() {
		replace(t, filepath.Join(agent.clusters, "east"), g.etcdConfig(etcd, "local-west"))
		agent.awaitCluster(t, "east", func(c *api.Cluster) bool {
			return strings.Contains(c.GetEndpoint(), etcd) && c.GetState() == "synced"
		})
	})
	var took times
	for len(took) < changes {
		agent.follow(t, &took, want, func() { east.change().apply(t, source.manifests) })
	}
	t.Logf("from our manifest over KVStoreMesh to the node's maps: %v", took)
	t.Logf("%d keys are the same in the mirror", g.awaitMirror(t, source, etcd))
	agent.untouched(t, func() {
		source.Kill()
		source.start(t)
		awaitReady(t, source.Process, source.http)
		t.Logf("%d keys are the same in the mirror after a kill of the source", g.awaitMirror(t, source, etcd))
	})
	agent.follow(t, &took, want, func() { east.change().apply(t, source.manifests) })
}

// weFollowLostLeases: when the leases of Cilium's exporter ended, because it was
// out of contact, its services are gone; it writes them again, and our agent has
// them again and goes on following.
func weFollowLostLeases(t *testing.T, g *ground) {
	east, west := newCluster("east", 7, 8), newCluster("west", 9, 9)
	own := g.startApiserver(t, east)
	etcd := g.startEtcd(t, "west")
	writer := g.startWriter(t, etcd, west, layout{mode: cmtypes.EndpointSlicesExportModeServicesOnly})
	agent := g.startAgent(t, east, map[uint16]string{7: "east", 9: "west"}, map[string]string{
		"east": g.etcdConfig(own.listen, "local-east"),
		"west": g.etcdConfig(etcd, "remote"),
	})
	want := func() oracle.Table { return expectedTable(east, west, fromServices) }
	agent.await(t, want())
	client := g.etcdClient(t, etcd, admin("west"))
	defer client.Close()
	services, lost := leasedServices(t, client), time.Now()
	leases, err := client.Leases(t.Context())
	must(t, err)
	for _, lease := range leases.Leases {
		_, err := client.Revoke(t.Context(), lease.ID)
		must(t, err)
	}
	for leasedServices(t, client) < services {
		if time.Since(lost) > giveUp {
			t.Fatalf("Cilium's writer wrote %d of %d services again in %v", leasedServices(t, client), services, giveUp)
		}
		time.Sleep(10 * time.Millisecond) // Cilium's writer tells nobody
	}
	agent.await(t, want())
	t.Logf("%d services with %d leases: all back after %v", services, len(leases.Leases), time.Since(lost))
	var took times
	for len(took) < 20 {
		agent.follow(t, &took, want, func() { west.change(); writer.publish(t) })
	}
}

// leasedServices counts the services that Cilium's writer published and checks
// that each has a lease.
func leasedServices(t *testing.T, client *clientv3.Client) int {
	t.Helper()
	answer, err := client.Get(t.Context(), "cilium/state/services/v1/west/", clientv3.WithPrefix())
	must(t, err)
	for _, kv := range answer.Kvs {
		if kv.Lease == 0 {
			t.Errorf("Cilium's writer attached no lease to %s", kv.Key)
		}
	}
	return len(answer.Kvs)
}
