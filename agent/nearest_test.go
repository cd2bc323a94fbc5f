package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/liveness/probe"
	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/bpf/layout"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// haveNodes has a remote cluster publish nodes with these addresses, in place of
// those it had.
func (p *probing) haveNodes(cluster string, addresses ...string) {
	f := p.clusters[cluster]
	for i := range 10 {
		key := schema.NodeKey(cluster, fmt.Sprintf("n%d", i))
		if i >= len(addresses) {
			f.put(key, nil)
			continue
		}
		n := schema.Node{Cluster: cluster, Name: fmt.Sprintf("n%d", i), ClusterID: f.id, IPAddresses: []schema.NodeAddress{
			{Type: "Hostname", IP: "203.0.113.77"}, {Type: "InternalIP", IP: addresses[i]}, {Type: "ExternalIP", IP: "203.0.113.78"},
		}}
		f.put(key, n.Encode())
	}
	f.put(schema.CanaryKey(schema.KindNode, cluster, false), []byte("now"))
}

func (p *probing) status() (out *api.StatusResponse) {
	p.t.Helper()
	if err := p.agent.core.do(p.t.Context(), func(c *core) { out = c.status() }); err != nil {
		p.t.Fatal(err)
	}
	return out
}

// TestNodesTellBackendsFromTheNetwork: status says of backends that do not answer
// whether the nodes do, and of nodes alone that nothing rests on them.
func TestNodesTellBackendsFromTheNetwork(t *testing.T) {
	p := newProbing(t)
	p.path.Store(false)
	p.awaitCluster("east", "backends failing, nodes not", func(c *api.Cluster) bool { return c.GetDataPath() == "failing" && c.GetNodePath() == "ok" })
	p.awaitProblem("east: none of its backends answers probes")
	p.awaitProblem("its nodes answer, so the network is up")
	p.nodes.Store(false)
	p.awaitCluster("east", "both failing", func(c *api.Cluster) bool { return c.GetNodePath() == "failing" })
	p.awaitProblem("its nodes do not answer either")
	p.path.Store(true)
	p.awaitCluster("east", "nodes alone failing", func(c *api.Cluster) bool { return c.GetDataPath() == "ok" && c.GetNodePath() == "failing" })
	p.awaitProblem("east: none of its nodes answers probes")
	p.awaitDead(false)
	p.await(p.want(all...))
	p.nodes.Store(true)
	p.awaitProblem("")
}

// TestOnlyNodesOfOthersAreProbed: nothing that is ours or special, nothing that
// is no address of a node, at the port that we chose; nodes that are gone are
// left; and a cluster that has nothing but nodes has a path and a distance.
func TestOnlyNodesOfOthersAreProbed(t *testing.T) {
	p := newProbing(t)
	p.node("home1", "10.1.4.0/23", "172.18.0.4")
	p.clusters["home"].write(schema.CanaryKey(schema.KindNode, "home", false), []byte("now"))
	p.awaitCore("our node is known", func(c *core) bool { return !c.mesh.AdmitsNode("west", netip.MustParseAddr("172.18.0.4")) })
	p.haveNodes("west", "172.16.3.1", "127.0.0.1", "169.254.169.254", "172.18.0.4", "10.1.4.9", "172.16.3.2")
	p.awaitCluster("west", "probed by nodes", func(c *api.Cluster) bool {
		return c.GetNodePath() == "ok" && c.GetDataPath() == "unknown" && c.GetRank() > 0 && c.GetDistanceSeconds() == 0.001
	})
	p.targets.Clear()
	p.pass()
	var got []string
	p.targets.Range(func(k, _ any) bool {
		if a := k.(netip.AddrPort); a.Port() != 80 && !strings.HasPrefix(a.String(), "172.16.2.") {
			got = append(got, a.String())
		}
		return true
	})
	slices.Sort(got)
	if !slices.Equal(got, []string{"172.16.3.1:10250", "172.16.3.2:10250"}) {
		t.Errorf("west's nodes are probed at %v", got)
	}
	p.haveNodes("west", "172.16.3.9")
	p.awaitCore("the other nodes are forgotten", func(c *core) bool { return len(c.nodeTargets("west", 100)) == 1 })
}

// awaitCore waits until something holds on the core's goroutine.
func (p *probing) awaitCore(want string, holds func(*core) bool) {
	p.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for ok := false; !ok; time.Sleep(time.Millisecond) { // polling with a deadline
		_ = p.agent.core.do(p.t.Context(), func(c *core) { ok = holds(c) })
		if time.Now().After(deadline) {
			p.t.Fatalf("it is not so that %s", want)
		}
	}
}

// awaitFile waits until the file of distances is as wanted.
func (p *probing) awaitFile(want string, ok func(map[string]int64) bool) {
	p.t.Helper()
	p.awaitCore(want, func(c *core) bool { return ok(readOrder(p.dir, c.log).Distances()) })
}

