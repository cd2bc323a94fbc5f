package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// leaveLimit is how long new connections may go on to a dead cluster; 2 s are
// promised on a machine that is not busy.
const leaveLimit = 10 * time.Second

// TestLiveness is what becomes of new connections when a remote cluster falls
// silent: its apiserver alone, its backends alone, and both.
func TestLiveness(t *testing.T) {
	requireLab(t)
	must(t, lab.Settle())
	w := &world{dir: scratch(t)}
	var err error
	w.lab, err = lab.New(w.dir)
	must(t, err)
	t.Cleanup(func() { w.close(t) })
	l := &liveness{east: w.newJoiner(t, "east", 1), west: w.newJoiner(t, "west", 2)}
	l.openNetwork(t)
	l.serve(t, w)
	w.connect(t, "first", l.east, l.west)
	l.awaitPath(t, "ok")
	l.awaitNodes(t, "ok")
	l.require(t, "with all well", 2)
	l.counters(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T)
	}{{"control_link", l.controlLink}, {"both", l.both}, {"data_path", l.dataPath}} {
		t.Run(s.name, s.run)
	}
}

// liveness is two clusters of one node each. Both have service rebel-base, with
// two pods in each; only west has a pod of rebel-alone.
type liveness struct{ east, west *joiner }

// openNetwork lets the agents, which run beside the nodes, reach all pods.
func (l *liveness) openNetwork(t *testing.T) {
	bridge, err := netlink.LinkByName("cm0")
	must(t, err)
	must(t, netlink.AddrAdd(bridge, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 168, 50, 1), Mask: net.CIDRMask(24, 32)}}))
	for _, j := range []*joiner{l.east, l.west} {
		n := j.nodes[0].lab
		_, pods, err := net.ParseCIDR(n.Pods[0].Masked().String())
		must(t, err)
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: pods, Gw: n.Addr(true).AsSlice()}))
	}
}

// serve starts pods and publishes them.
func (l *liveness) serve(t *testing.T, w *world) {
	for j, names := range map[*joiner][]string{l.east: {"a", "b"}, l.west: {"c", "d"}} {
		n := j.nodes[0]
		var err error
		n.pods, err = pod.Start(w.lab, n.lab)
		must(t, err)
		t.Cleanup(n.pods.Close)
		var addrs []string
		for i, name := range names {
			a := nth(n.lab.Pods[0], 11+i)
			must(t, n.pods.Add(pod.Server{Name: j.name + "-" + name, Addrs: []netip.Addr{a}, Ports: []uint16{targetPort}}))
			addrs = append(addrs, a.String())
		}
		j.publish(t, addrs)
	}
}

func (j *joiner) publish(t *testing.T, addrs []string) {
	t.Helper()
	list := strings.Join(addrs, `"], conditions: {ready: true}}, {addresses: ["`)
	alone := manifest("rebel-alone", fmt.Sprintf("10.%d.0.21", 95+j.id), addrs[0])
	if j.name == "east" {
		alone, _, _ = strings.Cut(alone, "---")
	}
	text := nodeManifest(j.nodes[0].lab.Addr(true)) + "---\n" + home + "---\n" + manifest("rebel-base", fmt.Sprintf("10.%d.0.20", 95+j.id), list) + "---\n" + alone
	must(t, os.WriteFile(j.path("examples/"+j.name+"/.next"), []byte(text), 0o600))
	must(t, os.Rename(j.path("examples/"+j.name+"/.next"), j.path("examples/"+j.name+"/rebel-base.yaml")))
}

// nodeManifest is a node at an address where nothing listens on the port that is
// probed.
func nodeManifest(addr netip.Addr) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: %s}]}\n", addr)
}

// selected counts west's backends that east uses for a service.
func (l *liveness) selected(t *testing.T, service string) (n int) {
	t.Helper()
	var entries []shownMap
	l.east.agent.cli(t, &entries, "maps")
	for _, e := range entries {
		for _, b := range e.Backends {
			if e.Namespace == namespace && e.Name == service && b.Cluster == "west" && b.Selected {
				n++
			}
		}
	}
	return n
}

