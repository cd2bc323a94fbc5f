package bpf

import (
	"fmt"
	"math"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// A walk takes the backends of a service away, one after the other and tier after
// tier until one is left, and gives them back in the opposite order. At each step
// the kernel's shares are those that the policy's description promises.

// Cluster 1 is the agent's own.
const (
	walkClusters = 4
	walkEach     = 5 // backends of a cluster
)

// walk is a policy, and what it means in the words of the model: tiers of clusters,
// and their weights, 0 if each backend has the same share.
type walk struct {
	name    string
	policy  lb.Policy
	tiers   [][]int
	weights [walkClusters + 1]float64
}

func walks() []walk {
	three := [][]string{{"local"}, {"c2", "c3"}, {"*"}}
	tiers := [][]int{{1}, {2, 3}, {4}}
	weighted := []lb.ClusterWeight{{Cluster: "local", Weight: 1}, {Cluster: "c2", Weight: 3}, {Cluster: "c3", Weight: 1}, {Cluster: "*", Weight: 2}}
	weights := [walkClusters + 1]float64{0, 1, 3, 1, 2}
	return []walk{
		{name: "weights", policy: lb.Policy{Weights: weighted}, tiers: [][]int{{1, 2, 3, 4}}, weights: weights},
		{name: "tiers", policy: lb.Policy{Tiers: three}, tiers: tiers},
		{name: "tiers and weights", policy: lb.Policy{Tiers: three, Weights: weighted}, tiers: tiers, weights: weights},
		{name: "spillover by percent", policy: lb.Policy{Tiers: three, Spillover: lb.Spillover{Percent: 80}}, tiers: tiers},
		{name: "spillover by backends", policy: lb.Policy{Tiers: three, Weights: weighted, Spillover: lb.Spillover{Backends: 3, Hysteresis: 50}}, tiers: tiers, weights: weights},
	}
}

// walkShares is the model. It remembers which tiers spill.
type walkShares struct {
	*walk
	spilling [8]bool
}

// of are the shares of the clusters when each has so many healthy backends.
func (m *walkShares) of(healthy [walkClusters + 1]int) (shares [walkClusters + 1]float64) {
	have, last := make([]int, len(m.tiers)), 0
	for i, tier := range m.tiers {
		for _, c := range tier {
			have[i] += healthy[c]
		}
		if have[i] > 0 {
			last = i
		}
	}
	left := 1.0
	for i, tier := range m.tiers {
		part := left
		if carried := m.carries(i, have[i], len(tier)*walkEach); i < last {
			part = left * carried
		}
		if have[i] > 0 {
			m.divide(tier, part, healthy, &shares)
			left -= part
		}
	}
	return shares
}

// carries is the part of its traffic that a tier can carry alone.
func (m *walkShares) carries(tier, have, known int) float64 {
	s := m.policy.Spillover
	if s.IsZero() {
		return 1
	}
	enough := float64(s.Backends) + float64(s.Percent)*float64(known)/100
	again := max(enough, min(enough*(1+float64(s.Hysteresis)/100), float64(known)))
	m.spilling[tier] = float64(have) < enough || m.spilling[tier] && float64(have) < again
	if m.spilling[tier] {
		return float64(have) / again
	}
	return 1
}

// divide gives the clusters of a tier their part: by weight, or by their backends.
func (m *walkShares) divide(tier []int, part float64, healthy [walkClusters + 1]int, shares *[walkClusters + 1]float64) {
	weight := func(c int) float64 {
		if m.weights[c] > 0 && healthy[c] > 0 {
			return m.weights[c]
		}
		return float64(healthy[c])
	}
	sum := 0.0
	for _, c := range tier {
		sum += weight(c)
	}
	for _, c := range tier {
		shares[c] = part * weight(c) / sum
	}
}

// path is how many healthy backends each cluster has at each step.
func path() (steps [][walkClusters + 1]int) {
	now := [walkClusters + 1]int{0, walkEach, walkEach, walkEach, walkEach}
	steps = append(steps, now)
	for c := 1; c <= walkClusters; c++ {
		for now[c] > 0 && (c < walkClusters || now[c] > 1) {
			now[c]--
			steps = append(steps, now)
		}
	}
	for i := len(steps) - 2; i >= 0; i-- {
		steps = append(steps, steps[i])
	}
	return steps
}

// service has the first backends of each cluster healthy and the others in any
// state that is worse.
func (w *walk) service(healthy [walkClusters + 1]int, previous []lb.FrontendTable) lb.Service {
	s := lb.Service{
		Name:      lb.ServiceName{Namespace: "shop", Name: "cart"},
		Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort(vip), Protocol: lb.UDP}},
		Policy:    w.policy, Previous: previous,
	}
	worse := []lb.State{lb.NotReady, lb.Terminating, lb.Quarantined, lb.Maintenance}
	for c := 1; c <= walkClusters; c++ {
		for i := range walkEach {
			b := lb.Backend{
				Addr:     netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 2, byte(c), byte(i)}), 53),
				Protocol: lb.UDP, Cluster: fmt.Sprint("c", c), ClusterID: uint16(c), Local: c == 1,
			}
			if i >= healthy[c] {
				b.State = worse[(i+c)%len(worse)]
			}
			s.Backends = append(s.Backends, b)
		}
	}
	return s
}

