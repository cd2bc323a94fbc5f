package e2e

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/pod"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestPolicy is what a service may ask for beyond an affinity, on real parts:
// the annotations and members of a service in cluster east decide where its
// nodes' connections go.
func TestPolicy(t *testing.T) {
	w := newWorld(t)
	for i, n := range w.clusters[0].nodes {
		w.label(t, n, fmt.Sprintf(`{"topology.kubernetes.io/zone":"zone-%d"}`, i+1))
	}
	w.up(t)
	p := &policies{w: w, east: w.clusters[0], west: w.clusters[1]}
	p.ips, p.pods = w.rebelBase(t, 2)
	for _, s := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"weights", p.weights}, {"consistent", p.consistent}, {"tiers", p.tiers}, {"spillover", p.spillover}, {"nearness", p.nearness},
		{"session_affinity", p.sessionAffinity}, {"wrong", p.wrong}, {"staleness", p.staleness}, {"on_withdraw", p.onWithdraw},
	} {
		t.Run(s.name, s.run)
	}
}

func (w *world) label(t *testing.T, n *node, labels string) {
	t.Helper()
	patch := []byte(`{"metadata":{"labels":` + labels + `}}`)
	_, err := n.cluster.kube.Client.CoreV1().Nodes().Patch(live(t), n.name, types.MergePatchType, patch, metav1.PatchOptions{})
	must(t, err)
}

// policies is a service with two pods in each of two clusters, one on each node.
type policies struct {
	w          *world
	east, west *cluster
	ips        map[*cluster][]netip.Addr
	pods       map[*cluster][]*workload
}

// shownDecision is what the command says of a service.
type shownDecision struct {
	Backends []struct {
		shownEndpoint
		Cluster  string  `json:"cluster"`
		Selected bool    `json:"selected"`
		Reason   string  `json:"reason"`
		Share    float64 `json:"share"`
		Tier     int     `json:"tier"`
	} `json:"backends"`
	Problems []string `json:"problems"`
}

// ask sets annotations of the service in east, "" removing one, until the test
// ends.
func (p *policies) ask(t *testing.T, pairs ...string) {
	t.Helper()
	set, unset := map[string]string{}, map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		set["clustermesh.io/"+pairs[i]], unset["clustermesh.io/"+pairs[i]] = pairs[i+1], ""
	}
	must(t, p.east.kube.Annotate(live(t), namespace, "rebel-base", set))
	t.Cleanup(func() { must(t, p.east.kube.Annotate(live(t), namespace, "rebel-base", unset)) })
}

// spec changes members of the service in east until the test ends.
func (p *policies) spec(t *testing.T, change, undo string) {
	t.Helper()
	patch := func(spec string) {
		_, err := p.east.kube.Client.CoreV1().Services(namespace).Patch(live(t), "rebel-base", types.MergePatchType,
			[]byte(`{"spec":`+spec+`}`), metav1.PatchOptions{})
		must(t, err)
	}
	patch(change)
	t.Cleanup(func() { patch(undo) })
}

func (p *policies) shown(t *testing.T, n *node) shownDecision {
	t.Helper()
	var list []shownDecision
	n.agent.cli(t, &list, "services", namespace+"/rebel-base")
	if len(list) != 1 {
		t.Fatalf("%d services are shown", len(list))
	}
	return list[0]
}

// await waits until a node of east says of TCP over IPv4 that east's and west's
// backends have these parts of the traffic, in percent, and how many have one.
func (p *policies) await(t *testing.T, n *node, east, west float64, backends int) {
	t.Helper()
	p.awaitShown(t, n, fmt.Sprintf("%v%% for east and %v%% for west by %d backends", east, west, backends), func(parts map[string]float64, used int) bool {
		return math.Abs(parts["east"]-east) < 0.01 && math.Abs(parts["west"]-west) < 0.01 && used == backends
	})
}

// awaitUsed waits until so many backends have a part of the same.
func (p *policies) awaitUsed(t *testing.T, n *node, backends int) {
	t.Helper()
	p.awaitShown(t, n, fmt.Sprintf("%d backends", backends), func(_ map[string]float64, used int) bool { return used == backends })
}

