package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/e2e/internal/disk"
	"github.com/clustermesh/clustermesh/e2e/internal/kernel"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

// stopLimit is how long a SIGTERM may take, on a busy machine; the product has
// limits of its own.
const stopLimit = 20 * time.Second

// startLimit is how long a part may take to get ready; it is generous because
// the machine may be busy.
const startLimit = 30 * time.Second

// apiserver is a cluster's clustermesh-apiserver.
type apiserver struct {
	*lab.Process
	name    string
	args    []string
	dataDir string
	listen  string // of the etcd API
	http    string
	lab     *lab.Lab
	disk    *disk.Disk // that it is on; nil for the machine's
}

// newApiserver prepares a cluster's apiserver with the certificates that the
// command made; it does not run yet.
func (w *world) newApiserver(c *cluster) *apiserver {
	a := &apiserver{
		name: "apiserver-" + c.name, lab: w.lab,
		dataDir: filepath.Join(w.dir, "data-"+c.name),
		listen:  fmt.Sprintf("127.0.0.1:%d", 2000+c.id),
		http:    fmt.Sprintf("127.0.0.1:%d", 3000+c.id),
	}
	a.args = []string{
		"--cluster-name", c.name, "--cluster-id", fmt.Sprint(c.id),
		"--kubeconfig", c.kube.Kubeconfig, "--data-dir", a.dataDir,
		"--listen", a.listen, "--http", a.http,
		"--tls-cert", w.cert("server-" + c.name + ".crt"), "--tls-key", w.cert("server-" + c.name + ".key"),
		"--tls-client-ca", w.cert("ca.crt"),
	}
	return a
}

// start starts the process without waiting for anything.
func (a *apiserver) start(t *testing.T) {
	t.Helper()
	spec := lab.Spec{Name: a.name, Path: binary("clustermesh-apiserver"), Args: a.args}
	if a.disk != nil {
		spec = a.disk.Under(spec)
	}
	p, err := a.lab.Start(spec)
	must(t, err)
	a.Process = p
}

// up starts the process and waits until it is ready.
func (a *apiserver) up(t *testing.T) {
	t.Helper()
	a.start(t)
	await(t, a.Process, a.http, "/readyz")
}

// wipe removes the data directory of a stopped apiserver.
func (a *apiserver) wipe(t *testing.T) {
	t.Helper()
	must(t, os.RemoveAll(a.dataDir))
}

// agent is a node's clustermesh-agent.
type agent struct {
	*lab.Process
	node     *node
	clusters string // directory of cluster files
	pins     string
	bpffs    string
	state    string
	socket   string
	http     string
	more     []string // flags besides
	lab      *lab.Lab
	netns    string // of the node, as --host-netns takes it; "" for the default
	program  string // path; "" for the one that is shipped
}

// newAgent prepares a node's agent: a bpffs of its own and one file per
// cluster; it does not run yet.
func (w *world) newAgent(t *testing.T, n *node, index int) *agent {
	t.Helper()
	dir := filepath.Join(w.dir, n.name)
	bpffs, err := w.lab.MountBPF(n.name + "/bpf")
	must(t, err)
	a := &agent{
		node: n, lab: w.lab, bpffs: bpffs, pins: filepath.Join(bpffs, "clustermesh"),
		clusters: filepath.Join(dir, "clusters"), state: filepath.Join(dir, "state"),
		socket: filepath.Join(dir, "agent.sock"),
		http:   fmt.Sprintf("127.0.0.1:%d", 4000+index),
	}
	cookie, err := n.lab.Cookie()
	must(t, err)
	a.netns = fmt.Sprint(cookie)
	must(t, os.MkdirAll(a.clusters, 0o700))
	for _, c := range w.clusters {
		a.setCluster(t, c.name, w.clusterFile(n.cluster, c))
	}
	return a
}

// clusterFile is the file by which the agents of cluster own reach cluster to.
func (w *world) clusterFile(own, to *cluster) string {
	cert := "remote-" + own.name
	if own == to {
		cert = "local-" + own.name
	}
	return etcdConfig("https://"+to.export.listen, w.cert("ca.crt"), w.cert(cert+".crt"), w.cert(cert+".key"))
}

func etcdConfig(endpoint, ca, cert, key string) string {
	return fmt.Sprintf("endpoints:\n- %s\ntrusted-ca-file: %s\ncert-file: %s\nkey-file: %s\n", endpoint, ca, cert, key)
}

// setCluster writes a cluster's file in one step, as Kubernetes does.
func (a *agent) setCluster(t *testing.T, name, content string) {
	t.Helper()
	hidden := filepath.Join(a.clusters, "."+name)
	must(t, os.WriteFile(hidden, []byte(content), 0o600))
	must(t, os.Rename(hidden, filepath.Join(a.clusters, name)))
}

func (a *agent) removeCluster(t *testing.T, name string) {
	t.Helper()
	must(t, os.Remove(filepath.Join(a.clusters, name)))
}

