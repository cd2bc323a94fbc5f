package agent

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// TestProgressAgainstOracle: whatever comes in whatever order, a marker is
// reached exactly when the services are through its revision and the announcement
// is known up to there, the newest first, and none twice.
func TestProgressAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p progress
		var through, said, seen, acked int64
		waiting := map[int64]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"marker": func(t *rapid.T) {
				seen += rapid.Int64Range(1, 5).Draw(t, "later")
				p.see(schema.Marker{Stamp: schema.Stamp{Micros: seen}}, seen)
				if len(waiting) == maxPending {
					delete(waiting, slices.Max(slices.Collect(maps.Keys(waiting))))
				}
				waiting[seen] = true
			},
			"services": func(t *rapid.T) {
				through = max(through, rapid.Int64Range(0, seen+3).Draw(t, "through"))
				p.through = through
			},
			"announcement": func(t *rapid.T) {
				said = max(said, rapid.Int64Range(0, seen+3).Draw(t, "said"))
				p.said = said
			},
			"reach": func(t *rapid.T) {
				due := p.due()
				m, ok := p.reach()
				want := int64(0)
				for revision := range waiting {
					if revision <= min(through, said) {
						want = max(want, revision)
						delete(waiting, revision)
					}
				}
				if ok != (want > 0) || due != ok || ok && m.Micros != want || ok && want <= acked {
					t.Fatalf("reached %d, %v (due %v), want %d, after %d", m.Micros, ok, due, want, acked)
				}
				acked = max(acked, want)
			},
			"connection": func(*rapid.T) {
				p.restart()
				through, said = 0, 0
				clear(waiting)
			},
		})
	})
}

func TestLags(t *testing.T) {
	var l lags
	if p50, p99 := l.quantiles(); p50 != 0 || p99 != 0 || l.count() != 0 {
		t.Error("lags without samples")
	}
	for i := range 1000 {
		l.add(time.Duration(i))
	}
	if p50, p99 := l.quantiles(); l.count() != 256 || p50 != 744+127 || p99 != 744+252 {
		t.Errorf("%d samples, p50 %d, p99 %d", l.count(), p50, p99)
	}
}

func TestRemedies(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "dial x: refused; check the port": "check the port", "a; b; c": "c", "dial a; do b\ndial c; do d": "do d", "odd": "clustermesh troubleshoot",
	} {
		if got := remedyOf(text); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// mark writes a marker behind all that the cluster has published.
func (f *fakeCluster) mark(asked bool) schema.Marker {
	f.stamp = max(f.stamp+1, time.Now().UnixMicro())
	m := schema.Marker{Stamp: schema.Stamp{Micros: f.stamp, Incarnation: 7}, Begun: f.stamp, Asked: asked}
	f.write(schema.MarkerKey(f.name), m.Encode())
	return m
}

// history knows what each cluster had said of each service at each stamp: its
// one backend, whose address holds a number that only grows.
type history struct {
	mu     sync.Mutex
	said   map[string]map[schema.Stamp]map[string]int // number by service, by cluster and stamp
	last   map[string]int                             // by cluster and service
	acked  int
	faults []string
}

func (h *history) say(s *simulation, cluster, service string) {
	key := cluster + " " + service
	h.last[key]++
	s.say(cluster, service, fmt.Sprintf("10.%d.%d.2:80", s.clusters[cluster].id, h.last[key]))
}

func (h *history) mark(s *simulation, cluster string) {
	numbers := map[string]int{}
	for key, n := range h.last {
		if name, service, _ := strings.Cut(key, " "); name == cluster {
			numbers[service] = n
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := s.clusters[cluster]
	if h.said[cluster] == nil {
		h.said[cluster] = map[schema.Stamp]map[string]int{}
	}
	h.said[cluster][c.mark(false).Stamp] = numbers // nobody looks before the lock is given back
}

// check looks at the maps at the moment of an acknowledgement.
func (h *history) check(s *simulation) func(*core, string, schema.Marker) {
	return func(c *core, cluster string, m schema.Marker) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.acked++
		dump, err := c.kernel.Dump()
		if err != nil {
			h.faults = append(h.faults, err.Error())
			return
		}
		have := map[string]int{}
		for _, f := range dump.Frontends {
			for _, b := range f.Backends[:f.Header.Selected()] {
				if a := netip.AddrFrom16(b.Addr).Unmap().As4(); uint32(a[1]) == s.clusters[cluster].id {
					have[text(f.Meta.Name[:])] = max(have[text(f.Meta.Name[:])], int(a[2]))
				}
			}
		}
		for service, n := range h.said[cluster][m.Stamp] {
			if have[service] < n {
				h.faults = append(h.faults, fmt.Sprintf("%s %s: stamp %d acknowledged with number %d of %d in the maps", cluster, service, m.Micros, have[service], n))
			}
		}
	}
}

// TestNoAcknowledgementBeforeTheMaps: at every acknowledgement the maps have all
// that the cluster had said at the stamp, through broken connections, compaction,
// lost stores, moves of what is published, and restarts of the agent.
func TestNoAcknowledgementBeforeTheMaps(t *testing.T) {
	for i := range 6 {
		seed := uint64(time.Now().UnixNano()) + uint64(i)
		t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			h := &history{said: map[string]map[schema.Stamp]map[string]int{}, last: map[string]int{}}
			s := newSimulation(t)
			s.stop()
			s.tune = func(c *core) { c.noted = h.check(s) }
			s.start()
			for i := range 3 {
				h.say(s, "home", fmt.Sprintf("s%d", i)) // what only others have is nobody's here
			}
			s.await(s.want(all...))
			for range 200 {
				h.step(s, rng)
			}
			for _, name := range all {
				s.clusters[name].down.Store(false)
				h.mark(s, name)
			}
			s.await(s.want(all...))
			s.awaitNewest()
			h.mu.Lock()
			defer h.mu.Unlock()
			if len(h.faults) > 0 || h.acked < len(all) {
				t.Fatalf("%d acknowledgements; %s", h.acked, strings.Join(h.faults, "\n"))
			}
		})
	}
}