func (p *policies) awaitShown(t *testing.T, n *node, want string, ok func(parts map[string]float64, used int) bool) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for {
		d, parts, used := p.shown(t, n), map[string]float64{}, 0
		for _, b := range d.Backends {
			if b.Protocol == "TCP" && b.addr(t).Addr().Is4() && b.Selected {
				parts[b.Cluster] += b.Share
				used++
			}
		}
		if ok(parts, used) {
			p.shown(t, n) // an agent that answers again has brought its maps up to date
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s says %+v, want %s\n%s", n.name, d, want, logTail(n.agent.Process))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// measured is how many connections one measurement makes. The bound is five
// standard deviations of the least certain share, a half.
const (
	measured = 4000
	bound    = 100 * 5 * 0.5 / 63.2
)

// measure makes connections from a node of east, compares the clusters' parts
// with what they must be, and returns how many each pod got.
func (p *policies) measure(t *testing.T, n *node, east, west float64) map[string]int {
	t.Helper()
	l := pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(p.ips[p.east][0], 80)}
	counts, err := n.pods.Burst(l, measured)
	must(t, err)
	requireClean(t, n, l, counts)
	got := map[string]float64{}
	for name, k := range counts.By {
		cluster, _, _ := strings.Cut(name, "-")
		got[cluster] += 100 * float64(k) / measured
	}
	t.Logf("from %s: %.2f%% to east, %.2f%% to west, by %v", n.name, got["east"], got["west"], counts.By)
	for cluster, want := range map[string]float64{"east": east, "west": west} {
		if d := math.Abs(got[cluster] - want); d > bound || want == 0 && d > 0 {
			t.Errorf("from %s: cluster %s got %.2f%% of %d connections, want %.2f%%", n.name, cluster, got[cluster], measured, want)
		}
	}
	return counts.By
}

func (p *policies) weights(t *testing.T) {
	n := p.east.nodes[0]
	p.ask(t, "weights", "local=3, west=1")
	p.await(t, n, 75, 25, 4)
	p.measure(t, n, 75, 25)
	p.ask(t, "weights", "local=1, west=4")
	p.await(t, n, 20, 80, 4)
	p.measure(t, n, 20, 80)
	p.await(t, p.west.nodes[0], 50, 50, 4) // the other cluster's service asks for nothing
	p.ask(t, "weights", "local=0, west=1")
	p.await(t, n, 0, 100, 2)
	p.measure(t, n, 0, 100)
}

// consistent: a client keeps its backend without being remembered, also when
// another backend goes.
func (p *policies) consistent(t *testing.T) {
	n := p.east.nodes[0]
	p.ask(t, "consistent", "true")
	l := pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(p.ips[p.east][0], 80)}
	first := p.alone(t, n, l)
	for _, w := range append(p.pods[p.east], p.pods[p.west]...) {
		if w.Name != first {
			ready(t, []*workload{w}, false)
			p.awaitUsed(t, n, 3)
			if again := p.alone(t, n, l); again != first {
				t.Errorf("without %s, %s answers instead of %s", w.Name, again, first)
			}
			ready(t, []*workload{w}, true)
			p.awaitUsed(t, n, 4)
			return
		}
	}
}

