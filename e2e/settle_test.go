package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// The bounds of convergence: from the moment that the last object was seen to
// change until all nodes' maps equal the oracle.
const (
	convergeEach   = 5 * time.Second
	convergeMedian = time.Second
)

// giveUp ends the wait for something that does not come.
const giveUp = 20 * time.Second

// condition says whether the clusters' objects are what a step waits for.
type condition func([]kube.Objects) bool

// endpoints waits for n ready endpoints of a service per family in a cluster.
func endpoints(c *cluster, service string, n int) condition {
	return func(all []kube.Objects) bool {
		count := map[discoveryv1.AddressType]int{}
		for _, slice := range objectsOf(all, c).Slices {
			if slice.Labels[discoveryv1.LabelServiceName] == service {
				count[slice.AddressType] += readyIn(slice)
			}
		}
		return count[discoveryv1.AddressTypeIPv4] == n && count[discoveryv1.AddressTypeIPv6] == n
	}
}

func readyIn(slice *discoveryv1.EndpointSlice) int {
	n := 0
	for _, e := range slice.Endpoints {
		if e.Conditions.Ready == nil || *e.Conditions.Ready {
			n++
		}
	}
	return n
}

func objectsOf(all []kube.Objects, c *cluster) kube.Objects {
	for _, o := range all {
		if o.Cluster == c.name {
			return o
		}
	}
	return kube.Objects{}
}

// annotated waits for an annotation of a service; "" means absent.
func annotated(c *cluster, service, key, value string) condition {
	return func(all []kube.Objects) bool {
		for _, s := range objectsOf(all, c).Services {
			if s.Name == service && s.Namespace == namespace {
				return s.Annotations[key] == value
			}
		}
		return false
	}
}

// both joins conditions.
func both(conditions ...condition) condition {
	return func(all []kube.Objects) bool {
		return !slices.ContainsFunc(conditions, func(c condition) bool { return !c(all) })
	}
}

// watchpoint is what the nodes' maps are compared with.
type watchpoint struct {
	version uint64
	changed time.Time
	objects []kube.Objects
	want    map[string]oracle.Table // by node
}

func (w *world) look() watchpoint {
	p := watchpoint{want: map[string]oracle.Table{}}
	for _, c := range w.clusters {
		version, changed := c.view.Version()
		p.version += version
		if changed.After(p.changed) {
			p.changed = changed
		}
		p.objects = append(p.objects, c.view.Objects())
	}
	for _, n := range w.nodes() {
		p.want[n.name] = oracle.Expect(n.cluster.name, n.name, p.objects)
	}
	return p
}

func (w *world) version() uint64 {
	var sum uint64
	for _, c := range w.clusters {
		version, _ := c.view.Version()
		sum += version
	}
	return sum
}

// settle waits until the objects are as the step says and the maps of all
// nodes equal the oracle, and returns how long the maps took.
func (w *world) settle(t *testing.T, reached condition) time.Duration {
	t.Helper()
	p := w.look()
	deadline := time.Now().Add(giveUp)
	for {
		if w.version() != p.version {
			p = w.look()
		}
		arrived := reached(p.objects)
		different := w.differing(t, p)
		now := time.Now()
		if arrived && different == nil && w.version() == p.version {
			return now.Sub(p.changed)
		}
		if now.After(deadline) {
			t.Fatalf("no convergence within %v; objects as wanted: %v\n%s", giveUp, arrived, w.explain(t, different, p))
		}
		time.Sleep(time.Millisecond)
	}
}

// differing returns the first node whose maps are not what they must be.
func (w *world) differing(t *testing.T, p watchpoint) *node {
	t.Helper()
	for _, n := range w.nodes() {
		if n.maps == nil {
			continue
		}
		has, err := n.maps.Table()
		if err != nil || !has.Equal(p.want[n.name]) {
			return n
		}
	}
	return nil
}

func (w *world) explain(t *testing.T, n *node, p watchpoint) string {
	t.Helper()
	if n == nil {
		return "all maps equal the oracle"
	}
	has, err := n.maps.Table()
	if err != nil {
		return fmt.Sprintf("%s: %v", n.name, err)
	}
	return fmt.Sprintf("maps of %s:\n%s\nlog of its agent:\n%s", n.name, has.Diff(p.want[n.name]), logTail(n.agent.Process))
}

// now is the condition of a step that waits for no object.
func now([]kube.Objects) bool { return true }

// convergence collects how long the steps of a check took.
type convergence struct{ took []time.Duration }

func (c *convergence) add(t *testing.T, step string, took time.Duration) {
	t.Helper()
	c.took = append(c.took, took)
	if took > convergeEach {
		t.Errorf("%s: the maps took %v, %v is the limit", step, took, convergeEach)
	}
}

func (c *convergence) report(t *testing.T) {
	t.Helper()
	if len(c.took) == 0 {
		t.Fatal("no step was measured")
	}
	slices.Sort(c.took)
	median, worst := c.took[len(c.took)/2], c.took[len(c.took)-1]
	t.Logf("maps equal the oracle after each of %d changes: median %v, maximum %v", len(c.took), median, worst)
	if median > convergeMedian {
		t.Errorf("median %v is above %v", median, convergeMedian)
	}
}