// walker is a walk under way.
type walker struct {
	*tableWorld
	measuring, crossing *client
	connects            int
}

// TestPolicyShares: at 100,000 connections each (in a short run, fewer) shares are
// within two percent of what the policy says, they follow a tier's health without
// ever going the wrong way, and while it changes no connect is refused.
func TestPolicyShares(t *testing.T) {
	f := newPlace(t)
	f.opts.MaxRecords = 1 << 16
	f.load()
	w := &walker{newTableWorld(f), f.startClient(f.opts.Cgroup), f.startClient(f.opts.Cgroup), campaign(3_000, 100_000)}
	steps := path()
	for _, policy := range walks() {
		t.Run(policy.name, func(t *testing.T) { w.walk(t, &policy, steps) })
	}
	if c := w.counters(); c.Refused != 0 || c.Hits == 0 {
		t.Errorf("counters %+v", c)
	}
	t.Logf("%d connects at each of %d steps of %d policies, and %d during changes", w.connects, len(steps), len(walks()), w.counters().Hits-uint64(w.connects*len(steps)*len(walks())))
}

func (w *walker) walk(t *testing.T, policy *walk, steps [][walkClusters + 1]int) {
	model, worst := walkShares{walk: policy}, 0.0
	var tables []lb.FrontendTable
	var before [walkClusters + 1]float64
	for i, healthy := range steps {
		next := lb.Merge(policy.service(healthy, lb.Remember(tables)))
		w.cross(t, tables, next)
		tables = next
		want, got := model.of(healthy), w.measure(t)
		for c := range want {
			off := math.Abs(got[c] - want[c])
			worst = max(worst, off)
			if off > w.tolerance(want[c]) {
				t.Errorf("step %d, healthy %v: cluster %d has %.4f, want %.4f", i, healthy[1:], c, got[c], want[c])
			}
		}
		if i > 0 {
			monotone(t, healthy, steps[i-1], inTable(&tables[0]), before)
		}
		before = inTable(&tables[0])
	}
	w.put(t, tables[0].Service, nil)
	t.Logf("largest difference %.4f", worst)
}

// tolerance is two percent, or five deviations if the run is short.
func (w *walker) tolerance(share float64) float64 {
	return max(0.02, 5*math.Sqrt(share*(1-share)/float64(w.connects)))
}

// cross goes back and forth between two sets while a client connects; it ends with
// the new one. The client reports the first connect that fails.
func (w *walker) cross(t *testing.T, from, to []lb.FrontendTable) {
	t.Helper()
	name := to[0].Service
	w.put(t, name, to)
	failed := make(chan error, 1)
	go func() {
		_, err := w.crossing.ask(request{Socket: "4 udp", Targets: []string{vip}, N: 1000})
		failed <- err
	}()
	for range 20 {
		if from != nil {
			w.put(t, name, from)
		}
		w.put(t, name, to)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	if err := w.writer.grace(); err != nil {
		t.Error(err)
	}
}

func (w *walker) measure(t *testing.T) (shares [walkClusters + 1]float64) {
	t.Helper()
	hits := w.hits(func() {
		if _, err := w.measuring.ask(request{Socket: "4 udp", Targets: []string{vip}, N: w.connects}); err != nil {
			t.Error(err)
		}
	})
	for c := range shares {
		shares[c] = float64(hits[uint16(c)]) / float64(w.connects)
	}
	return shares
}

// inTable are the shares of the clusters by the weights that the kernel was given.
func inTable(t *lb.FrontendTable) (shares [walkClusters + 1]float64) {
	sum := 0.0
	for i := range t.Backends {
		sum += float64(t.Backends[i].Weight)
	}
	for i := range t.Backends {
		shares[t.Backends[i].ClusterID] += float64(t.Backends[i].Weight) / sum
	}
	return shares
}

// monotone: a cluster that lost or won a backend has no more, or no less, than
// before; and those that lost and won none do not move against that.
func monotone(t *testing.T, healthy, was [walkClusters + 1]int, now, before [walkClusters + 1]float64) {
	t.Helper()
	lost := 0
	for c := range healthy {
		lost += was[c] - healthy[c]
	}
	for c := 1; c <= walkClusters; c++ {
		change := (now[c] - before[c]) * float64(lost) // of the others it is not negative
		if healthy[c] != was[c] {
			change = -change
		}
		if change < -1e-6 {
			t.Errorf("from %v to %v healthy backends the share of cluster %d goes from %.6f to %.6f", was[1:], healthy[1:], c, before[c], now[c])
		}
	}
}
