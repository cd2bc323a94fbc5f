package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/e2e/internal/kernel"
	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// namespace is where the checks make their services.
const namespace = "rebels"

// world is two clusters of two nodes each, everything the checks share.
type world struct {
	lab      *lab.Lab
	dir      string
	certs    string
	clusters []*cluster
}

// cluster is one cluster of the world.
type cluster struct {
	name   string
	id     int
	kube   *kube.Cluster
	view   *kube.View
	nodes  []*node
	export *apiserver
	pods   int // made so far: numbers the next pod's name and address
}

// node is one node of a cluster.
type node struct {
	name    string
	cluster *cluster
	lab     *lab.Node
	pods    *pod.Host
	agent   *agent
	maps    *kernel.Maps
}

func requireLab(t *testing.T) {
	t.Helper()
	if !lab.Inside() {
		t.Skip("missing on this machine: " + strings.Join(missing(), ", "))
	}
}

// must ends the test on an error of the test's own machinery.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// live is the test's context without its end, which comes before the test's
// cleanups.
func live(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }

// newWorld brings up the control planes and the nodes; no product part runs.
func newWorld(t *testing.T) *world {
	t.Helper()
	requireLab(t)
	must(t, lab.Settle())
	w := &world{dir: scratch(t)}
	var err error
	w.lab, err = lab.New(w.dir)
	must(t, err)
	t.Cleanup(func() { w.close(t) })
	w.clusters = []*cluster{{name: "east", id: 1}, {name: "west", id: 2}}
	started := make(chan error, len(w.clusters))
	for _, c := range w.clusters {
		go func() { started <- c.start(t.Context(), w.lab) }()
	}
	for range w.clusters {
		must(t, <-started)
	}
	for _, c := range w.clusters {
		c.addNodes(t, w.lab)
	}
	return w
}

// scratch is a directory for everything the world writes. It is kept when the
// test fails, because the logs are in it.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "clustermesh-e2e-")
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs are kept in %s", filepath.Join(dir, "log"))
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove scratch directory: %v", err)
		}
	})
	return dir
}

func (w *world) close(t *testing.T) {
	for _, n := range w.nodes() {
		if n.maps != nil {
			must(t, n.maps.Close())
		}
		if n.pods != nil {
			n.pods.Close()
		}
	}
	if err := w.lab.Close(); err != nil {
		t.Errorf("close the lab: %v", err)
	}
}

func (w *world) nodes() []*node {
	var all []*node
	for _, c := range w.clusters {
		all = append(all, c.nodes...)
	}
	return all
}

func (c *cluster) start(ctx context.Context, l *lab.Lab) (err error) {
	c.kube, err = kube.Start(ctx, l, kube.Config{
		Name:         c.name,
		Binary:       binary("kube"),
		ServiceCIDRs: []string{fmt.Sprintf("10.%d.0.0/16", 95+c.id), fmt.Sprintf("fd00:%d::/108", 95+c.id)},
		FirstPort:    20000 + 100*c.id,
	})
	if err != nil {
		return err
	}
	if c.view, err = c.kube.Follow(ctx); err != nil {
		return err
	}
	return c.kube.AddNamespace(ctx, namespace)
}

// addNodes makes two nodes. Node i of cluster c has address 192.168.50.<c><i>
// and pods in a /20 of 10.<c>.0.0; the same in IPv6.
func (c *cluster) addNodes(t *testing.T, l *lab.Lab) {
	for i := 1; i <= 2; i++ {
		n := &node{name: fmt.Sprintf("%s-n%d", c.name, i), cluster: c}
		number := 10*c.id + i
		addrs := prefixes(fmt.Sprintf("192.168.50.%d/24", number), fmt.Sprintf("fd00:50::%d/64", number))
		pods := prefixes(fmt.Sprintf("10.%d.%d.0/20", c.id, 16*i), fmt.Sprintf("fd00:%d:%d::/64", c.id, i))
		var err error
		n.lab, err = l.AddNode(n.name, addrs, pods)
		must(t, err)
		n.pods, err = pod.Start(l, n.lab)
		must(t, err)
		must(t, c.kube.AddNode(live(t), n.name, []netip.Addr{n.lab.Addr(true), n.lab.Addr(false)}, pods))
		c.nodes = append(c.nodes, n)
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// other is the cluster that c is meshed with.
func (w *world) other(c *cluster) *cluster {
	if w.clusters[0] == c {
		return w.clusters[1]
	}
	return w.clusters[0]
}