// forget is called before a cluster moves what it says to other keys. When it
// moves back within the time of one look at its announcement, a reader may for a
// moment believe that all is gone, whatever it has acknowledged before.
func (h *history) forget(cluster string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.said, cluster)
}

func (h *history) step(s *simulation, rng *rand.Rand) {
	name := all[rng.IntN(len(all))]
	c := s.clusters[name]
	switch rng.IntN(16) {
	default:
		h.say(s, name, fmt.Sprintf("s%d", rng.IntN(3)))
	case 6, 7, 8, 9:
		h.mark(s, name)
	case 10:
		c.BreakWatches(nil)
	case 11:
		c.Compact(c.Revision())
	case 12:
		c.down.Store(!c.down.Load())
		c.BreakWatches(nil)
	case 13:
		c.restart(randomShape(rng, c))
	case 14:
		h.forget(name)
		c.move(randomShape(rng, c))
	case 15:
		if rng.IntN(4) == 0 {
			s.stop()
			s.start()
		}
	}
}

// awaitNewest waits until the newest marker of every cluster is acknowledged.
func (s *simulation) awaitNewest() {
	s.t.Helper()
	for _, name := range all {
		want := schema.Stamp{Micros: s.clusters[name].stamp, Incarnation: 7}.String()
		s.awaitCluster(name, "acknowledged "+want, func(c *api.Cluster) bool { return c.GetAcknowledged() == want })
	}
}

// TestFullMapsHoldBackAcknowledgements: while a service does not fit, nobody who
// adds to it is acknowledged; others are.
func TestFullMapsHoldBackAcknowledgements(t *testing.T) {
	s := newSmallSimulation(t, 10, 16)
	s.say("home", "s1", backends(1, 3)...)
	s.say("west", "s2", backends(3, 1)...)
	for _, name := range all {
		s.clusters[name].mark(false)
	}
	s.awaitNewest()
	before := s.clusters["east"].stamp
	s.say("east", "s1", backends(2, 14)...)
	s.awaitFull(1, "backend records")
	s.clusters["east"].mark(false)
	s.clusters["west"].mark(false)
	west := schema.Stamp{Micros: s.clusters["west"].stamp, Incarnation: 7}.String()
	s.awaitCluster("west", "acknowledged", func(c *api.Cluster) bool { return c.GetAcknowledged() == west })
	s.awaitCluster("east", "held back", func(c *api.Cluster) bool {
		return c.GetAcknowledged() == schema.Stamp{Micros: before, Incarnation: 7}.String()
	})
	if r := s.wait(&api.WaitRequest{TimeoutSeconds: 0.05}); r.GetDone() || !strings.Contains(fmt.Sprint(r.GetBehind()), "1 service does not fit") {
		t.Errorf("waiting ends with %v", r)
	}
	s.say("east", "s1", backends(2, 1)...)
	s.awaitNewest()
}

