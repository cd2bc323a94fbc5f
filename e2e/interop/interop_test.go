package interop

import (
	"testing"
)

// TestInterop runs all checks on one ground, side by side: most of the time
// they wait.
func TestInterop(t *testing.T) {
	g := newGround(t)
	for _, cluster := range []string{"east", "west"} {
		g.issueUser(t, admin(cluster))
	}
	for name, check := range map[string]func(*testing.T, *ground){
		"CiliumReadsUs": ciliumReadsUs,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check(t, g)
		})
	}
}

// ciliumReadsUs: Cilium's client reports our cluster ready with every prefix
// synced, and knows exactly what its manifests say, change after change.
func ciliumReadsUs(t *testing.T, g *ground) {
	east := newCluster("east", 7, 1)
	apiserver := g.startApiserver(t, east)
	agent := g.startAgentSide(t, "west", 9)
	agent.add(t, "east", g.etcdConfig(apiserver.listen, "remote-west"))
	t.Logf("ready after %v", agent.awaitStatus(t, isReady))
	t.Logf("status: %s", text(agent.status()))
	slices := agent.status().Config.EndpointSlicesExportMode != ""
	t.Logf("%d records known after another %v", len(east.expected(slices)), agent.await(t, east.expected(slices)))
	var took times
	for range changes {
		east.change().apply(t, apiserver.manifests)
		took = append(took, agent.await(t, east.expected(slices)))
	}
	t.Logf("from the manifest to Cilium's agent: %v", took)
}
