package agent

import (
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
)

func (s *simulation) awaitState(cluster, state, reason string) {
	s.t.Helper()
	s.awaitCluster(cluster, state+" because of "+reason, func(c *api.Cluster) bool {
		return c.GetState() == state && strings.Contains(c.GetLastError(), reason)
	})
}

func (s *simulation) awaitCluster(cluster, want string, ok func(*api.Cluster) bool) {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		var now *api.Cluster
		_ = s.agent.core.do(s.t.Context(), func(c *core) {
			for _, x := range c.status().GetClusters() {
				if x.GetName() == cluster {
					now = x
				}
			}
		})
		if now != nil && ok(now) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("cluster %s is %v, want %s", cluster, now, want)
		}
		time.Sleep(time.Millisecond) // polling with a deadline
	}
}

func (s *simulation) awaitSource(cluster, source string) {
	s.t.Helper()
	s.awaitCluster(cluster, "read and synced from "+source, func(c *api.Cluster) bool {
		return c.GetState() == "synced" && c.GetSource() == source
	})
}
