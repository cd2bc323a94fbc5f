//go:build linux

package main

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/apiserver"
	"github.com/clustermesh/clustermesh/bpf/layout"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// broken is a way in which a mesh is set up wrongly or fails: what is done to
// bring it about, what a person then types, and what one line of the answer must
// hold: what is wrong, and what to do. code is how the command ends.
type broken struct {
	name    string
	faulty  func(w *world)
	command string
	cause   string
	remedy  string
	code    int
}

// brokenSetUps are all of them.
func brokenSetUps() []broken {
	const (
		ofWest   = "clustermesh troubleshoot CLUSTERS/west --timeout 2s"
		ofAll    = "clustermesh troubleshoot --clusters CLUSTERS --timeout 5s"
		ofNode   = "clustermesh troubleshoot --api-socket SOCKET"
		status   = "clustermesh status --api-socket SOCKET"
		explain  = "clustermesh explain shop/cart --api-socket SOCKET"
		failed   = 1
		answered = 0
	)
	return []broken{
		{"wrong CA", wrongCA, ofWest, "wrong CA", "remedy: put the CA that signed west's server certificate into trusted-ca-file", failed},
		{"wrong name", wrongName, ofWest, "wrong name", "remedy: use a host that is in the certificate", failed},
		{"certificate expired", expired, ofWest, `certificate "CN=clustermesh-apiserver.west" has expired`, "remedy: renew the server's certificate with: clustermesh certs issue", failed},
		{"clock off", clockOff, ofWest, "the clocks of the two sides disagree: the heartbeat is 1h", "remedy: synchronise the clocks of both machines", failed},
		{"port closed", portClosed, ofWest, "port closed: nobody listens at the endpoint", "remedy: start west's apiserver or correct the port", failed},
		{"half-open", halfOpen, ofWest, "half-open: TCP connects, and then nothing is answered", "remedy: check what the load balancer or proxy leads to", failed},
		{"duplicate id", duplicateID, ofAll, "two clusters have the same id: north and west have id 2", "remedy: give one of the two clusters another --cluster-id", failed},
		{"our own id", ownID, ofWest + " --own-id 1", "the cluster has our own id: both have id 1", "remedy: give one of the two clusters another id", failed},
		{"CIDR overlap", overlap, ofAll, "the pod ranges of two clusters overlap: 10.0.0.0/8 of east and 10.2.0.0/24 of west", "remedy: give one of the two clusters other pod CIDRs", failed},
		{"service in one cluster only", oneClusterOnly, explain, "in one cluster only: of west none shares a service shop/cart", "create it there with the same namespace and name", answered},
		{"port names differ", portNamesDiffer, explain, "port names differ: of cluster west 1 backend is not used, for the ports there are web/TCP and the service's own are http/TCP", "give the ports of the service the same names", answered},
		{"shared=false", notShared, explain, "not shared: other clusters do not get the backends of cluster east", `remove the annotation service.cilium.io/shared: "false"`, answered},
		{"namespace filtered", namespaceFiltered, explain, "service shop/cart takes no backends of cluster west: its namespace is not among those accepted", "add it to them", answered},
		{"quota hit", quotaHit, explain, "refused (limit)", "remedy: raise the cluster's quota in its peer file", answered},
		{"map full", mapFull, explain, "the maps do not hold its latest state: find room for", "raise the capacity of the maps or share fewer services", answered},
		{"agent down", func(*world) {}, status, "no such file or directory", "check that clustermesh-agent runs on this node and that you are root", failed},
		{"no cgroup2", noCgroup, ofNode + " --cgroup DIR", "cgroup2 is missing", "remedy: mount a cgroup2 hierarchy", failed},
		{"kernel feature missing", func(*world) {}, "withoutbpf " + ofNode, "ring buffer is missing", "remedy: use Linux 5.8 or newer", failed},
		{"apiserver not ready", notReady, "clustermesh troubleshoot --apiserver APISERVER", "the apiserver is not ready: source: not synced", "remedy: see the apiserver's log; check that it reaches its source", failed},
		{"canary missing", canaryMissing, ofWest, "the canary of services is missing", "remedy: check that west's apiserver is ready and its log", failed},
		{"heartbeat stopped", heartbeatStopped, ofWest, "the heartbeat has stopped: it is 1h", "remedy: check that west's apiserver runs and writes", failed},
		{"stale peer", stalePeer, ofNode, "cluster west is stale for", "remedy: check that the server runs, the port, and firewalls between", failed},
		{"brake held", brakeHeld, status, "west withdrew more than 50% of its backends at once: 2 of them are still in use", "if they are really gone, run clustermesh release west", answered},
		{"load balancer's address changed", addressChanged, ofWest, "the endpoint leads to cluster north and not to west", "remedy: correct the endpoint, its DNS record or cilium-host-aliases", failed},
		{"disk full", diskFull, "clustermesh troubleshoot --data-dir DATA", "disk full: ", "remedy: free space on the disk of", failed},
	}
}