// require demands that east uses n of west's backends for rebel-base, that its
// connections show it, and that rebel-alone has its only backend.
func (l *liveness) require(t *testing.T, step string, n int) {
	t.Helper()
	l.await(t, n, time.Now())
	if got := l.selected(t, "rebel-alone"); got != 1 {
		t.Errorf("%s: rebel-alone has %d backends, want its only one", step, got)
	}
	if n > 0 {
		return
	}
	got, err := l.east.nodes[0].pods.Burst(pod.Load{Network: pod.TCP, Target: netip.MustParseAddrPort("10.96.0.20:80")}, requests)
	must(t, err)
	if got.Failed() > 0 || got.By["east-a"]+got.By["east-b"] != requests {
		t.Errorf("%s: %+v, want answers of east alone", step, got)
	}
}

// await waits until east uses n of west's backends for rebel-base.
func (l *liveness) await(t *testing.T, n int, begin time.Time) time.Duration {
	t.Helper()
	for l.selected(t, "rebel-base") != n {
		if time.Since(begin) > leaveLimit {
			t.Fatalf("east uses %d backends of west after %v, want %d\n%s", l.selected(t, "rebel-base"), leaveLimit, n, logTail(l.east.agent.Process))
		}
	}
	return time.Since(begin)
}

type shownLife struct {
	Problems []string       `json:"problems"`
	Clusters []shownCluster `json:"clusters"`
}

type shownCluster struct {
	Name       string  `json:"name"`
	State      string  `json:"state"`
	DataPath   string  `json:"dataPath"`
	NodePath   string  `json:"nodePath"`
	Rank       int     `json:"rank"`
	RTTSeconds float64 `json:"rttSeconds"`
	Dead       bool    `json:"dead"`
}

// life is what east's status says of west: state, data path, dead or not, and
// the problems.
func (l *liveness) life(t *testing.T) (state, path string, dead bool, problems string) {
	t.Helper()
	var s shownLife
	l.east.agent.cli(t, &s, "status")
	for _, c := range s.Clusters {
		if c.Name == "west" {
			state, path, dead = c.State, c.DataPath, c.Dead
		}
	}
	return state, path, dead, strings.Join(s.Problems, "\n")
}

func (l *liveness) awaitLife(t *testing.T, want string, ok func(state, path string, dead bool) bool) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for {
		state, path, dead, problems := l.life(t)
		if ok(state, path, dead) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("west is %s, its data path %s, dead %v, want %s\n%s\n%s", state, path, dead, want, problems, logTail(l.east.agent.Process))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (l *liveness) awaitPath(t *testing.T, want string) {
	t.Helper()
	l.awaitLife(t, "data path "+want, func(_, path string, _ bool) bool { return path == want })
}

// awaitNodes waits until the path to west's nodes, which refuse each connection,
// is as wanted.
func (l *liveness) awaitNodes(t *testing.T, want string) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for {
		var s shownLife
		l.east.agent.cli(t, &s, "status")
		i := slices.IndexFunc(s.Clusters, func(c shownCluster) bool { return c.Name == "west" })
		if i >= 0 && s.Clusters[i].NodePath == want && s.Clusters[i].Rank == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("status is %+v, want node path %s\n%s", s, want, logTail(l.east.agent.Process))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// counters holds the metric of connections by pair of clusters against what the
// servers of each cluster saw: exactly.
func (l *liveness) counters(t *testing.T) {
	t.Helper()
	read := func(cluster string) float64 {
		return readMetric(t, l.east.agent.http, fmt.Sprintf(`clustermesh_datapath_cluster_hits_total{cluster="%s",from="east"}`, cluster))
	}
	east, west := read("east"), read("west")
	got, err := l.east.nodes[0].pods.Burst(pod.Load{Network: pod.TCP, Target: netip.MustParseAddrPort("10.96.0.20:80")}, 200)
	must(t, err)
	if own := got.By["east-a"] + got.By["east-b"]; got.Failed() > 0 || read("east")-east != float64(own) {
		t.Errorf("%v connections from east to east are counted, of %+v", read("east")-east, got)
	}
	if others := got.By["west-c"] + got.By["west-d"]; others == 0 || read("west")-west != float64(others) {
		t.Errorf("%v connections from east to west are counted, of %+v", read("west")-west, got)
	}
}

// probed waits until east has sent n more probes with a result.
func (l *liveness) probed(t *testing.T, result string, n float64) {
	t.Helper()
	name := fmt.Sprintf(`clustermesh_agent_probes_total{result="%s",target="backend"}`, result)
	deadline := time.Now().Add(giveUp)
	for until := readMetric(t, l.east.agent.http, name) + n; readMetric(t, l.east.agent.http, name) < until; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %v more probes are %s within %v", n, result, giveUp)
		}
	}
}

