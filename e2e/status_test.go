package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/e2e/internal/kube"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// socket is the apiserver's local API.
func (a *apiserver) socket() string { return filepath.Join(a.dataDir, "apiserver.sock") }

// campaign picks the long count when CLUSTERMESH_CAMPAIGN asks for it.
func campaign(usual, long int) int {
	if os.Getenv("CLUSTERMESH_CAMPAIGN") != "" {
		return long
	}
	return usual
}

// pointed is a service without a selector: its slice in each cluster points to
// one of two pods there.
type pointed struct {
	w     *world
	name  string
	ips   map[*cluster][]netip.Addr
	pods  map[*cluster][]*workload
	at    map[*cluster]int
	slice map[*cluster]*discoveryv1.EndpointSlice
}

func (w *world) point(t *testing.T, name string) *pointed {
	t.Helper()
	p := &pointed{w: w, name: name, ips: map[*cluster][]netip.Addr{}, pods: map[*cluster][]*workload{}, at: map[*cluster]int{}, slice: map[*cluster]*discoveryv1.EndpointSlice{}}
	for _, c := range w.clusters {
		made, err := c.kube.AddService(live(t), kube.Service{Namespace: namespace, Name: name, Annotations: global(), Ports: webPorts(80, 53), NoSelector: true})
		must(t, err)
		p.ips[c] = clusterIPs(made)
		for range 2 {
			one := c.newPod(name)
			must(t, one.listen())
			p.pods[c] = append(p.pods[c], one)
		}
		p.slice[c], err = c.kube.Client.DiscoveryV1().EndpointSlices(namespace).Create(live(t), p.sliceOf(c), metav1.CreateOptions{})
		must(t, err)
	}
	t.Cleanup(func() {
		for _, c := range w.clusters {
			must(t, c.kube.DeleteService(live(t), namespace, name))
			must(t, c.kube.Client.DiscoveryV1().EndpointSlices(namespace).Delete(live(t), name, metav1.DeleteOptions{}))
			stop(t, p.pods[c])
		}
		w.settle(t, endpoints(w.clusters[0], name, 0))
	})
	return p
}

// sliceOf points to the pod whose turn it is.
func (p *pointed) sliceOf(c *cluster) *discoveryv1.EndpointSlice {
	tcp, port, portName, yes := corev1.ProtocolTCP, int32(targetPort), "http", true
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: p.name, Labels: map[string]string{discoveryv1.LabelServiceName: p.name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{p.now(c).Addrs[0].String()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Protocol: &tcp, Port: &port}},
	}
}

func (p *pointed) now(c *cluster) *workload { return p.pods[c][p.at[c]] }

// turn points a cluster's slice to its other pod. When it returns the API server
// has it, and nobody else need have heard of it.
func (p *pointed) turn(t *testing.T, c *cluster) {
	t.Helper()
	p.at[c] = 1 - p.at[c]
	next := p.sliceOf(c)
	next.ResourceVersion = p.slice[c].ResourceVersion
	var err error
	p.slice[c], err = c.kube.Client.DiscoveryV1().EndpointSlices(namespace).Update(live(t), next, metav1.UpdateOptions{})
	must(t, err)
}

// wrong makes ten requests at once from every node and counts those that failed
// or were answered by a pod that no slice points to.
func (p *pointed) wrong(t *testing.T, round int) (bad int) {
	t.Helper()
	var right []string
	for _, c := range p.w.clusters {
		right = append(right, p.now(c).Name)
	}
	for _, n := range p.w.nodes() {
		got, err := n.pods.Together(pod.Load{Network: pod.TCP, Target: netip.AddrPortFrom(p.ips[n.cluster][0], 80)}, 10)
		must(t, err)
		stale := 0
		for name, k := range got.By {
			if !slices.Contains(right, name) {
				stale += k
			}
		}
		if stale+got.Failed() > 0 {
			t.Errorf("round %d: from %s: answers by %v, failures %v; right are %v", round, n.name, got.By, got.Failures, right)
		}
		bad += stale + got.Failed()
	}
	return bad
}

