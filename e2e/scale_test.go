package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

// The node that the agent's memory is promised for.
const (
	scaleClusters = 3
	scaleServices = 1000
	scaleBackends = 10

	maxAgentKiB    = 40 << 10
	maxAgentBinary = 25 << 20
)

// checkFootprint: the agent of a node that holds 1,000 services with 10 backends
// in each of three clusters stays within its memory, and its binary small.
func checkFootprint(t *testing.T, w *world) {
	info, err := os.Stat(binary("clustermesh-agent"))
	must(t, err)
	if info.Size() > maxAgentBinary {
		t.Errorf("the agent's binary has %d bytes; %d is the limit", info.Size(), maxAgentBinary)
	}
	own := &cluster{name: "scale-1", id: 11}
	cgroup, err := w.lab.Cgroup("scale")
	must(t, err)
	a := w.newScaleAgent(t, &node{name: "scale", cluster: own, lab: &lab.Node{Cgroup: cgroup}})
	for i := range scaleClusters {
		name := fmt.Sprintf("scale-%d", i+1)
		server := w.startManifests(t, name, 11+i, map[string]string{"all.yaml": scaleManifests(i)})
		t.Cleanup(func() { requireStop(t, server.Process) })
		cert := "remote-scale-1"
		if i == 0 {
			cert = "local-scale-1"
		}
		a.setCluster(t, name, etcdConfig("https://"+server.listen, w.cert("ca.crt"), w.cert(cert+".crt"), w.cert(cert+".key")))
	}
	a.start(t)
	t.Cleanup(func() {
		requireStop(t, a.Process)
		if code := a.cleanup(t); code != 0 {
			t.Errorf("cleanup ended with %d", code)
		}
	})
	begin := time.Now()
	await(t, a.Process, a.http, "/readyz")
	a.awaitBackends(t, scaleServices*scaleBackends)
	took := time.Since(begin)
	kib := a.settled(t)
	t.Logf("agent with %d services x %d backends x %d clusters: resident %.1f MiB, binary %.1f MB, heard and programmed %v after its start",
		scaleServices, scaleBackends, scaleClusters, float64(kib)/1024, float64(info.Size())/1e6, took.Round(time.Millisecond))
	if kib > maxAgentKiB {
		t.Errorf("the agent is resident with %d KiB; %d is the limit", kib, maxAgentKiB)
	}
}

// collectLimit is within what Go collects garbage at the latest, which it does every
// two minutes.
const collectLimit = 3 * time.Minute

// settled returns the KiB in which the agent is resident, as soon as they are
// within the limit: while lists came in it allocated, and a busy machine collects late.
func (a *agent) settled(t *testing.T) (kib int) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		var err error
		kib, err = strconv.Atoi(strings.TrimSuffix(residentMemory(t, a.Process), " kB"))
		must(t, err)
		if kib <= maxAgentKiB || time.Since(begin) > collectLimit {
			return kib
		}
		a.status(t)
	}
}

func (w *world) newScaleAgent(t *testing.T, n *node) *agent {
	t.Helper()
	for _, kind := range []string{"remote", "local"} {
		out, err := exec.Command(binary("clustermesh"), "certs", "issue", "--dir", w.certs, "--kind", kind, "--cluster", n.cluster.name).CombinedOutput()
		if err != nil {
			t.Fatalf("issue certificate: %v: %s", err, out)
		}
	}
	bpffs, err := w.lab.MountBPF(n.name + "/bpf")
	must(t, err)
	dir := filepath.Join(w.dir, n.name)
	a := &agent{
		node: n, lab: w.lab, bpffs: bpffs, clusters: filepath.Join(dir, "clusters"), state: filepath.Join(dir, "state"),
		socket: filepath.Join(dir, "agent.sock"), http: "127.0.0.1:4100",
	}
	must(t, os.MkdirAll(a.clusters, 0o700))
	return a
}

// awaitBackends waits until every cluster is synced with so many backends.
func (a *agent) awaitBackends(t *testing.T, want int) {
	t.Helper()
	deadline := time.Now().Add(giveUp)
	for {
		var status struct {
			Clusters []struct {
				Name, State string
				Backends    int
			}
		}
		a.cli(t, &status, "status")
		done := 0
		for _, c := range status.Clusters {
			if c.State == "synced" && c.Backends == want {
				done++
			}
		}
		if done == scaleClusters {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v the clusters are %+v", giveUp, status.Clusters)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// scaleManifests are the services of one of the clusters.
func scaleManifests(cluster int) string {
	var b strings.Builder
	for s := range scaleServices {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: svc-%[1]d, namespace: scale, annotations: {service.cilium.io/global: "true"}}
spec: {clusterIP: 10.%[2]d.%[3]d.%[4]d, clusterIPs: [10.%[2]d.%[3]d.%[4]d], ports: [{name: http, port: 80, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: svc-%[1]d-1, namespace: scale, labels: {kubernetes.io/service-name: svc-%[1]d}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
`, s, 200+cluster, s/250, s%250+1)
		for e := range scaleBackends {
			n := s*scaleBackends + e
			fmt.Fprintf(&b, "- {addresses: [10.%d.%d.%d], conditions: {ready: true}}\n", 210+cluster, n/250, n%250+1)
		}
	}
	return b.String()
}