// TestNodesBehindARelay: a cluster that moves behind a relay is heard from there,
// nodes included.
func TestNodesBehindARelay(t *testing.T) {
	p := newProbing(t)
	p.clusters["west"].move(shape{cached: true})
	p.haveNodes("west", "172.16.3.1", "172.16.3.2")
	p.awaitCluster("west", "probed by nodes", func(c *api.Cluster) bool { return c.GetNodePath() == "ok" && c.GetRank() == 1 })
	p.awaitCore("both nodes are known", func(c *core) bool { return len(c.nodeTargets("west", 100)) == 2 })
	p.clusters["west"].move(shape{})
	p.awaitCore("what the relay said of nodes counts no more", func(c *core) bool { return len(c.nodeTargets("west", 100)) == 0 })
}

// TestNodesThatMayNotBeRead: status says so, what is known stays, and nothing else
// suffers.
func TestNodesThatMayNotBeRead(t *testing.T) {
	p := newProbing(t)
	east := p.clusters["east"]
	east.SetFault(func(f kvstore.Fault) error {
		if f.Op == kvstore.FaultRange && strings.Contains(f.Key, "/nodes/") {
			return errDown
		}
		return nil
	})
	east.BreakWatches(nil)
	p.awaitProblem("follow the nodes of cluster east")
	p.awaitCluster("east", "synced", func(c *api.Cluster) bool { return c.GetState() == "synced" && c.GetNodePath() == "ok" })
	p.awaitCore("its nodes stay", func(c *core) bool { return len(c.nodeTargets("east", 100)) == 4 })
	p.await(p.want(all...))
	east.SetFault(nil)
	p.awaitProblem("")
}

// awaitUsed waits until s1 uses a backend of one cluster and no other.
func (p *probing) awaitUsed(cluster int) {
	p.t.Helper()
	p.await(frontend(fmt.Sprintf("10.%d.0.1:80", cluster)))
}

// newOrdered has a service without backends of its own that takes the nearest of
// east, 20 ms away, and west, 5 ms away.
func newOrdered(t *testing.T) *probing {
	p := newProbing(t)
	p.rtt[2].Store(int64(20 * time.Millisecond))
	p.rtt[3].Store(int64(5 * time.Millisecond))
	p.clusters["home"].adjust = policy("tiers", "local; nearest")
	delete(p.clusters["home"].said, "s2")
	p.clusters["home"].publish("s2")
	p.say("home", "s1")
	p.say("east", "s1", "10.2.0.1:80")
	p.say("west", "s1", "10.3.0.1:80")
	p.awaitUsed(3)
	return p
}

// TestTheNearestClusterIsUsed: the order follows the times once they have changed
// for good, fails over, survives a restart of which nothing is measured, shows
// with its reasons, and forgets a cluster that is removed.
func TestTheNearestClusterIsUsed(t *testing.T) {
	p := newOrdered(t)
	p.rtt[2].Store(int64(time.Millisecond))
	p.awaitUsed(2)
	p.say("east", "s1")
	p.awaitUsed(3)
	p.say("east", "s1", "10.2.0.1:80")
	p.awaitUsed(2)
	p.explains("east (1.", "ms); then west (5.0ms)")
	p.awaitFile("the new order is kept", func(d map[string]int64) bool { return d["east"] > 0 && d["east"] < d["west"] })
	p.stop()
	p.kernel.most.Store(0)
	p.simulation.probe = func(context.Context, netip.AddrPort) (time.Duration, probe.Outcome) { return 0, probe.Untold }
	p.start()
	p.awaitCluster("east", "synced", func(c *api.Cluster) bool { return c.GetState() == "synced" && c.GetRank() == 1 })
	p.awaitCluster("west", "synced", func(c *api.Cluster) bool { return c.GetState() == "synced" && c.GetRank() == 2 })
	p.awaitUsed(2)
	if most := p.kernel.most.Load(); most > 1 {
		t.Errorf("%d backends were used at some moment", most)
	}
	if err := os.Remove(p.file("east")); err != nil {
		t.Fatal(err)
	}
	p.awaitUsed(3)
	p.awaitFile("a removed cluster's distance is forgotten", func(d map[string]int64) bool { return len(d) == 1 && d["west"] > 0 })
}

// explains demands parts of what services and explain say of the order.
func (p *probing) explains(parts ...string) {
	p.t.Helper()
	var e *api.ExplainResponse
	var s *api.ServicesResponse
	_ = p.agent.core.do(p.t.Context(), func(c *core) {
		e, s = c.explainNamed(lb.ServiceName{Namespace: "ns", Name: "s1"}), c.services(&api.ServicesRequest{})
	})
	for where, text := range map[string]string{"explain": e.GetServices()[0].GetNearest(), "services": s.GetServices()[0].GetNearest()} {
		for _, part := range parts {
			if !strings.Contains(text, part) {
				p.t.Errorf("%s says %q, which lacks %q", where, text, part)
			}
		}
	}
	tiers := map[string]uint32{}
	for _, b := range s.GetServices()[0].GetBackends() {
		tiers[b.GetCluster()] = b.GetTier()
	}
	if tiers["east"] != 2 || tiers["west"] != 3 {
		p.t.Errorf("tiers %v", tiers)
	}
}

