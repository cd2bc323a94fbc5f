package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/mesh"
)

// What status says of clusters that go: draining, from the moment their file is
// missing until their backends are out of the maps, and removed for a while
// after that, so that nobody has to wonder where they are.
const (
	stateDraining = "draining"
	removedShown  = time.Minute
	// maxRemoved bounds how many are remembered.
	maxRemoved = 64
)

// setLeaving notes which clusters' files are missing.
func (c *core) setLeaving(names []string) {
	before := len(c.leaving)
	clear(c.leaving)
	for _, name := range names {
		c.leaving[name] = true
	}
	if len(names) != before {
		c.wantReport()
	}
}

func (c *core) noteRemoved(name string) {
	delete(c.leaving, name)
	if name != c.cfg.ClusterName && len(c.removed) < maxRemoved { // the own one is never drained
		c.removed[name] = time.Now()
	}
	c.metrics.lag.DeleteLabelValues(name)
	c.wantReport()
}

// removedClusters lists those that were removed lately, by name.
func (c *core) removedClusters(now time.Time) (out []*api.Cluster) {
	maps.DeleteFunc(c.removed, func(_ string, at time.Time) bool { return now.Sub(at) > removedShown })
	for _, name := range slices.Sorted(maps.Keys(c.removed)) {
		out = append(out, &api.Cluster{Name: name, State: mesh.Removed.String(), StateSeconds: now.Sub(c.removed[name]).Seconds()})
	}
	return out
}
