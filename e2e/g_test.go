package e2e

import (
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// faultLimit is how long a fault may take to show in status and metrics.
const faultLimit = 15 * time.Second

// badFile is a file of the clusters directory that must be refused.
type badFile struct {
	name, content string
	says          string // part of the line that explains it
}

func (w *world) badFiles() []badFile {
	ca, cert, key := w.cert("ca.crt"), w.cert("remote-west.crt"), w.cert("remote-west.key")
	return []badFile{
		{"broken", "endpoints: [https://127.0.0.1:2379\n", "broken"},
		{"Wrong_Name", etcdConfig("https://127.0.0.1:2379", ca, cert, key), "Wrong_Name"},
		{"plain", etcdConfig("http://127.0.0.1:2379", ca, cert, key), "https"},
		{"nocert", "endpoints:\n- https://127.0.0.1:2379\n", "trusted-ca-file"},
		{"noport", etcdConfig("https://127.0.0.1", ca, cert, key), "noport"},
	}
}

// checkBadClusterFiles: each bad file is explained in log, status and metric
// while the good ones go on working.
func checkBadClusterFiles(t *testing.T, w *world) {
	ips, _ := w.rebelBase(t, 1)
	n := w.clusters[1].nodes[0]
	samplers := w.watchSets(t, ips)
	for i, f := range w.badFiles() {
		n.agent.setCluster(t, f.name, f.content)
		n.agent.awaitProblem(t, f.says, i+1)
	}
	w.settle(t, now)
	for i, f := range w.badFiles() {
		n.agent.removeCluster(t, f.name)
		n.agent.awaitProblems(t, len(w.badFiles())-1-i)
	}
	t.Run("overwritten_by_rubbish", func(t *testing.T) {
		good := w.clusterFile(n.cluster, w.clusters[0])
		n.agent.setCluster(t, "east", "endpoints: {")
		n.agent.awaitProblem(t, "east", 1)
		n.agent.setCluster(t, "east", good)
		n.agent.awaitProblems(t, 0)
	})
	w.awaitSynced(t)
	w.settle(t, now)
	requireConstant(t, samplers)
}

// awaitProblem waits until status, metric and log show a problem of that text,
// and n problems in all.
func (a *agent) awaitProblem(t *testing.T, text string, n int) {
	t.Helper()
	a.awaitProblems(t, n)
	if shown := strings.Join(a.status(t).Problems, "\n"); !strings.Contains(shown, text) {
		t.Errorf("status does not say %q: %s", text, shown)
	}
	if !strings.Contains(readLog(a.Process), text) {
		t.Errorf("the log does not say %q", text)
	}
}

func (a *agent) awaitProblems(t *testing.T, n int) {
	t.Helper()
	deadline := time.Now().Add(faultLimit)
	for {
		shown := a.status(t).Problems
		counted := readMetric(t, a.http, "clustermesh_agent_cluster_file_problems")
		if len(shown) == n && counted == float64(n) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v status shows %d problems and the metric %v, want %d: %v", faultLimit, len(shown), counted, n, shown)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// impostor is a cluster that must not be let in, and why.
type impostor struct {
	name, file string
	id         int
	says       string
}

// checkImpostors: a cluster with the id of another, with our own id, or under
// our own name is refused with an explanation; the others go on.
func checkImpostors(t *testing.T, w *world) {
	ips, pods := w.rebelBase(t, 1)
	n := w.clusters[1].nodes[0]
	samplers := w.watchSets(t, ips)
	for _, who := range []impostor{
		{"south", "south", 1, "id 1"},
		{"south", "south", 2, `id "2"`},
		{"south", "north", 3, "north"},
		{"west", "south", 4, "south"},
	} {
		t.Run(fmt.Sprintf("%s_with_id_%d_as_%s", who.name, who.id, who.file), func(t *testing.T) {
			s := w.startManifests(t, who.name, who.id, map[string]string{"web.yaml": foreign})
			n.agent.setCluster(t, who.file, etcdConfig("https://"+s.listen, w.cert("ca.crt"), w.cert("remote-west.crt"), w.cert("remote-west.key")))
			n.agent.awaitRefused(t, who.file, who.says)
			n.agent.removeCluster(t, who.file)
			n.agent.awaitForgotten(t, who.file)
			requireStop(t, s.Process)
		})
	}
	requireShares(t, n, loads(ips[n.cluster])[0], append(pods[w.clusters[0]], pods[w.clusters[1]]...))
	w.settle(t, now)
	requireConstant(t, samplers)
}

// foreign is the manifest of a service that would add a backend to rebels/rebel-base.
var foreign = home + "---\n" + manifest("rebel-base", "10.98.0.10", "10.200.0.1")

const home = "apiVersion: v1\nkind: Namespace\nmetadata: {name: rebels}\n"

func manifest(name, ip, endpoint string) string {
	return strings.NewReplacer("@name", name, "@ip", ip, "@endpoint", endpoint).Replace(`apiVersion: v1
kind: Service
metadata:
  name: @name
  namespace: rebels
  annotations: {service.cilium.io/global: "true"}
spec:
  clusterIP: "@ip"
  clusterIPs: ["@ip"]
  ipFamilies: [IPv4]
  ports: [{name: http, protocol: TCP, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: @name-1
  namespace: rebels
  labels: {kubernetes.io/service-name: @name}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints: [{addresses: ["@endpoint"], conditions: {ready: true}}]
`)
}

// startManifests starts an apiserver that reads manifests.
func (w *world) startManifests(t *testing.T, name string, id int, files map[string]string) *apiserver {
	t.Helper()
	dir := t.TempDir()
	for file, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	cert := "server-" + name
	if out, err := exec.Command(binary("clustermesh"), "certs", "issue", "--dir", w.certs, "--kind", "server", "--cluster", name).CombinedOutput(); err != nil {
		t.Fatalf("issue certificate: %v: %s", err, out)
	}
	a := &apiserver{
		name: fmt.Sprintf("manifests-%s-%d", name, id), lab: w.lab, dataDir: t.TempDir(),
		listen: fmt.Sprintf("127.0.0.1:%d", 2100+id), http: fmt.Sprintf("127.0.0.1:%d", 3100+id),
	}
	a.args = []string{
		"--cluster-name", name, "--cluster-id", fmt.Sprint(id), "--manifests", dir, "--data-dir", a.dataDir,
		"--listen", a.listen, "--http", a.http, "--tls-cert", w.cert(cert + ".crt"), "--tls-key", w.cert(cert + ".key"),
		"--tls-client-ca", w.cert("ca.crt"),
	}
	a.up(t)
	return a
}

// awaitRefused waits until status, log and metric explain why a cluster is not
// let in.
func (a *agent) awaitRefused(t *testing.T, name, says string) {
	t.Helper()
	deadline := time.Now().Add(faultLimit)
	for {
		why := a.lastError(t, name)
		failures := readMetric(t, a.http, fmt.Sprintf(`clustermesh_agent_cluster_failures_total{cluster="%s"}`, name))
		logged := strings.Contains(strings.ReplaceAll(readLog(a.Process), `\"`, `"`), says)
		if strings.Contains(why, says) && failures > 0 && logged {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v status says %q of %s, the metric %v, logged %v; want %q", faultLimit, why, name, failures, logged, says)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (a *agent) lastError(t *testing.T, name string) string {
	t.Helper()
	for _, c := range a.status(t).Clusters {
		if c.Name == name {
			return c.LastError
		}
	}
	return ""
}

func (a *agent) awaitForgotten(t *testing.T, name string) {
	t.Helper()
	deadline := time.Now().Add(drainLimit)
	for a.status(t).follows(name) {
		if time.Now().After(deadline) {
			t.Fatalf("%s is still in status %v after its file went", name, drainLimit)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// checkBadManifests: a bad manifest is explained; the others are exported, and
// what the file last said when it was good stays.
func checkBadManifests(t *testing.T, w *world) {
	s := w.startManifests(t, "south", 5, map[string]string{"home.yaml": home, "good.yaml": manifest("good", "10.98.0.1", "10.200.0.1"), "soon-bad.yaml": manifest("soon-bad", "10.98.0.2", "10.200.0.2")})
	dir := s.args[5]
	s.awaitKeys(t, w, "good", "soon-bad")
	must(t, os.WriteFile(filepath.Join(dir, "soon-bad.yaml"), []byte("kind: Service\nmetadata: [\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "more.yaml"), []byte(manifest("more", "10.98.0.3", "10.200.0.3")), 0o600))
	s.awaitKeys(t, w, "good", "more", "soon-bad")
	deadline := time.Now().Add(faultLimit)
	for readMetric(t, s.http, "clustermesh_source_problems") != 1 || !strings.Contains(readLog(s.Process), "soon-bad.yaml") {
		if time.Now().After(deadline) {
			t.Fatalf("after %v the metric says %v problems; log:\n%s", faultLimit, readMetric(t, s.http, "clustermesh_source_problems"), logTail(s.Process))
		}
		time.Sleep(20 * time.Millisecond)
	}
	page, err := fetch(s.http, "/readyz")
	if err != nil || !strings.Contains(page, "soon-bad.yaml") {
		t.Errorf("/readyz does not show the problem: %v: %s", err, page)
	}
	must(t, os.Remove(filepath.Join(dir, "soon-bad.yaml")))
	s.awaitKeys(t, w, "good", "more")
	requireStop(t, s.Process)
}

// awaitKeys waits until exactly these services of namespace rebels are
// exported.
func (a *apiserver) awaitKeys(t *testing.T, w *world, services ...string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(w.cert("remote-west.crt"), w.cert("remote-west.key"))
	must(t, err)
	conn, err := grpc.NewClient(a.listen, grpc.WithTransportCredentials(credentials.NewTLS(w.tlsTo(t, []tls.Certificate{pair}))))
	must(t, err)
	defer conn.Close()
	const prefix = "cilium/state/services/v1/south/rebels/"
	deadline := time.Now().Add(giveUp)
	for {
		got, err := pb.NewKVClient(conn).Range(live(t), &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(strings.TrimSuffix(prefix, "/") + "0"), KeysOnly: true})
		var names []string
		for _, kv := range got.GetKvs() {
			names = append(names, strings.TrimPrefix(string(kv.Key), prefix))
		}
		if err == nil && fmt.Sprint(names) == fmt.Sprint(services) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("exported are %v (%v), want %v\n%s", names, err, services, logTail(a.Process))
		}
		time.Sleep(10 * time.Millisecond)
	}
}