// TestBrokenSetUps: of each fault one line names cause and remedy. The node's own
// commands are asked until they do: a fault takes a moment to show.
func TestBrokenSetUps(t *testing.T) {
	for _, b := range brokenSetUps() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			b.faulty(w)
			text, code := "", 0
			for deadline := time.Now().Add(time.Minute); !named(text, b) || code != b.code; time.Sleep(20 * time.Millisecond) {
				if text, code = w.say(b.command); time.Now().After(deadline) {
					t.Fatalf("%s\nends with %d, not with %d and a line with %q and %q:\n%s", b.command, code, b.code, b.cause, b.remedy, text)
				}
			}
		})
	}
}

// TestASoundSetUp: nothing of this is said where nothing is wrong.
func TestASoundSetUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pair()
	w.node()
	w.names["APISERVER"] = w.names["APISERVER-west"]
	w.awaitSynced()
	asked := map[string]string{}
	for _, b := range brokenSetUps() {
		command := strings.TrimSuffix(strings.TrimPrefix(b.command, "withoutbpf "), " --cgroup DIR")
		command = strings.Replace(command, "--timeout 2s", "--timeout 30s", 1) // nothing is to wait for
		text, known := asked[command]
		if !known {
			text, _ = w.say(command)
			asked[command] = text
		}
		if named(text, b) {
			t.Errorf("%s: %s is said of a sound set-up:\n%s", b.name, b.cause, text)
		}
	}
	for _, command := range []string{"clustermesh troubleshoot --clusters CLUSTERS --own-id 1", "clustermesh troubleshoot --apiserver APISERVER-west --data-dir DATA"} {
		if text, code := w.say(command); code != 0 {
			t.Errorf("%s ends with %d:\n%s", command, code, text)
		}
	}
}

// TestTheGuideKnowsEveryFault: docs/troubleshooting.md tells what to do about
// each.
func TestTheGuideKnowsEveryFault(t *testing.T) {
	guide, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(string(guide)) {
		if first, _, isRow := strings.Cut(strings.TrimPrefix(line, "| "), " | "); isRow {
			for i, span := range strings.Split(first, "`") {
				if i%2 == 1 {
					rows = append(rows, span)
				}
			}
		}
	}
	for _, b := range brokenSetUps() {
		if !slices.ContainsFunc(rows, func(row string) bool { return quotes(row, b.cause+" "+b.name) }) {
			t.Errorf("%s: no row of docs/troubleshooting.md says %q", b.name, b.cause)
		}
	}
}

// quotes tells whether text is as a row of the guide says, in which ... and the
// names X and Y stand for anything.
func quotes(row, text string) bool {
	for piece := range strings.SplitSeq(strings.NewReplacer(" X", "...", " Y", "...").Replace(row), "...") {
		if !strings.Contains(text, strings.TrimSpace(piece)) {
			return false
		}
	}
	return len(row) > 6
}

func named(text string, b broken) bool {
	for line := range strings.Lines(text) {
		if strings.Contains(line, b.cause) && strings.Contains(line, b.remedy) {
			return true
		}
	}
	return false
}

func (w *world) awaitSynced() {
	w.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		text, code := w.say("clustermesh status --api-socket SOCKET")
		if code == 0 && strings.Count(text, "  synced  ") == 2 {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("not synced:\n%s", text)
		}
	}
}

func wrongCA(w *world) {
	w.must(certs.InitCA(w.path("other"), certs.CAOptions{}))
	w.store("west", 2, func(map[string][]byte) {})
	text, err := os.ReadFile(w.path("clusters", "west"))
	w.must(err)
	w.write(strings.Replace(string(text), w.path("pki", "ca.crt"), w.path("other", "ca.crt"), 1), "clusters", "west")
}

func wrongName(w *world) {
	w.store("west", 2, func(map[string][]byte) {})
	text, err := os.ReadFile(w.path("clusters", "west"))
	w.must(err)
	w.write(strings.ReplaceAll(string(text), "west.mesh.cilium.io", "mesh.example.com"), "clusters", "west")
}

// expired serves with a certificate until its short life is over.
func expired(w *world) {
	f := w.issue(certs.IssueRequest{Kind: certs.Server, Cluster: "west", Validity: time.Second})
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	w.must(err)
	w.tls = func(c *tls.Config) {
		live := c.GetConfigForClient
		c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			config, err := live(h)
			if err == nil {
				config = config.Clone()
				config.Certificates, config.GetCertificate = []tls.Certificate{pair}, nil
			}
			return config, err
		}
	}
	w.store("west", 2, func(map[string][]byte) {})
	time.Sleep(time.Until(f.NotAfter.Add(time.Second)))
}