func (s *simulation) wait(r *api.WaitRequest) *api.WaitResponse {
	s.t.Helper()
	got, err := (&local{core: s.agent.core}).Wait(s.t.Context(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// TestWaitOnANode: with everything asked for, one cluster only, and a stamp given.
func TestWaitOnANode(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1")
	for _, name := range all {
		s.clusters[name].mark(false)
	}
	s.awaitNewest()
	for i := range 20 {
		s.say("east", "s1", fmt.Sprintf("10.2.0.%d:80", i+1))
		m := s.clusters["east"].mark(true)
		requests := []*api.WaitRequest{{TimeoutSeconds: 30}, {TimeoutSeconds: 30, Clusters: []string{"east"}},
			{TimeoutSeconds: 30, Targets: []*api.Target{{Cluster: "east", Stamp: m.Stamp.String()}}}}
		if r := s.wait(requests[i%3]); !r.GetDone() || len(r.GetTargets()) != []int{3, 1, 1}[i%3] {
			t.Fatalf("waiting ends with %v", r)
		}
		if got, want := s.have(), s.want(all...); got != want {
			t.Fatalf("after waiting the maps hold\n%s\nwant\n%s", got, want)
		}
	}
	later := schema.Stamp{Micros: s.clusters["east"].stamp + 1, Incarnation: 7}.String()
	s.clusters["west"].down.Store(true)
	s.clusters["west"].BreakWatches(nil)
	s.awaitState("west", "stale", "")
	for reason, r := range map[string]*api.WaitRequest{
		"not all in the maps": {Targets: []*api.Target{{Cluster: "east", Stamp: later}}},
		"stale: ":             {Clusters: []string{"west"}},
		"no cluster of this":  {Clusters: []string{"north"}},
	} {
		r.TimeoutSeconds = 0.1
		if got := s.wait(r); got.GetDone() || !strings.Contains(fmt.Sprint(got.GetBehind()), reason) {
			t.Errorf("waiting ends with %v, want %q", got, reason)
		}
	}
	_, err := (&local{core: s.agent.core}).Wait(t.Context(), &api.WaitRequest{Targets: []*api.Target{{Cluster: "east", Stamp: "7"}}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad stamp: %v", err)
	}
}

// TestClocksThatDiffer: a cluster whose clock is ahead is named, and its markers
// are acknowledged all the same.
func TestClocksThatDiffer(t *testing.T) {
	s := newSimulation(t)
	s.clusters["east"].stamp = time.Now().Add(time.Hour).UnixMicro()
	for _, name := range all {
		s.clusters[name].mark(false)
	}
	s.awaitNewest()
	s.awaitStatus("the clock of east alone", func(r *api.StatusResponse) bool {
		text := strings.Join(r.GetProblems(), "\n")
		return strings.Contains(text, "east: its clock is ahead") && !strings.Contains(text, "west: its clock")
	})
}

// TestWithoutMarkers: a cluster that writes none is followed all the same, and
// only those who ask for it hear that nothing can wait for it.
func TestWithoutMarkers(t *testing.T) {
	s := newSimulation(t)
	s.say("home", "s1", "10.1.0.1:80")
	s.clusters["home"].mark(false)
	s.await(s.want(all...))
	for _, name := range all {
		s.awaitState(name, "synced", "")
	}
	if r := s.wait(&api.WaitRequest{TimeoutSeconds: 30}); !r.GetDone() || len(r.GetTargets()) != 1 {
		t.Errorf("waiting ends with %v", r)
	}
	r := s.wait(&api.WaitRequest{TimeoutSeconds: 0.1, Clusters: []string{"east"}})
	if r.GetDone() || len(r.GetBehind()) != 1 {
		t.Errorf("waiting ends with %v", r)
	}
}

func (s *simulation) unconfigure(name string) {
	if err := os.Remove(s.file(name)); err != nil {
		s.t.Fatal(err)
	}
}
