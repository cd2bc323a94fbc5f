package interop

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/api/v1/models"
)

// ciliumReadsUs: Cilium's client reports our cluster ready with every prefix
// synced, and knows exactly what its manifests say, change after change.
func ciliumReadsUs(t *testing.T, g *ground) {
	east := newCluster("east", 7, 1)
	apiserver := g.startApiserver(t, east)
	agent := g.startAgentSide(t, "west", 9)
	agent.add(t, "east", g.etcdConfig(apiserver.listen, "remote-west"))
	t.Logf("Cilium's agent is ready after %v and says: %s", agent.awaitStatus(t, isReady), text(agent.status()))
	known := agent.awaitCluster(t, east)
	t.Logf("it knows %d records", len(known))
	var took times
	for len(took) < changes {
		east.change().apply(t, apiserver.manifests)
		if now := agent.expected(east); !slices.Equal(now, known) {
			took = append(took, agent.await(t, now))
			known = now
		}
	}
	t.Logf("from our manifest to Cilium's agent: %v", took)
	if r := agent.status(); r.NumFailures > 0 || !r.Ready {
		t.Errorf("Cilium's agent does not find the connection sound: %s", text(r))
	}
}

// expected is what the agent must know of the cluster: slices too, where the
// cluster announces them.
func (a *agentSide) expected(c *cluster) []string {
	config := a.status().Config
	return c.expected(config != nil && config.EndpointSlicesExportMode != "")
}

func (a *agentSide) awaitCluster(t *testing.T, c *cluster) []string {
	t.Helper()
	a.await(t, a.expected(c))
	return a.expected(c)
}

// restarts is how often our apiserver is killed under a connected client.
const restarts = 10

// ciliumSurvivesOurRestarts: a kill of our apiserver takes nothing from a
// connected client. It finds the next life by the etcd cluster id, and what it
// knows then is what the manifests say, with no deletion of anything that they
// still say.
func ciliumSurvivesOurRestarts(t *testing.T, g *ground) {
	east := newCluster("east", 7, 4)
	apiserver := g.startApiserver(t, east)
	agent := g.startAgentSide(t, "west", 9)
	agent.add(t, "east", g.etcdConfig(apiserver.listen, "remote-west"))
	agent.awaitStatus(t, isReady)
	known := agent.awaitCluster(t, east)
	lives := map[string]bool{etcdID(agent.status()): true}
	var took times
	for n := range restarts {
		apiserver.Kill()
		if n == restarts/2 { // its disk is gone too
			must(t, os.RemoveAll(apiserver.data))
		}
		for range 5 {
			east.change().apply(t, apiserver.manifests)
		}
		before := agent.deletions()
		begin := time.Now()
		apiserver.start(t)
		agent.awaitStatus(t, func(r *models.RemoteCluster) bool { return r.Ready && !lives[etcdID(r)] })
		after := agent.awaitCluster(t, east)
		took = append(took, time.Since(begin))
		lives[etcdID(agent.status())] = true
		checkDeletions(t, agent.deletions()[len(before):], known, after)
		for range 5 {
			east.change().apply(t, apiserver.manifests)
			after = agent.awaitCluster(t, east)
		}
		known = after
	}
	if len(lives) != restarts+1 || lives[""] {
		t.Errorf("%d lives had the etcd cluster ids %v", restarts+1, lives)
	}
	t.Logf("from our start to equality in Cilium's agent: %v; %d reconnections", took, agent.status().NumFailures)
}

// etcdID is the etcd cluster id that a connected agent shows, or "".
func etcdID(r *models.RemoteCluster) string {
	_, id, _ := strings.Cut(r.Status, ", ID: ")
	return id
}

// deletions lists everything that was taken back so far.
func (h *heard) deletions() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.deleted)
}

// checkDeletions fails if something was taken back that was known before and is
// known after.
func checkDeletions(t *testing.T, deleted, before, after []string) {
	t.Helper()
	for _, d := range deleted {
		if names(before)[d] && names(after)[d] {
			t.Errorf("%s was taken from Cilium's agent and came back", d)
		}
	}
}

// names are the first two words of lines: kind and name.
func names(lines []string) map[string]bool {
	all := map[string]bool{}
	for _, line := range lines {
		if words := strings.SplitN(line, " ", 3); len(words) > 1 {
			all[words[0]+" "+words[1]] = true
		}
	}
	return all
}
