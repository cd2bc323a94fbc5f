package interop

import (
	"testing"

	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
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
		for range changes {
			if east.rnd.IntN(4) == 0 {
				agent.follow(t, &here, want, func() { east.change().apply(t, own.manifests) })
				continue
			}
			agent.follow(t, &there, want, func() { west.change(); writer.publish(t) })
		}
		t.Logf("from Cilium's writer to the node's maps: %v", there)
		t.Logf("from our manifest to the node's maps: %v; %d changes in all", here, changes)
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
// in its maps what follows from the objects, change after change, and also
// after our apiserver was killed.
func weReadKVStoreMesh(t *testing.T, g *ground) {
	east, west := newCluster("east", 7, 5), newCluster("west", 9, 6)
	source, own := g.startApiserver(t, east), g.startApiserver(t, west)
	etcd := g.startEtcd(t, "west")
	g.startKVStoreMesh(t, etcd, west, map[string]string{"east": g.etcdConfig(source.listen, "remote-west")})
	agent := g.startAgent(t, west, map[uint16]string{7: "east", 9: "west"}, map[string]string{
		"west": g.etcdConfig(own.listen, "local-west"),
		"east": g.etcdConfig(etcd, "local-west"),
	})
	format := g.announced(t, source)
	want := func() oracle.Table { return expectedTable(west, east, format) }
	t.Logf("equal %v after the agent was ready", agent.await(t, want()))
	var took times
	for n := range changes {
		agent.follow(t, &took, want, func() { east.change().apply(t, source.manifests) })
		if n == changes/2 {
			source.Kill()
			source.start(t)
			awaitReady(t, source.Process, source.http)
			t.Logf("%d keys are the same in the mirror after a kill of the source", g.awaitMirror(t, source, etcd))
		}
	}
	t.Logf("from our manifest over KVStoreMesh to the node's maps: %v of %d changes", took, changes)
	t.Logf("%d keys are the same in the mirror", g.awaitMirror(t, source, etcd))
}
