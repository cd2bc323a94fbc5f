package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/liveness/probe"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// probing is a simulation whose agent probes; what the network does to east is
// set here.
type probing struct {
	*simulation
	path    atomic.Bool // probes of east's backends are answered
	nodes   atomic.Bool // probes of east's nodes are answered
	control atomic.Bool // east's apiserver answers requests
	probes  atomic.Int64
	rtt     [4]atomic.Int64 // by the number of the cluster
	targets sync.Map        // netip.AddrPort, all that were probed
}

func newProbing(t *testing.T) *probing {
	p := &probing{simulation: newSimulation(t)}
	p.path.Store(true)
	p.nodes.Store(true)
	for i := range p.rtt {
		p.rtt[i].Store(int64(time.Millisecond))
	}
	p.control.Store(true)
	p.stop()
	p.adjust = func(c *Config) { c.Probe, c.ProbeInterval, c.ProbeNodePort = true, 10*time.Millisecond, 10250 }
	p.simulation.probe = p.answer
	p.replace("east", p.dialEast)
	p.start()
	p.say("home", "s1", "10.1.0.1:80")
	p.say("home", "s2")
	for _, service := range []string{"s1", "s2"} {
		p.say("east", service, "10.2.0.1:80", "10.2.0.2:80", "10.2.0.3:80", "10.2.0.4:80")
	}
	p.haveNodes("east", "172.16.2.1", "172.16.2.2", "172.16.2.3", "172.16.2.4")
	p.await(p.want(all...))
	p.awaitCluster("east", "probed", func(c *api.Cluster) bool {
		return c.GetDataPath() == "ok" && c.GetRttSeconds() > 0 && c.GetNodePath() == "ok"
	})
	return p
}

// answer is the network as probes see it.
func (p *probing) answer(_ context.Context, target netip.AddrPort) (time.Duration, probe.Outcome) {
	p.probes.Add(1)
	p.targets.Store(target, true)
	cluster, path := target.Addr().As4()[1], &p.path
	if cluster == 16 {
		cluster, path = target.Addr().As4()[2], &p.nodes
	}
	if cluster == 2 && !path.Load() {
		return time.Millisecond, probe.Failed
	}
	return time.Duration(p.rtt[cluster].Load()), probe.Answered
}

// mutable is a connection that gives no more signs of life once it is cut off,
// without ending.
type mutable struct {
	*memoryConn
	p *probing
}

func (m *mutable) Range(ctx context.Context, start, end string, limit, revision int64) (kvstore.Range, error) {
	if !m.p.control.Load() {
		<-ctx.Done()
		return kvstore.Range{}, ctx.Err()
	}
	return m.memoryConn.Range(ctx, start, end, limit, revision)
}

func (p *probing) dialEast(context.Context, string, clusterfile.File) (connection, error) {
	if p.clusters["east"].down.Load() || !p.control.Load() {
		return nil, errDown
	}
	return &mutable{&memoryConn{fakeCluster: p.clusters["east"]}, p}, nil
}

// pass waits until many more probes were made than a verdict takes.
func (p *probing) pass() {
	p.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for until := p.probes.Load() + 60; p.probes.Load() < until; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatal("no more probes are made")
		}
	}
}

func (p *probing) awaitDead(dead bool) {
	p.t.Helper()
	p.awaitCluster("east", "dead or not", func(c *api.Cluster) bool { return c.GetDead() == dead })
}

// withoutEast is what is used while east is dead: s2 has nothing else.
const withoutEast = "10.96.0.49:80 ns/s1 [10.1.0.1:80]\n10.96.0.50:80 ns/s2 [10.2.0.1:80 10.2.0.2:80 10.2.0.3:80 10.2.0.4:80]"

// TestADeadClusterIsLeftAndTakenBack: an apiserver that falls silent under an
// open connection and backends that do not answer, through a restart of the
// agent, and with a service that has no other backends.
func TestADeadClusterIsLeftAndTakenBack(t *testing.T) {
	p := newProbing(t)
	p.kernel.keepFull.Store(true)
	p.control.Store(false)
	p.path.Store(false)
	p.await(withoutEast)
	p.awaitDead(true)
	var explained string
	_ = p.agent.core.do(t.Context(), func(c *core) { explained = fmt.Sprint(c.explainNamed(lb.ServiceName{Namespace: "ns", Name: "s1"})) })
	if !strings.Contains(explained, "cluster east is dead") || !strings.Contains(explained, lb.ReasonQuarantined) {
		t.Errorf("explained by %s", explained)
	}
	if text := inventory(t, p.agent.cfg.Registry); !strings.Contains(text, "clustermesh_agent_cluster_alive{cluster}") {
		t.Errorf("metrics lack the state: %s", text)
	}
	p.stop()
	p.start()
	p.awaitDead(true)
	p.pass()
	p.await(withoutEast)
	p.path.Store(true)
	p.awaitDead(false)
	p.await(p.want(all...))
	p.control.Store(true)
	p.awaitCluster("east", "synced", func(c *api.Cluster) bool { return c.GetState() == "synced" })
	p.await(p.want(all...))
	p.kernel.keepFull.Store(false)
	if len(p.kernel.emptied) > 0 {
		t.Error(p.kernel.emptied)
	}
}

// TestAProbingThatEndsLeavesNobodyDead: an agent that does not probe has nobody
// who could take the verdict of a former life back.
func TestAProbingThatEndsLeavesNobodyDead(t *testing.T) {
	p := newProbing(t)
	p.control.Store(false)
	p.path.Store(false)
	p.await(withoutEast)
	p.stop()
	p.adjust = nil
	p.start()
	p.await(p.want(all...))
}

// TestTheControlLinkAloneMovesNothing: the apiserver is gone, then hangs.
func TestTheControlLinkAloneMovesNothing(t *testing.T) {
	p := newProbing(t)
	east := p.clusters["east"]
	east.down.Store(true)
	east.BreakWatches(nil)
	p.awaitCluster("east", "stale", func(c *api.Cluster) bool { return c.GetState() == "stale" })
	p.pass()
	p.awaitDead(false)
	p.await(p.want(all...))
	p.control.Store(false)
	east.down.Store(false)
	p.pass()
	p.awaitDead(false)
	p.await(p.want(all...))
}

// TestTheDataPathAloneMovesNothing but status says so; so does a check that the
// connection answers each time it is asked.
func TestTheDataPathAloneMovesNothing(t *testing.T) {
	p := newProbing(t)
	var asked atomic.Int64
	p.clusters["east"].SetFault(func(f kvstore.Fault) error {
		if f.Op == kvstore.FaultRange && f.Key == schema.HeartbeatKey {
			asked.Add(1)
		}
		return nil
	})
	p.path.Store(false)
	p.awaitCluster("east", "failing", func(c *api.Cluster) bool { return c.GetDataPath() == "failing" })
	p.pass()
	p.awaitDead(false)
	p.await(p.want(all...))
	if asked.Load() < 3 {
		t.Errorf("the connection was asked %d times for a sign of life", asked.Load())
	}
	var problems string
	_ = p.agent.core.do(t.Context(), func(c *core) { problems = strings.Join(c.status().GetProblems(), "\n") })
	if !strings.Contains(problems, "east: none of its backends answers probes") || strings.Contains(problems, "west") {
		t.Errorf("problems: %s", problems)
	}
	p.path.Store(true)
	p.awaitCluster("east", "ok", func(c *api.Cluster) bool { return c.GetDataPath() == "ok" })
}
