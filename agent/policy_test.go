package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf/layout"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// lone is a core without connections, in a bubble whose clock the test moves.
type lone struct {
	t      *testing.T
	core   *core
	kernel *memoryKernel
	end    func()
}

// runLone runs a test with a core for cluster home, id 1, and remotes east and
// west, ids 2 and 3.
func runLone(t *testing.T, f func(*lone)) {
	synctest.Test(t, func(t *testing.T) {
		l := &lone{t: t, kernel: &memoryKernel{Memory: datapath.NewMemory(layout.Capacity{Frontends: 16, Records: 1024})}}
		l.start()
		f(l)
		l.end()
		if v := l.kernel.Violations(); len(v) > 0 {
			t.Errorf("rules of the maps violated: %v", v)
		}
	})
}

func (l *lone) start() {
	cfg := Config{ClusterName: "home", ClusterID: 1, NodeName: "n", Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Registry: prometheus.NewRegistry()}
	c, err := newCore(cfg.withDefaults(), l.kernel)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.run(ctx) }()
	l.core, l.end = c, func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	}
	for _, name := range all {
		l.do(func(c *core) { c.addCluster(name); c.connecting(name) })
	}
}

func (l *lone) do(f func(*core)) {
	l.t.Helper()
	if err := l.core.do(context.Background(), f); err != nil {
		l.t.Fatal(err)
	}
	synctest.Wait()
}

func idOf(cluster string) uint32 { return uint32(slices.Index(all, cluster) + 1) }

// say connects a cluster and has it say all there is.
func (l *lone) say(cluster string, key string, value []byte) {
	l.t.Helper()
	l.do(func(c *core) {
		if _, err := c.connected(cluster, "memory", schema.ClusterConfig{ID: idOf(cluster)}); err != nil {
			l.t.Error(err)
		}
		c.update(cluster, kvstore.Update{Changes: []kvstore.Change{{KV: kvstore.KV{Key: key, Value: value}}}, Synced: true})
	})
}

// remote has a cluster offer n backends, 10.<id>.0.1 and so on, of service web.
func (l *lone) remote(cluster string, n int) {
	l.t.Helper()
	f := &fakeCluster{name: cluster, id: idOf(cluster), said: map[string]map[string]bool{"web": offers(cluster, n)}}
	l.say(cluster, schema.ServiceKey(cluster, "ns", "web"), f.serviceRecord("web"))
}

// own has the own cluster offer n backends of web under a policy.
func (l *lone) own(n int, adjust func(*schema.LocalService)) {
	l.t.Helper()
	f := &fakeCluster{name: "home", id: 1, adjust: adjust, said: map[string]map[string]bool{"web": offers("home", n)}}
	l.say("home", schema.LocalServiceKey("home", "ns", "web"), f.localRecord("web"))
}

func offers(cluster string, n int) map[string]bool {
	out := map[string]bool{}
	for i := range n {
		out[fmt.Sprintf("10.%d.0.%d:80", idOf(cluster), i+1)] = true
	}
	return out
}

func policy(pairs ...string) func(*schema.LocalService) {
	return func(s *schema.LocalService) {
		s.Policy = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			s.Policy[pairs[i]] = pairs[i+1]
		}
	}
}

func (l *lone) lose(cluster string) {
	l.t.Helper()
	l.do(func(c *core) { c.disconnected(cluster, errDown) })
}

// pass moves the clock, with all that happens meanwhile.
func (l *lone) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// dump is the only frontend in the maps.
func (l *lone) dump() (out layout.DumpFrontend) {
	l.t.Helper()
	l.do(func(c *core) {
		dump, err := c.kernel.Dump()
		if err != nil || len(dump.Frontends) != 1 {
			l.t.Errorf("dump: %d frontends, %v", len(dump.Frontends), err)
			return
		}
		out = dump.Frontends[0]
	})
	return out
}

// wants compares the selected backends, as cluster ids in order, with what the
// maps hold.
func (l *lone) wants(when string, ids ...int) {
	l.t.Helper()
	var got []int
	d := l.dump()
	for _, b := range d.Backends[:d.Header.Selected()] {
		got = append(got, int(b.Cluster))
	}
	slices.Sort(got)
	if !slices.Equal(got, ids) {
		l.t.Errorf("%s: backends of clusters %v are used, want %v", when, got, ids)
	}
}