// ask runs the operator's command and returns what it prints.
func ask(args ...string) (string, error) {
	out, err := exec.Command(binary("clustermesh"), args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("clustermesh %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

func (w *world) sockets() (flags []string) {
	for _, c := range w.clusters {
		flags = append(flags, "--apiserver-socket", c.export.socket())
	}
	return flags
}

// checkAcknowledged: once `status --wait` has returned, every client of every
// node gets what was written to the API servers before, at once. In turn both
// clusters are asked in one command, and one hands its stamp to the other.
func checkAcknowledged(t *testing.T, w *world) {
	p := w.point(t, "acknowledged")
	rounds, bad, asked := campaign(50, 1000), 0, 0
	var took []time.Duration
	for i := range rounds {
		if i > 0 {
			p.turn(t, w.clusters[i%2])
		}
		began := time.Now()
		if i%4 < 2 {
			_, err := ask(append([]string{"status", "--wait"}, w.sockets()...)...)
			must(t, err)
		} else {
			w.handOn(t, w.clusters[i%2])
		}
		took = append(took, time.Since(began))
		bad += p.wrong(t, i)
		asked += 10 * len(w.nodes())
	}
	slices.Sort(took)
	t.Logf("%d rounds of change and status --wait: %d of %d requests failed or went astray; waiting took %v in the median, %v at most",
		rounds, bad, asked, took[len(took)/2], took[len(took)-1])
}

// handOn waits in a cluster, and with the stamp that was printed in the other.
func (w *world) handOn(t *testing.T, c *cluster) {
	t.Helper()
	out, err := ask("status", "--wait", "--apiserver-socket", c.export.socket(), "-o", "json")
	must(t, err)
	var waited struct {
		Done   bool
		Stamps []struct{ Cluster, Stamp string }
	}
	must(t, json.Unmarshal([]byte(out), &waited))
	if !waited.Done || len(waited.Stamps) != 1 || waited.Stamps[0].Cluster != c.name {
		t.Fatalf("waiting in %s printed %s", c.name, out)
	}
	_, err = ask("status", "--wait", "--apiserver-socket", w.other(c).export.socket(), "--for", c.name+"="+waited.Stamps[0].Stamp)
	must(t, err)
}

// toldCluster is what the checks read of status by an apiserver.
type toldCluster struct {
	Cluster string
	Nodes   []struct {
		Name, State string
		Clusters    []struct {
			Name, State, LastError, Remedy string
			AgeSeconds                     float64
		}
	}
}

func (c *cluster) shown(t *testing.T) toldCluster {
	t.Helper()
	out, err := ask("status", "--apiserver-socket", c.export.socket(), "-o", "json")
	must(t, err)
	var shown []toldCluster
	must(t, json.Unmarshal([]byte(out), &shown))
	if len(shown) != 1 || shown[0].Cluster != c.name {
		t.Fatalf("status of %s shows %s", c.name, out)
	}
	return shown[0]
}

// showLimit is within what a fault shows: 12 s of silence and a moment, and on a
// busy machine more.
const showLimit = 30 * time.Second

// checkFaultsShow: an apiserver that dies and an agent that dies show within 15 s:
// on each node of the other cluster, in one answer for the whole of it, and in
// metrics; and --wait says what is missing instead of returning.
func checkFaultsShow(t *testing.T, w *world) {
	east, west := w.clusters[0], w.clusters[1]
	silent := west.nodes[1]
	began := time.Now()
	east.export.Kill()
	silent.agent.Kill()
	shows := map[string]func() bool{
		"the node says stale, why and what to do": func() bool {
			out, err := ask("status", "--api-socket", west.nodes[0].agent.socket, "-o", "json")
			must(t, err)
			return strings.Contains(out, `"stale"`)
		},
		"the node's metrics say stale": func() bool {
			return readMetric(t, west.nodes[0].agent.http, `clustermesh_agent_cluster_state{cluster="east",state="stale"}`) == 1
		},
		"the cluster's status says stale and silent": func() bool {
			s := west.shown(t)
			reasons := ""
			for _, n := range s.Nodes {
				for _, c := range n.Clusters {
					if n.State == "reporting" && c.Name == "east" && c.State == "stale" && c.LastError != "" && c.Remedy != "" {
						reasons += " stale"
					}
				}
				if n.Name == silent.name {
					reasons += " " + n.State
				}
			}
			return strings.Contains(reasons, "stale") && strings.Contains(reasons, "silent")
		},
		"the cluster's metrics count it": func() bool {
			return readMetric(t, west.export.http, `clustermesh_agents{state="silent"}`) == 1 &&
				readMetric(t, west.export.http, `clustermesh_agents_behind{cluster="east"}`) == 1
		},
	}
	for len(shows) > 0 {
		for what, shown := range shows {
			if shown() {
				t.Logf("after %v: %s", time.Since(began).Round(time.Millisecond), what)
				delete(shows, what)
			} else if time.Since(began) > showLimit {
				t.Fatalf("not within %v: %s", showLimit, what)
			}
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	_, err := ask("status", "--wait", "--timeout", "5s", "--apiserver-socket", west.export.socket())
	if err == nil || !strings.Contains(err.Error(), silent.name) {
		t.Errorf("waiting with a dead agent: %v", err)
	}
	east.export.up(t)
	silent.agent.restart(t)
	_, err = ask(append([]string{"status", "--wait"}, w.sockets()...)...)
	must(t, err)
	w.awaitSynced(t)
}
