package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// The simulation runs whole agents over stores and maps in memory: everything
// but the network and the kernel is the shipped code.

// simulation is one node's agent among clusters.
type simulation struct {
	t        *testing.T
	dir      string
	mu       sync.Mutex // guards clusters against the agent's connections
	clusters map[string]*fakeCluster
	kernel   *memoryKernel
	over     Kernel // what the agent runs on, if not kernel itself: something around it
	agent    *Agent
	stop     func()
	adjust   func(*Config) // the configuration, or nil
	probe    prober        // instead of the network, if set before start
	ownLimit time.Duration // instead of the usual one, if not 0
	tune     func(*core)   // called before the agent runs, or nil
	// instead, by cluster, takes the place of a connection to its fake.
	instead map[string]dialer
}

func (s *simulation) connect(ctx context.Context, name string, file clusterfile.File) (connection, error) {
	s.mu.Lock()
	c, instead := s.clusters[name], s.instead[name]
	s.mu.Unlock()
	if instead != nil {
		return instead(ctx, name, file)
	}
	if c == nil || c.down.Load() {
		return nil, errDown
	}
	return &memoryConn{fakeCluster: c}, nil
}

func newSimulation(t *testing.T) *simulation { return newSimulationWith(t, nil) }

func newSimulationWith(t *testing.T, adjust func(*Config)) *simulation {
	k := newMemoryKernel()
	return newSimulationOver(t, k, nil, nil, adjust)
}

// newSimulationOver runs the agent on something around a kernel, and has some
// clusters reached otherwise than in memory.
func newSimulationOver(t *testing.T, k *memoryKernel, over Kernel, instead map[string]dialer, adjust func(*Config)) *simulation {
	s := &simulation{t: t, dir: t.TempDir(), adjust: adjust, clusters: map[string]*fakeCluster{}, kernel: k, over: over, instead: instead}
	s.clusters["home"] = newLocalCluster("home", 1)
	s.clusters["east"] = newFakeCluster("east", 2, shape{})
	s.clusters["west"] = newFakeCluster("west", 3, shape{mode: schema.ModeServicesAndEndpointSlices})
	for _, name := range all {
		s.configure(name)
	}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *simulation) add(c *fakeCluster) {
	s.mu.Lock()
	s.clusters[c.name] = c
	s.mu.Unlock()
}

// replace makes a cluster be reached otherwise from now on, or, without a
// dialer, as before.
func (s *simulation) replace(name string, d dialer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.instead == nil {
		s.instead = map[string]dialer{}
	}
	s.instead[name] = d
}

func (s *simulation) file(name string) string { return filepath.Join(s.dir, "clusters", name) }