// TestStalenessFollowsTheClock: a cluster out of contact is demoted and given up
// when its time has come, attempts that do not complete change nothing about
// that, and contact takes it back.
func TestStalenessFollowsTheClock(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(1, policy("tiers", "east; west", "staleness", "demote:5m, withdraw:30m"))
		l.remote("east", 1)
		l.wants("while west has said nothing", 2)
		l.remote("west", 1)
		l.pass(time.Hour)
		l.wants("in contact", 2)
		l.lose("east")
		l.pass(4 * time.Minute)
		l.do(func(c *core) {
			c.connecting("east")
			if _, err := c.connected("east", "memory", schema.ClusterConfig{ID: 2}); err != nil {
				t.Error(err)
			}
			c.disconnected("east", errDown)
		})
		l.pass(59 * time.Second)
		l.wants("shortly before it is demoted", 2)
		l.pass(2 * time.Second)
		l.wants("demoted", 3)
		l.lose("west")
		l.pass(20 * time.Minute)
		l.wants("both demoted", 2, 3)
		l.pass(5 * time.Minute)
		l.wants("east given up", 3)
		l.pass(100 * time.Hour)
		l.wants("both given up", 2, 3)
		l.remote("east", 1)
		l.wants("in contact again", 2)
	})
}

// TestLostContactNeverTakesTheLastBackend is promise 9 with the clock: whatever
// staleness a service asks for, its last backends stay, across a restart too.
func TestLostContactNeverTakesTheLastBackend(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(0, policy("staleness", "withdraw:1s"))
		l.remote("east", 1)
		l.wants("at first", 2)
		l.kernel.keepFull.Store(true)
		l.lose("east")
		l.pass(1000 * time.Hour)
		l.wants("out of contact", 2)
		l.end()
		l.start()
		l.own(0, policy("staleness", "withdraw:1s"))
		l.pass(1000 * time.Hour)
		l.wants("after a restart", 2)
		l.kernel.keepFull.Store(false)
		if len(l.kernel.emptied) > 0 {
			t.Error(l.kernel.emptied)
		}
	})
}

// TestAPolicyThatComesLaterCountsFromTheLoss: the age does not start with the
// annotation.
func TestAPolicyThatComesLaterCountsFromTheLoss(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(1, nil)
		l.remote("east", 1)
		l.lose("east")
		l.pass(time.Hour)
		l.wants("without a policy", 1, 2)
		l.own(1, policy("staleness", "withdraw:30m"))
		l.wants("with one", 1)
		l.own(1, policy("staleness", "withdraw:2h"))
		l.wants("with more patience", 1, 2)
		l.pass(61 * time.Minute)
		l.wants("two hours after the loss", 1)
		l.do(func(c *core) { c.removeCluster("east") })
		l.wants("without the cluster", 1)
	})
}

// TestSpilloverIsDamped: a tier that spills over goes on until it is well above
// the threshold, however often the service is looked at.
func TestSpilloverIsDamped(t *testing.T) {
	runLone(t, func(l *lone) {
		p := policy("tiers", "local; east", "spillover", "min=2, hysteresis=50%")
		l.own(4, p)
		l.remote("east", 1)
		for _, step := range []struct {
			n    int
			want []int
		}{{4, []int{1, 1, 1, 1}}, {2, []int{1, 1}}, {1, []int{1, 2}}, {2, []int{1, 1, 2}}, {3, []int{1, 1, 1}}, {2, []int{1, 1}}} {
			l.own(4, func(s *schema.LocalService) {
				p(s)
				for i := step.n; i < 4; i++ {
					s.Backends[i].Ready, s.Backends[i].Serving = false, false
				}
			})
			l.wants(fmt.Sprintf("%d are healthy", step.n), step.want...)
			l.do(func(c *core) { c.set(lb.ServiceName{Namespace: "ns", Name: "web"}) })
			l.wants(fmt.Sprintf("%d are healthy, looked at again", step.n), step.want...)
		}
		l.own(4, nil)
		if n := len(l.core.spilled); n != 0 {
			t.Errorf("%d decisions are remembered that need not be", n)
		}
	})
}