// cutControl keeps everybody from west's apiserver. With a reset connections end
// at once, with drop nobody hears anything.
func (l *liveness) cutControl(t *testing.T, verb string) (mend func()) {
	t.Helper()
	_, port, err := net.SplitHostPort(l.west.export.listen)
	must(t, err)
	nft := func(rules string) {
		c := exec.Command("nft", "-f", "-")
		c.Stdin = strings.NewReader(rules)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("nft: %v: %s", err, out)
		}
	}
	nft("table inet cut { chain output { type filter hook output priority 0; tcp dport " + port + " " + verb + "; tcp sport " + port + " " + verb + "; }; }\n")
	return func() { nft("delete table inet cut\n") }
}

// cutPath takes the cable out of west's node.
func (l *liveness) cutPath(t *testing.T) (mend func()) {
	t.Helper()
	cable, err := netlink.LinkByName("v-" + l.west.nodes[0].name)
	must(t, err)
	must(t, netlink.LinkSetDown(cable))
	return func() { must(t, netlink.LinkSetUp(cable)) }
}

// controlLink: the apiserver alone moves nothing.
func (l *liveness) controlLink(t *testing.T) {
	mend := l.cutControl(t, "reject with tcp reset")
	l.awaitLife(t, "stale", func(state, _ string, _ bool) bool { return state == "stale" })
	l.probed(t, "answered", 40) // and meanwhile the path is smooth for long enough to be trusted
	if _, path, dead, _ := l.life(t); dead || path != "ok" {
		t.Errorf("data path %s, dead %v", path, dead)
	}
	l.require(t, "without the apiserver", 2)
	mend()
	l.awaitLife(t, "synced", func(state, _ string, _ bool) bool { return state == "synced" })
}

// both: new connections leave, except of the service that has nothing else, and
// come back.
func (l *liveness) both(t *testing.T) {
	mendPath, mendControl := l.cutPath(t), l.cutControl(t, "drop")
	cut := time.Now()
	left := l.await(t, 0, cut)
	l.require(t, "with west cut off", 0)
	if _, _, dead, problems := l.life(t); !dead || !strings.Contains(problems, "west is dead") {
		t.Errorf("status says dead %v: %s", dead, problems)
	}
	mendPath()
	mendControl()
	mended := time.Now()
	back := l.await(t, 2, mended)
	t.Logf("new connections left a cluster that was cut off after %v and came back %v after the repair", left.Round(time.Millisecond), back.Round(time.Millisecond))
	l.awaitLife(t, "synced and alive", func(state, path string, dead bool) bool { return state == "synced" && path == "ok" && !dead })
	l.require(t, "after the repair", 2)
}

// dataPath: the backends alone move nothing, but status says so.
func (l *liveness) dataPath(t *testing.T) {
	mend := l.cutPath(t)
	l.awaitPath(t, "failing")
	l.awaitNodes(t, "failing")
	l.probed(t, "failed", 20)
	state, _, dead, problems := l.life(t)
	if state != "synced" || dead || !strings.Contains(problems, "west: none of its backends answers probes") {
		t.Errorf("west is %s, dead %v: %s", state, dead, problems)
	}
	l.await(t, 2, time.Now())
	mend()
	l.awaitPath(t, "ok")
	l.awaitNodes(t, "ok")
}
