package agent

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// peered is a simulation with a directory of peer files.
func peered(t *testing.T, adjust func(*Config)) *simulation {
	dir := t.TempDir()
	s := newSimulationWith(t, func(c *Config) {
		c.PeersDir = dir
		if adjust != nil {
			adjust(c)
		}
	})
	return s
}

// peer writes the peer file of a cluster, or removes it without text.
func (s *simulation) peer(cluster, text string) {
	s.t.Helper()
	path := filepath.Join(s.agent.cfg.PeersDir, cluster+".yaml")
	err := os.WriteFile(path+".new", []byte(text), 0o600)
	if err == nil && text != "" {
		err = os.Rename(path+".new", path)
	} else if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// frontend is the map's line of service s1 with the given backends.
func frontend(backends ...string) string { return fmt.Sprintf("10.96.0.49:80 ns/s1 %v", backends) }

func (s *simulation) awaitProblem(want string) {
	s.t.Helper()
	s.awaitStatus("a problem with "+want, func(r *api.StatusResponse) bool {
		return want == "" && len(r.GetProblems()) == 0 || want != "" && strings.Contains(strings.Join(r.GetProblems(), "\n"), want)
	})
}

func (s *simulation) awaitStatus(want string, ok func(*api.StatusResponse) bool) {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		var now *api.StatusResponse
		_ = s.agent.core.do(s.t.Context(), func(c *core) { now = c.status() })
		if now != nil && ok(now) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("status is %v, want %s", now, want)
		}
		time.Sleep(time.Millisecond) // polling with a deadline
	}
}

// TestPeerFilesAreFollowed: what a file forbids goes, what it allows comes; a
// bad file changes nothing and shows; without the file all is accepted.
func TestPeerFilesAreFollowed(t *testing.T) {
	s := peered(t, nil)
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80", "10.7.0.1:80")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80", "10.7.0.1:80"))
	s.peer("east", "accepts: {pod-cidrs: [10.2.0.0/16]}")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
	s.peer("east", "accepts: {pod-cidr: [10.7.0.0/16]}")
	s.awaitProblem(`member "accepts.pod-cidr" is not known`)
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
	s.peer("east", "accepts: {pod-cidrs: [10.7.0.0/16], namespaces: [ns]}")
	s.awaitProblem("")
	s.await(frontend("10.1.0.1:80", "10.7.0.1:80"))
	s.peer("east", "accepts: {namespaces: [other]}")
	s.await(frontend("10.1.0.1:80"))
	s.peer("east", "accepts: {cluster-id: 9}")
	s.awaitState("east", "refused", "9 is pinned")
	s.peer("east", "")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80", "10.7.0.1:80"))
}

// TestAPeerFileThatWasNeverGoodAcceptsNothing: what the kernel has stays, and
// the first good file lets the cluster in.
func TestAPeerFileThatWasNeverGoodAcceptsNothing(t *testing.T) {
	s := peered(t, nil)
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
	s.stop()
	s.peer("east", "accepts: [")
	s.say("east", "s1", "10.2.0.2:80")
	s.start()
	s.awaitState("east", "refused", "its peer file is not usable")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
	s.peer("east", "accepts: {max-keys: 5}")
	s.await(frontend("10.1.0.1:80", "10.2.0.2:80"))
}

// TestQuotasOfAPeerFile: a cluster with more keys or bytes than its file allows
// keeps what is known of it and says why; a larger quota takes it in.
func TestQuotasOfAPeerFile(t *testing.T) {
	for name, quota := range map[string]string{"MaxKeys": "max-keys: 1", "MaxBytes": "max-bytes: 300"} {
		t.Run(name, func(t *testing.T) {
			s := peered(t, nil)
			s.say("home", "s1", "10.1.0.1:80")
			s.say("east", "s1", "10.2.0.1:80")
			s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
			s.say("east", "s2", "10.2.0.1:80")
			s.peer("east", "accepts: {"+quota+"}")
			s.awaitCluster("east", "held to its quota", func(c *api.Cluster) bool { return strings.Contains(c.GetLastError(), name) })
			s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
			s.peer("east", "accepts: {max-keys: 100, max-bytes: 100000}")
			s.awaitState("east", "synced", "")
			s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
		})
	}
}

// node is the own cluster's record of a node, or its deletion.
func (s *simulation) node(name string, pods string, addresses ...string) {
	n := schema.Node{Cluster: "home", Name: name, ClusterID: 1}
	for _, a := range addresses {
		n.IPAddresses = append(n.IPAddresses, schema.NodeAddress{Type: "InternalIP", IP: a})
	}
	home := s.clusters["home"]
	if pods == "" {
		home.write(schema.NodeKey("home", name), nil)
		return
	}
	cidr := schema.NewCIDR(netip.MustParsePrefix(pods))
	n.IPv4AllocCIDR = &cidr
	home.write(schema.NodeKey("home", name), n.Encode())
}