func (a *agent) flags() []string {
	return append([]string{
		"--cluster-name", a.node.cluster.name, "--cluster-id", fmt.Sprint(a.node.cluster.id),
		"--node-name", a.node.name, "--host-netns", a.netns, "--clusters", a.clusters, "--cgroup", a.node.lab.Cgroup,
		"--bpffs", a.bpffs, "--state-dir", a.state, "--http", a.http, "--api-socket", a.socket,
		"--probe-node-port", "10250", // where nothing listens, which is an answer too
	}, a.more...)
}

func (a *agent) start(t *testing.T) {
	t.Helper()
	p, err := a.lab.Start(lab.Spec{Name: "agent-" + a.node.name, Path: cmp.Or(a.program, binary("clustermesh-agent")), Args: a.flags()})
	must(t, err)
	a.Process = p
}

// up starts the agent, waits until it is ready and opens its maps.
func (a *agent) up(t *testing.T) {
	t.Helper()
	a.start(t)
	await(t, a.Process, a.http, "/readyz")
	a.openMaps(t)
}

// restart starts a stopped agent on what is pinned; the maps stay open.
func (a *agent) restart(t *testing.T) {
	t.Helper()
	a.start(t)
	await(t, a.Process, a.http, "/readyz")
}

// cleanup runs the agent's cleanup command and returns its exit code.
func (a *agent) cleanup(t *testing.T) int {
	t.Helper()
	p, err := a.lab.Start(lab.Spec{
		Name: "cleanup-" + a.node.name, Path: binary("clustermesh-agent"),
		Args: []string{"cleanup", "--bpffs", a.bpffs, "--state-dir", a.state, "--cgroup", a.node.lab.Cgroup},
	})
	must(t, err)
	code, err := p.Exit(startLimit)
	must(t, err)
	return code
}

// openMaps opens the maps that are pinned now.
func (a *agent) openMaps(t *testing.T) {
	t.Helper()
	if a.node.maps != nil {
		must(t, a.node.maps.Close())
	}
	var err error
	a.node.maps, err = kernel.Open(a.pins, map[uint16]string{1: "east", 2: "west"})
	must(t, err)
}

// cli runs the operator's command against this agent and decodes its JSON.
func (a *agent) cli(t *testing.T, result any, args ...string) {
	t.Helper()
	args = append(args, "--api-socket", a.socket, "-o", "json")
	out, err := exec.Command(binary("clustermesh"), args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("clustermesh %s: %v: %s", strings.Join(args, " "), err, exit.Stderr)
		}
		t.Fatalf("clustermesh %s: %v", strings.Join(args, " "), err)
	}
	if err := json.Unmarshal(out, result); err != nil {
		t.Fatalf("clustermesh %s: %v in %q", strings.Join(args, " "), err, out)
	}
}

// cert is the path of a file that the certs command made.
func (w *world) cert(name string) string { return filepath.Join(w.certs, name) }

// issueCertificates makes the certificates of all clusters with the command,
// as an operator would.
func (w *world) issueCertificates(t *testing.T) {
	t.Helper()
	w.certs = filepath.Join(w.dir, "certs")
	command := func(args ...string) {
		if out, err := exec.Command(binary("clustermesh"), args...).CombinedOutput(); err != nil {
			t.Fatalf("clustermesh %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	command("certs", "init", "--dir", w.certs)
	for _, c := range w.clusters {
		for _, kind := range []string{"server", "remote", "local"} {
			command("certs", "issue", "--dir", w.certs, "--kind", kind, "--cluster", c.name)
		}
	}
}

// up starts every part of the product and waits for all of it.
func (w *world) up(t *testing.T) {
	t.Helper()
	w.issueCertificates(t)
	for _, c := range w.clusters {
		c.export = w.newApiserver(c)
		c.export.start(t)
	}
	for _, c := range w.clusters {
		await(t, c.export.Process, c.export.http, "/readyz")
	}
	for i, n := range w.nodes() {
		n.agent = w.newAgent(t, n, i)
		n.agent.up(t)
	}
}

// await waits until a page of a process answers 200. It fails at once, with the
// end of the log, when the process has ended.
func await(t *testing.T, p *lab.Process, address, page string) {
	t.Helper()
	begin := time.Now()
	defer func() { t.Logf("%s answered on %s after %v", p.Name, page, time.Since(begin)) }()
	deadline := time.After(startLimit)
	for {
		text, err := fetch(address, page)
		if err == nil {
			return
		}
		select {
		case <-p.Done():
			t.Fatalf("%s has ended:\n%s", p.Name, logTail(p))
		case <-deadline:
			t.Fatalf("%s does not answer 200 on %s after %v: %v %s\n%s", p.Name, page, startLimit, err, text, logTail(p))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// fetch gets a page; every status but 200 is an error.
func fetch(address, path string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(text), err
}

func readLog(p *lab.Process) string { return readFile(p.Log) }

func readFile(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func logTail(p *lab.Process) string {
	lines := strings.Split(readLog(p), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
