package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// newSmallSimulation has maps for so many frontends and records.
func newSmallSimulation(t *testing.T, frontends, records uint32) *simulation {
	s := newSimulation(t)
	s.stop()
	s.kernel = &memoryKernel{Memory: datapath.NewMemory(layout.Capacity{Frontends: frontends + 1, Records: records + 1})}
	s.start()
	return s
}

// backends names n backends of a cluster.
func backends(cluster, n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("10.%d.0.%d:80", cluster, i+1))
	}
	return all
}

// awaitFull waits until so many services are said not to fit, and why.
func (s *simulation) awaitFull(failed int, lastError string) {
	s.t.Helper()
	s.awaitStatus(fmt.Sprintf("%d services that do not fit for want of %s", failed, lastError), func(r *api.StatusResponse) bool {
		n := 0
		if err := s.agent.core.do(s.t.Context(), func(c *core) { n = len(c.failed) }); err != nil {
			s.t.Fatal(err)
		}
		text := r.GetDatapath().GetLastError()
		return n == failed && strings.Contains(text, lastError) && (text == "") == (failed == 0)
	})
}

// forget has a cluster not have a service any more.
func (s *simulation) forget(cluster, service string) {
	c := s.clusters[cluster]
	delete(c.said, service)
	c.publish(service)
}

// TestFullMaps: a service that does not fit stays as it was, whole, and is named;
// the others go on; once there is room it comes in by itself.
func TestFullMaps(t *testing.T) {
	t.Run("records", func(t *testing.T) {
		s := newSmallSimulation(t, 10, 16)
		s.say("home", "s1", backends(1, 3)...)
		s.say("home", "s2", backends(1, 3)...)
		s.await(s.want(all...))
		before := s.want(all...)
		s.say("east", "s1", backends(2, 9)...)
		s.awaitFull(1, "backend records")
		s.await(before)
		s.say("home", "s2", backends(1, 2)...) // of another service: still possible
		s.say("east", "s1", backends(2, 1)...)
		s.awaitFull(0, "")
		s.await(s.want(all...))
	})
	t.Run("frontends", func(t *testing.T) {
		s := newSmallSimulation(t, 2, 100)
		s.say("home", "s1", backends(1, 1)...)
		s.say("home", "s2", backends(1, 1)...)
		s.await(s.want(all...))
		before := s.want(all...)
		s.say("home", "s3", backends(1, 1)...)
		s.awaitFull(1, "frontends")
		s.await(before)
		s.forget("home", "s1")
		s.await(s.want(all...))
		s.awaitFull(0, "")
	})
}

// TestFragmentedMaps: free records that lie apart are brought together for a
// service that needs them in one piece.
func TestFragmentedMaps(t *testing.T) {
	s := newSmallSimulation(t, 20, 16)
	for i := range 4 {
		s.say("home", fmt.Sprintf("s%d", i+1), backends(1, 3)...)
	}
	s.await(s.want(all...))
	s.forget("home", "s1")
	s.forget("home", "s3")
	s.await(s.want(all...))
	s.say("home", "s5", backends(1, 7)...)
	s.await(s.want(all...))
	s.awaitFull(0, "")
}