// TestOwnRangesAreLearned: addresses of our nodes and pods expel who names them,
// and let them back in when the node is gone; --deny-cidr holds always.
func TestOwnRangesAreLearned(t *testing.T) {
	s := newSimulationWith(t, func(c *Config) { c.DenyCIDRs = []string{"10.96.0.0/12", "192.0.2.7"} })
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80", "10.1.5.5:80", "172.18.0.4:80", "10.97.0.1:80", "192.0.2.7:80")
	s.await(frontend("10.1.0.1:80", "10.1.5.5:80", "10.2.0.1:80", "172.18.0.4:80"))
	s.node("n1", "10.1.4.0/23", "172.18.0.3")
	s.node("n2", "10.1.6.0/23", "172.18.0.4")
	s.clusters["home"].write(schema.CanaryKey(schema.KindNode, "home", false), []byte("now"))
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80"))
	s.awaitCluster("east", "counted as refused", func(c *api.Cluster) bool { return len(c.GetRejections()) > 0 && c.GetRejections()[0].GetCount() >= 4 })
	s.node("n2", "")
	s.await(frontend("10.1.0.1:80", "10.2.0.1:80", "172.18.0.4:80"))
	s.node("n1", "10.1.8.0/23", "172.18.0.3")
	s.await(frontend("10.1.0.1:80", "10.1.5.5:80", "10.2.0.1:80", "172.18.0.4:80"))
}

// TestTheBrakeAndItsEnds: what a cluster withdraws at once stays in the maps,
// shows, and goes when an operator, the cluster or the time says so.
func TestTheBrakeAndItsEnds(t *testing.T) {
	hold := time.Hour
	s := newSimulationWith(t, func(c *Config) {
		c.WithdrawalBrakePercent, c.WithdrawalBrakeWindow, c.WithdrawalBrakeHold = 50, time.Hour, hold
	})
	many := []string{"10.2.0.1:80", "10.2.0.2:80", "10.2.0.3:80"}
	s.say("home", "s1")
	s.say("east", "s1", many...)
	s.settle()
	s.await(frontend(many...))
	s.kernel.keepFull.Store(true)
	s.say("east", "s1")
	s.awaitCluster("east", "held", func(c *api.Cluster) bool { return c.GetHeld() == 3 })
	s.awaitProblem("clustermesh release east")
	s.await(frontend(many...))
	for _, b := range s.services().GetServices()[0].GetBackends() {
		if b.GetState() != "held" || !b.GetSelected() {
			t.Errorf("%v is not shown as held", b)
		}
	}
	s.say("east", "s1", many...)
	s.awaitProblem("")
	hold = 50 * time.Millisecond // of the next life
	s.say("east", "s1", many[0])
	s.awaitProblem("clustermesh release east")
	s.kernel.keepFull.Store(false)
	if len(s.kernel.emptied) > 0 {
		t.Error(s.kernel.emptied)
	}
	if n := s.release("east"); n != 2 {
		t.Errorf("released %d", n)
	}
	s.await(frontend(many[0]))
	s.say("east", "s1", many...)
	s.await(frontend(many...))
	s.clusters["east"].down.Store(true)
	s.clusters["east"].BreakWatches(nil)
	s.stop()
	s.say("east", "s1")
	s.clusters["east"].down.Store(false)
	s.start()
	s.awaitCluster("east", "synced", func(c *api.Cluster) bool { return c.GetState() == "synced" })
	s.await(frontend())
}

// settle starts a new life of the agent that hears everything said so far in its
// first list, so that no window of withdrawals is open.
func (s *simulation) settle() {
	s.t.Helper()
	s.await(s.want(all...))
	s.stop()
	s.start()
	for _, c := range all {
		s.awaitState(c, "synced", "")
	}
}

func (s *simulation) services() (out *api.ServicesResponse) {
	_ = s.agent.core.do(s.t.Context(), func(c *core) { out = c.services(&api.ServicesRequest{}) })
	return out
}

func (s *simulation) release(cluster string) (n int) {
	_ = s.agent.core.do(s.t.Context(), func(c *core) { n = c.release(cluster, "a test asked for it") })
	return n
}

// TestAnotherIDIsHeldForATime: a cluster that was rebuilt with another id is
// accepted once an operator, or the time, lets go of what it had.
func TestAnotherIDIsHeldForATime(t *testing.T) {
	for _, hold := range []time.Duration{time.Hour, 100 * time.Millisecond} {
		s := newSimulationWith(t, func(c *Config) {
			c.WithdrawalBrakePercent, c.WithdrawalBrakeWindow, c.WithdrawalBrakeHold = 50, time.Hour, hold
		})
		s.say("home", "s1")
		s.say("east", "s1", "10.2.0.1:80")
		s.settle()
		s.clusters["east"].down.Store(true) // while it is rebuilt
		s.clusters["east"].BreakWatches(nil)
		s.clusters["east"].id = 9
		s.clusters["east"].publishAll()
		s.clusters["east"].down.Store(false)
		if hold == time.Hour {
			s.awaitCluster("east", "refused", func(c *api.Cluster) bool { return strings.Contains(c.GetLastError(), "clustermesh release east") })
			s.await(frontend("10.2.0.1:80"))
			if n := s.release("east"); n != 1 {
				t.Errorf("released %d", n)
			}
		}
		s.awaitCluster("east", "accepted", func(c *api.Cluster) bool { return c.GetId() == 9 && c.GetState() == "synced" })
		s.await(frontend("10.2.0.1:80"))
		s.stop()
	}
}