func clockOff(w *world) {
	w.store("west", 2, func(c map[string][]byte) {
		c[schema.HeartbeatKey] = schema.EncodeTime(time.Now().Add(61 * time.Minute).Unix())
	})
}

func portClosed(w *world) { w.file("west", w.closedPort()) }

func halfOpen(w *world) { w.file("west", w.listen(func(net.Conn) {})) }

func duplicateID(w *world) {
	w.store("west", 2, func(map[string][]byte) {})
	w.store("north", 2, func(map[string][]byte) {})
}

func ownID(w *world) { w.store("west", 1, func(map[string][]byte) {}) }

func overlap(w *world) {
	w.cluster("east", 1, node("e1", "192.0.2.1", "10.0.0.0/8"))
	w.cluster("west", 2, node("w1", "192.0.2.2", "10.2.0.0/24"))
}

func oneClusterOnly(w *world) {
	w.cluster("east", 1, service("cart", "http", "", "10.1.0.1"))
	w.cluster("west", 2, service("till", "http", "", "10.2.0.1"))
	w.node()
}

func portNamesDiffer(w *world) {
	w.cluster("east", 1, service("cart", "http", "", "10.1.0.1"))
	w.cluster("west", 2, service("cart", "web", "", "10.2.0.1"))
	w.node()
}

func notShared(w *world) {
	w.cluster("east", 1, service("cart", "http", `, service.cilium.io/shared: "false"`, "10.1.0.1"))
	w.node()
}

func namespaceFiltered(w *world) {
	w.write("accepts: {namespaces: [bank]}\n", "peers", "west.yaml")
	w.pair()
	w.node()
}

func quotaHit(w *world) {
	w.write("accepts: {max-backends: 1}\n", "peers", "west.yaml")
	w.pair()
	w.node()
}

func mapFull(w *world) {
	w.maps = layout.Capacity{Frontends: 4, Records: 3}
	w.pair()
	w.node()
}

func noCgroup(*world) {} // the directory that is named is none of a cgroup2

// notReady is an apiserver whose source does not answer.
func notReady(w *world) {
	w.write("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://"+w.closedPort()+"'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n", "kubeconfig")
	http := w.closedPort()
	w.names["APISERVER"] = "http://" + http
	w.start("west", apiserver.Config{
		ClusterName: "west", ClusterID: 2, MaxConnectedClusters: 255, Kubeconfig: w.path("kubeconfig"), DataDir: w.path("data", "west"),
		Listen: "127.0.0.1:0", HTTP: http, TLS: w.serverTLS("west"),
	})
}

func canaryMissing(w *world) {
	w.store("west", 2, func(c map[string][]byte) { delete(c, schema.CanaryKey(schema.KindService, "west", false)) })
}

func heartbeatStopped(w *world) {
	w.store("west", 2, func(c map[string][]byte) {
		c[schema.HeartbeatKey] = schema.EncodeTime(time.Now().Add(-time.Hour).Unix())
	})
}

func stalePeer(w *world) {
	w.pair()
	w.node()
	w.awaitSynced()
	w.stop["west"]()
}

func brakeHeld(w *world) {
	w.agent.WithdrawalBrakePercent, w.agent.WithdrawalBrakeWindow = 50, time.Hour
	w.pair()
	w.node()
	w.awaitSynced()
	w.write(service("cart", "http", ""), "manifests-west", "all.yaml")
}

func addressChanged(w *world) {
	w.store("north", 3, func(map[string][]byte) {})
	text, err := os.ReadFile(w.path("clusters", "north"))
	w.must(err)
	w.write(strings.ReplaceAll(string(text), "north.mesh", "west.mesh"), "clusters", "west")
}

// diskFull is an apiserver that could not make its store.
func diskFull(w *world) {
	if os.Geteuid() != 0 && os.Getenv("CI") == "" {
		w.Skip("needs root to mount a small file system")
	}
	w.must(unix.Mount("tmpfs", w.path("data"), "tmpfs", 0, "size=1m"))
	w.Cleanup(func() { w.must(unix.Unmount(w.path("data"), unix.MNT_DETACH)) })
	f, err := os.Create(w.path("data", "ballast"))
	w.must(err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	w.must(f.Close())
	files := w.serverTLS("west")
	w.must(os.MkdirAll(w.path("manifests-west"), 0o755))
	text, code := w.sayIn([]string{"apiserver", w.path("data"), w.path("manifests-west"), files.Cert, files.Key, files.ClientCA})
	if code == 0 || !strings.Contains(text, "no space left on device") {
		w.Fatalf("the apiserver ends with %d:\n%s", code, text)
	}
	w.names["DATA"] = filepath.Clean(w.path("data"))
}