// alone waits until a single pod answers all requests and returns its name.
func (p *policies) alone(t *testing.T, n *node, l pod.Load) string {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for {
		counts, err := n.pods.Burst(l, requests)
		must(t, err)
		requireClean(t, n, l, counts)
		for name := range counts.By {
			if len(counts.By) == 1 {
				return name
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("one client's connections are answered by %v", counts.By)
		}
	}
}

// tiers: the next one takes over when the first has nothing ready, and gives
// back, and no connection fails over that.
func (p *policies) tiers(t *testing.T) {
	n := p.east.nodes[0]
	p.ask(t, "tiers", "local; west")
	p.await(t, n, 100, 0, 2)
	p.measure(t, n, 100, 0)
	tr := p.w.begin(t, p.ips)
	ready(t, p.pods[p.east], false)
	p.await(t, n, 0, 100, 2)
	p.measure(t, n, 0, 100)
	tr.check(t, "fallback")
	ready(t, p.pods[p.east], true)
	p.await(t, n, 100, 0, 2)
	p.measure(t, n, 100, 0)
	tr.check(t, "back")
	tr.end(t)
	p.ask(t, "tiers", "west; local")
	p.await(t, n, 0, 100, 2)
	for _, b := range p.shown(t, n).Backends {
		if want := map[string]int{"east": 2, "west": 1}[b.Cluster]; b.Tier != want {
			t.Errorf("a backend of %s is shown in tier %d, want %d", b.Cluster, b.Tier, want)
		}
	}
}

// spillover: half of the wanted backends carry half of the traffic.
func (p *policies) spillover(t *testing.T) {
	n := p.east.nodes[0]
	p.ask(t, "tiers", "local; west", "spillover", "min=2")
	p.await(t, n, 100, 0, 2)
	ready(t, p.pods[p.east][:1], false)
	p.await(t, n, 50, 50, 3)
	p.measure(t, n, 50, 50)
	ready(t, p.pods[p.east][:1], true)
	p.await(t, n, 100, 0, 2)
}

// nearness: the own node's backends alone with an internal traffic policy, the
// own zone's with a distribution.
func (p *policies) nearness(t *testing.T) {
	for _, s := range []struct{ name, change, undo string }{
		{"internal_traffic_policy", `{"internalTrafficPolicy":"Local"}`, `{"internalTrafficPolicy":"Cluster"}`},
		{"traffic_distribution", `{"trafficDistribution":"PreferClose"}`, `{"trafficDistribution":null}`},
	} {
		t.Run(s.name, func(t *testing.T) {
			p.spec(t, s.change, s.undo)
			for _, n := range p.east.nodes {
				p.await(t, n, 100, 0, 1)
				for name := range p.measure(t, n, 100, 0) {
					for _, w := range p.pods[p.east] {
						if w.Name == name && w.node != n {
							t.Errorf("from %s: %s on %s answers", n.name, name, w.node.name)
						}
					}
				}
			}
		})
	}
	p.await(t, p.east.nodes[0], 50, 50, 4)
}

func (p *policies) sessionAffinity(t *testing.T) {
	n := p.east.nodes[0]
	p.spec(t, `{"sessionAffinity":"ClientIP"}`, `{"sessionAffinity":"None"}`)
	p.alone(t, n, pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(p.ips[p.east][0], 80)})
}

// wrong: a mistake is told, with what to write, and only that annotation is
// without effect.
func (p *policies) wrong(t *testing.T) {
	n := p.east.nodes[0]
	p.ask(t, "tiers", "local;;", "weights", "local=3, west=1", "teirs", "local")
	p.await(t, n, 75, 25, 4)
	text := strings.Join(p.shown(t, n).Problems, "\n")
	for _, want := range []string{"clustermesh.io/teirs", "use one of consistent", "clustermesh.io/tiers", "is no cluster"} {
		if !strings.Contains(text, want) {
			t.Errorf("the problems %q do not say %q", text, want)
		}
	}
}

// staleness: a cluster out of contact loses its place after the time that the
// service gives it, but not its backends if there are no others.
func (p *policies) staleness(t *testing.T) {
	n := p.east.nodes[0]
	p.ask(t, "tiers", "west; local", "staleness", "demote:2s, withdraw:3s")
	p.await(t, n, 0, 100, 2)
	requireStop(t, p.west.export.Process)
	p.await(t, n, 100, 0, 2)
	p.measure(t, n, 100, 0)
	ready(t, p.pods[p.east], false)
	p.await(t, n, 0, 100, 2)
	p.measure(t, n, 0, 100)
	ready(t, p.pods[p.east], true)
	p.await(t, n, 100, 0, 2)
	p.west.export.up(t)
	p.await(t, n, 0, 100, 2)
	p.measure(t, n, 0, 100)
}