// TestPolicyReachesTheMaps: weights, consistent hashing and session affinity are
// written, and the latter two survive a restart while the own cluster is silent.
func TestPolicyReachesTheMaps(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(1, func(s *schema.LocalService) {
			policy("weights", "local=3, east=1", "consistent", "true")(s)
			s.SessionAffinity, s.SessionAffinitySeconds = schema.SessionAffinityClientIP, 90
		})
		l.remote("east", 1)
		l.remote("west", 1)
		l.wants("weighed", 1, 2)
		d := l.dump()
		if d.Region.Sticky != 90 || len(d.Table) == 0 {
			t.Errorf("region %+v with a table of %d", d.Region, len(d.Table))
		}
		own := 0
		for _, slot := range d.Table {
			if d.Backends[slot].Cluster == 1 {
				own++
			}
		}
		if part := float64(own) / float64(len(d.Table)); part < 0.73 || part > 0.77 {
			t.Errorf("the own cluster has %.3f of the table, want 0.75", part)
		}
		l.end()
		l.start()
		l.remote("east", 2)
		if d := l.dump(); d.Region.Sticky != 90 || len(d.Table) == 0 {
			t.Errorf("after a restart: region %+v with a table of %d", d.Region, len(d.Table))
		}
	})
}

// TestWithdrawalReachesTheMaps: what a service wants for connections is written,
// a cluster that is given up is marked, and one that merely comes after others is
// not; a restart while the own cluster is silent keeps it.
func TestWithdrawalReachesTheMaps(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(1, policy("tiers", "local, east; west", "staleness", "withdraw:30m", "on-withdraw", "drain:45s"))
		l.remote("east", 1)
		l.remote("west", 1)
		marked := func(when string, want ...uint16) {
			t.Helper()
			var got []uint16
			d := l.dump()
			for _, b := range d.Backends {
				if b.Flags&layout.FlagWithdrawn != 0 {
					got = append(got, b.Cluster)
				}
			}
			if !slices.Equal(got, want) || d.Region.OnWithdraw != layout.WithdrawDrain || d.Region.Drain != 45 {
				t.Errorf("%s: clusters %v are withdrawn, want %v; region %+v", when, got, want, d.Region)
			}
		}
		marked("in contact")
		l.lose("east")
		l.pass(29 * time.Minute)
		marked("out of contact")
		l.pass(2 * time.Minute)
		marked("for too long", 2)
		l.end()
		l.start()
		marked("after a restart", 2)
		l.remote("east", 1)
		marked("in contact again")
		l.do(func(c *core) { c.mesh.SetDead("east", true) })
		marked("dead", 2)
		l.do(func(c *core) { c.removeCluster("east") })
		marked("removed")
	})
}

// TestAnswersShowThePolicy: services and explain give tier, weight and share,
// what is wrong with annotations, and what is not carried out.
func TestAnswersShowThePolicy(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(1, policy("tiers", "local, east; west", "weights", "local=3, east=1", "staleness", "soon", "on-withdraw", "reset"))
		l.remote("east", 1)
		l.remote("west", 1)
		l.do(func(c *core) {
			s := c.services(&api.ServicesRequest{}).GetServices()[0]
			var got []string
			for _, b := range s.GetBackends() {
				got = append(got, fmt.Sprintf("%s tier %d weight %d share %.1f", b.GetCluster(), b.GetTier(), b.GetWeight(), b.GetShare()))
			}
			want := []string{"east tier 1 weight 1 share 25.0", "home tier 1 weight 3 share 75.0", "west tier 2 weight 0 share 0.0"}
			if !slices.Equal(got, want) {
				t.Errorf("backends %q, want %q", got, want)
			}
			e, err := c.explain(&api.ExplainRequest{Namespace: "ns", Name: "web"})
			if err != nil {
				t.Error(err)
			}
			for where, lines := range map[string][]string{
				"services": s.GetProblems(), "explain": e.GetServices()[0].GetFindings(), "status": c.status().GetProblems(),
			} {
				text := strings.Join(lines, "\n")
				if !strings.Contains(text, `clustermesh.io/staleness: value "soon" is ignored; write keep, demote:5m`) || !strings.Contains(text, `value "reset" is not carried out`) {
					t.Errorf("%s: %q", where, text)
				}
			}
		})
		l.kernel.sweeping.Store(true)
		l.do(func(c *core) {
			for where, lines := range map[string][]string{
				"services": c.services(&api.ServicesRequest{}).GetServices()[0].GetProblems(), "status": c.status().GetProblems(),
			} {
				if text := strings.Join(lines, "\n"); strings.Contains(text, "on-withdraw") {
					t.Errorf("%s, though connections are ended here: %q", where, text)
				}
			}
		})
		l.kernel.sweeping.Store(false)
		l.own(1, nil)
		l.do(func(c *core) {
			if p := c.status().GetProblems(); len(p) > 0 {
				t.Errorf("problems stay: %q", p)
			}
		})
	})
}