func (s *simulation) configure(name string) {
	if err := os.MkdirAll(filepath.Dir(s.file(name)), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.file(name), []byte(goodFile), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *simulation) start() {
	cfg := Config{
		ClusterName: "home", ClusterID: 1, NodeName: "n", ClustersDir: filepath.Join(s.dir, "clusters"), BPFFS: s.dir, StateDir: s.dir,
		APISocket: filepath.Join(s.dir, "api"), MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if s.adjust != nil {
		s.adjust(&cfg)
	}
	kernel := Kernel(s.kernel)
	if s.over != nil {
		kernel = s.over
	}
	a, err := New(cfg, kernel)
	if err != nil {
		s.t.Fatal(err)
	}
	a.dial = s.connect
	if s.tune != nil {
		s.tune(a.core)
	}
	if s.probe != nil {
		a.probe = s.probe
	}
	if s.ownLimit > 0 {
		a.core.ownLimit = s.ownLimit
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := a.Run(ctx); err != nil {
			s.t.Errorf("agent ended: %v", err)
		}
	})
	s.agent, s.stop = a, func() { cancel(); ended.Wait() }
}

// want is a naive oracle: what each frontend must use, computed from what the
// clusters say.
func (s *simulation) want(members ...string) string {
	var lines []string
	for service := range s.clusters["home"].said {
		var backends []string
		for _, name := range members {
			for b := range s.clusters[name].said[service] {
				backends = append(backends, b)
			}
		}
		slices.Sort(backends)
		lines = append(lines, fmt.Sprintf("%s:80 ns/%s %v", clusterIP(service), service, slices.Compact(backends)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// have is what the maps hold, read on the core's goroutine.
func (s *simulation) have() (out string) {
	err := s.agent.core.do(s.t.Context(), func(c *core) {
		dump, err := c.kernel.Dump()
		if err != nil {
			out = err.Error()
			return
		}
		var lines []string
		for _, f := range dump.Frontends {
			var backends []string
			for _, b := range f.Backends[:f.Header.Selected()] {
				backends = append(backends, netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), uint16(port(b.Port))).String())
			}
			slices.Sort(backends)
			lines = append(lines, fmt.Sprintf("%s:%d %s/%s %v", address(f.Key.Addr), port(f.Key.Port), text(f.Meta.Namespace[:]), text(f.Meta.Name[:]), backends))
		}
		slices.Sort(lines)
		out = strings.Join(lines, "\n")
	})
	if err != nil {
		return err.Error()
	}
	return out
}

func (s *simulation) await(want string) {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for got := s.have(); got != want; got = s.have() {
		if time.Now().After(deadline) {
			s.t.Fatalf("maps hold\n%s\nwant\n%s", got, want)
		}
		time.Sleep(time.Millisecond) // polling with a deadline
	}
	if v := s.kernel.Violations(); len(v) > 0 {
		s.t.Fatalf("rules of the maps violated: %v", v)
	}
}

func (s *simulation) say(cluster, service string, backends ...string) {
	c := s.clusters[cluster]
	c.said[service] = map[string]bool{}
	for _, b := range backends {
		c.said[service][b] = true
	}
	c.publish(service)
}

var all = []string{"home", "east", "west"}

func TestBackendsOfAllClustersMerge(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80", "10.2.0.2:80")
	s.say("west", "s1", "10.3.0.1:80")
	s.say("west", "unknown-here", "10.3.0.9:80")
	s.await(s.want(all...))
}

// Everything dies and comes back empty: nothing that still exists somewhere may
// leave the maps at any moment (promises 3, 4 and 9).
func TestNothingIsLostWhileControlPlanesDie(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(s.want(all...))
	s.kernel.keepFull.Store(true)
	for _, c := range s.clusters {
		c.down.Store(true)
		c.BreakWatches(nil)
	}
	s.stop()
	s.start() // restarted while everything is down
	s.await(s.want(all...))
	for _, c := range s.clusters {
		c.NewLife() // data directory lost, nothing published yet
		c.down.Store(false)
	}
	s.await(s.want(all...))
	for _, name := range []string{"east", "west", "home"} {
		s.clusters[name].publishAll()
		s.await(s.want(all...))
	}
	s.say("east", "s1", "10.2.0.7:80") // followed again
	s.await(s.want(all...))
	s.kernel.keepFull.Store(false)
	if len(s.kernel.emptied) > 0 {
		t.Error(s.kernel.emptied)
	}
}

func TestRemovingAFileDrainsExactlyThatCluster(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1", "10.1.0.1:80")
	s.say("east", "s1", "10.2.0.1:80")
	s.say("west", "s1", "10.3.0.1:80")
	s.await(s.want(all...))
	if err := os.Remove(s.file("east")); err != nil {
		t.Fatal(err)
	}
	s.await(s.want("home", "west"))
	s.configure("east")
	s.await(s.want(all...))
	s.stop()
	if err := os.Remove(s.file("west")); err != nil {
		t.Fatal(err)
	}
	s.start() // a file that went away while nobody looked
	s.await(s.want("home", "east"))
}

func TestSecondClaimantOfAnIDIsRefused(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(s.want(all...))
	s.add(newFakeCluster("thief", 2, shape{}))
	s.say("thief", "s1", "10.9.0.1:80")
	s.configure("thief")
	s.awaitState("thief", "refused", "held by cluster east")
	s.await(s.want(all...))
	s.add(newFakeCluster("own", 1, shape{}))
	s.configure("own")
	s.awaitState("own", "refused", "1")
	s.say("east", "s1", "10.2.0.2:80") // the rest goes on
	s.await(s.want(all...))
}

// shapes are the ways in which a cluster may publish, and what is read then.
var shapes = []struct{ mode, source string }{
	{"", "services"},
	{schema.ModeServicesAndEndpointSlices, "endpointslices"},
	{schema.ModeEndpointSlicesOnly, "endpointslices"},
}

// TestAChangeOfSourceNeverEmpties: a cluster that publishes something else,
// after a restart or, behind a relay, under an open connection, is read from
// there, and what exists before and after stays in the maps at every moment.
func TestAChangeOfSourceNeverEmpties(t *testing.T) {
	for name, change := range map[string]func(*fakeCluster, shape){"restart": (*fakeCluster).restart, "move": (*fakeCluster).move} {
		t.Run(name, func(t *testing.T) {
			s := newSimulation(t)
			s.say("home", "s1")
			s.say("east", "s1", "10.2.0.1:80", "10.2.0.2:80")
			s.await(s.want(all...))
			s.kernel.keepFull.Store(true)
			for _, i := range []int{0, 1, 0, 2, 1, 2, 0} {
				for _, cached := range []bool{i%2 == 0, i%2 == 1} {
					l := shapes[i]
					change(s.clusters["east"], shape{l.mode, cached})
					s.awaitSource("east", l.source)
					s.await(s.want(all...))
					s.say("east", "s1", "10.2.0.2:80", "10.2.0.3:80") // it is followed there
					s.await(s.want(all...))
					s.say("east", "s1", "10.2.0.1:80", "10.2.0.2:80")
					s.await(s.want(all...))
				}
			}
			s.kernel.keepFull.Store(false)
			if len(s.kernel.emptied) > 0 {
				t.Error(s.kernel.emptied)
			}
		})
	}
}

// TestOnlyTheCanaryOfWhatIsReadCounts: a cluster that announces slices is not
// listed before they are complete, though its services are.
func TestOnlyTheCanaryOfWhatIsReadCounts(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1")
	s.say("east", "s1", "10.2.0.1:80")
	s.await(s.want(all...))
	s.kernel.keepFull.Store(true)
	east, canary := s.clusters["east"], schema.CanaryKey(schema.KindEndpointSlice, "east", false)
	awaited := make(chan struct{}, 1)
	east.SetFault(func(f kvstore.Fault) error {
		if f.Op == kvstore.FaultWatch && f.Key == canary {
			select {
			case awaited <- struct{}{}:
			default:
			}
		}
		return nil
	})
	east.down.Store(true)
	east.restart(shape{mode: schema.ModeServicesAndEndpointSlices})
	east.write(canary, nil)
	slice := schema.EndpointSliceKey("east", "ns", "s1-1")
	east.write(slice, nil)
	east.down.Store(false)
	select {
	case <-awaited:
	case <-time.After(30 * time.Second):
		t.Fatal("the canary of the slices is not awaited")
	}
	s.awaitState("east", "syncing", "")
	s.await(s.want(all...))
	east.publishAll()
	s.awaitSource("east", "endpointslices")
	s.await(s.want(all...))
	s.kernel.keepFull.Store(false)
	if len(s.kernel.emptied) > 0 {
		t.Error(s.kernel.emptied)
	}
}

// TestRandomHistories does what nobody would do by hand, then compares with the
// oracle. A seed that fails prints itself.
func TestRandomHistories(t *testing.T) {
	for i := range 8 {
		seed := uint64(time.Now().UnixNano()) + uint64(i)
		t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			s := newSimulation(t)
			for range 6 {
				for range 30 {
					s.disturb(rng)
				}
				for _, c := range s.clusters {
					c.down.Store(false)
				}
				s.await(s.want(all...))
			}
		})
	}
}

func (s *simulation) disturb(rng *rand.Rand) {
	name := all[rng.IntN(len(all))]
	c := s.clusters[name]
	service := fmt.Sprintf("s%d", rng.IntN(4))
	switch rng.IntN(13) {
	default:
		var backends []string
		for n := range rng.IntN(4) {
			backends = append(backends, fmt.Sprintf("10.%d.0.%d:80", c.id, n+1))
		}
		s.say(name, service, backends...)
	case 6, 7:
		delete(c.said, service)
		c.publish(service)
	case 8:
		c.BreakWatches(nil)
	case 9:
		c.Compact(c.Revision())
	case 10:
		c.down.Store(!c.down.Load())
		c.BreakWatches(nil)
	case 11:
		if rng.IntN(2) == 0 {
			c.restart(randomShape(rng, c))
			return
		}
		s.stop()
		s.start()
	case 12:
		c.move(randomShape(rng, c))
	}
}

func randomShape(rng *rand.Rand, c *fakeCluster) shape {
	if c.local {
		return shape{}
	}
	return shape{shapes[rng.IntN(len(shapes))].mode, rng.IntN(2) == 0}
}