// TestNoiseMovesNoConnection: times that jump by 30 % either way around close
// distances change no order and hence no map.
func TestNoiseMovesNoConnection(t *testing.T) {
	p := newOrdered(t)
	p.pass()
	before := p.changes()
	generations := p.generations()
	for i := range 15 {
		p.rtt[2].Store(int64(20*time.Millisecond) * int64(7+i*5%7) / 10)
		p.rtt[3].Store(int64(5*time.Millisecond) * int64(7+i*3%7) / 10)
		p.pass()
	}
	p.awaitUsed(3)
	if n := p.changes() - before; n != 0 || p.generations() != generations {
		t.Errorf("the order changed %v times, generations went from %s to %s", n, generations, p.generations())
	}
}

// changes is the metric of changes of the order.
func (p *probing) changes() (n float64) {
	p.t.Helper()
	families, err := p.agent.cfg.Registry.Gather()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "clustermesh_agent_cluster_order_changes_total" {
			n = f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return n
}

// generations are those of all frontends in the maps.
func (p *probing) generations() (out string) {
	p.t.Helper()
	_ = p.agent.core.do(p.t.Context(), func(c *core) {
		dump, _ := c.kernel.Dump()
		for _, f := range dump.Frontends {
			out += fmt.Sprintf("%d:%d ", f.ID, f.Header.Generation())
		}
	})
	return out
}

// TestWithoutProbesNearestMeansAll, and the service's problems say so; what was
// remembered of distances counts no more.
func TestWithoutProbesNearestMeansAll(t *testing.T) {
	p := newOrdered(t)
	p.stop()
	p.adjust = nil
	p.start()
	p.await(frontend("10.2.0.1:80", "10.3.0.1:80"))
	p.awaitProblem("nothing is probed here; remove --probe=false")
}

// TestAnOrderThatIsNoneIsIgnored: a file that somebody damaged costs nothing.
func TestAnOrderThatIsNoneIsIgnored(t *testing.T) {
	for content, want := range map[string]int{
		"": 0, "{": 0, "[1]": 0, `{"east": "far"}`: 0, `{"east": -1, "UPPER": 5, "west": 9999999999, "north": 2000000}`: 1,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, orderFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if o := readOrder(dir, slog.New(slog.DiscardHandler)); len(o.Distances()) != want || want == 1 && (o.Distance("north") != 2_000_000 || len(o.Ranks()) != 1) {
			t.Errorf("%q: %v", content, o.Distances())
		}
		if err := forgetState(dir); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("a cleanup leaves %v", left)
		}
	}
}

// TestOthersGetInWhileAnOrderIsFollowed: while thousands of services are decided
// on anew for another order of the nearest clusters, another cluster's change comes
// to the maps before most of them, although its service is the last by name; and
// they all get their turn.
func TestOthersGetInWhileAnOrderIsFollowed(t *testing.T) {
	const services, last = 2_000, 999
	c := servicesOf(t, services, []string{1: "home", 2: "east", 3: "west"}, map[string]string{"tiers": "nearest; local"})
	dump, err := c.kernel.Dump()
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(dump.Frontends, func(f layout.DumpFrontend) bool { return text(f.Meta.Name[:]) == fmt.Sprint("s", last) })
	var published []uint32 // by the core's goroutine alone
	c.kernel.(*memoryKernel).publishes = func(id uint32) { published = append(published, id) }
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer func() { stop(); <-ended }()
	go func() { ended <- c.run(ctx) }()
	asking, asked := make(chan struct{}), make(chan error, 1)
	if err := c.do(ctx, func(c *core) {
		go func() {
			close(asking)
			_, err := c.turn(ctx, func(c *core) {
				c.mesh.Apply("west", []mesh.Change{{Key: tenBackends("west", 3, last, nil).Key, Deleted: true}})
			})
			asked <- err
		}()
		<-asking // it is about to wait for its turn
		names, changed := c.mesh.SetRanks(map[string]uint8{"east": 0, "west": 1})
		if !changed || len(names) != services || names[services-1].Name != fmt.Sprint("s", last) {
			t.Errorf("changed %v, %d services are concerned", changed, len(names))
		}
		c.decideLater(names)
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(60 * time.Second)
	for done := false; !done; {
		_ = c.do(ctx, func(c *core) { done = len(c.later) == 0 })
		if time.Now().After(deadline) {
			t.Fatal("not all services were decided on anew")
		}
	}
	_ = c.do(ctx, func(c *core) {
		if place := slices.Index(published, dump.Frontends[at].ID); place < 0 || place >= services/2 || len(published) < services {
			t.Errorf("the changed service came to the maps as number %d of %d", place, len(published))
		}
		requireSelected(t, c, services, 10)
	})
}