// TestZoneOfThisNode: the node's label counts, and only the own node's.
func TestZoneOfThisNode(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(2, func(s *schema.LocalService) {
			s.TrafficDistribution = "PreferClose"
			s.Backends[0].Zone, s.Backends[1].Zone = "a", "b"
		})
		l.wants("zone unknown", 1, 1)
		for _, node := range []struct{ name, zone string }{{"n", "a"}, {"m", "b"}} {
			n := schema.Node{Name: node.name, Cluster: "home", ClusterID: 1, Labels: map[string]string{zoneLabel: node.zone}}
			l.do(func(c *core) {
				c.updateNodes(kvstore.Update{Changes: []kvstore.Change{{KV: kvstore.KV{Key: schema.NodeKey("home", node.name), Value: n.Encode()}}}})
			})
			d := l.dump()
			if d.Header.Selected() != 1 || netip.AddrFrom16(d.Backends[0].Addr).Unmap() != netip.MustParseAddr("10.1.0.1") {
				t.Errorf("in zone a: %+v", d)
			}
		}
		l.do(func(c *core) {
			c.updateNodes(kvstore.Update{Changes: []kvstore.Change{{KV: kvstore.KV{Key: schema.NodeKey("home", "n")}, Deleted: true}}})
		})
		l.wants("zone forgotten", 1, 1)
	})
}

// TestNodeOnlyServices use the own node's backends and no others.
func TestNodeOnlyServices(t *testing.T) {
	runLone(t, func(l *lone) {
		l.own(2, func(s *schema.LocalService) {
			s.InternalTrafficPolicy = schema.TrafficPolicyLocal
			s.Backends[0].Node, s.Backends[1].Node = "m", "n"
		})
		l.remote("east", 1)
		d := l.dump()
		if d.Header.Selected() != 1 || netip.AddrFrom16(d.Backends[0].Addr).Unmap() != netip.MustParseAddr("10.1.0.2") {
			t.Errorf("used: %+v", d)
		}
		l.own(1, func(s *schema.LocalService) { s.InternalTrafficPolicy = schema.TrafficPolicyLocal })
		l.wants("with no backend here")
		l.do(func(c *core) {
			e, err := c.explain(&api.ExplainRequest{Namespace: "ns", Name: "web"})
			if text := strings.Join(e.GetServices()[0].GetFindings(), "\n"); err != nil || !strings.Contains(text, "no backend is on node n") {
				t.Errorf("%q, %v", text, err)
			}
		})
	})
}

// TestOwnClusterIsHeardFirstAfterARestart: what remote clusters say is not
// decided on before it is known how the own cluster wants it weighed.
func TestOwnClusterIsHeardFirstAfterARestart(t *testing.T) {
	s := newSimulation(t)
	s.clusters["home"].adjust = policy("tiers", "local; *")
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80")
	s.awaitState("east", "synced", "")
	s.await(s.want("home"))
	s.stop()
	s.kernel.most.Store(0)
	home, canary := s.clusters["home"], schema.CanaryKey(schema.KindLocalService, "home", false)
	home.write(canary, nil)
	s.ownLimit = time.Hour
	s.start()
	s.awaitState("home", "syncing", "")
	home.publishAll()
	s.awaitState("east", "synced", "")
	s.await(s.want("home"))
	if most := s.kernel.most.Load(); most > 1 {
		t.Errorf("%d backends were used at some moment", most)
	}
	s.stop()
	home.down.Store(true)
	s.start() // but the own cluster's absence does not keep the others waiting
	s.awaitState("east", "synced", "")
	home.down.Store(false)
	s.await(s.want("home"))
}
