package interop

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/e2e/internal/kernel"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/oracle"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// apiserver is the product's clustermesh-apiserver of a cluster, reading
// manifests.
type apiserver struct {
	*lab.Process
	g         *ground
	spec      lab.Spec
	manifests string
	data      string
	listen    string // of the etcd API
	http      string
}

// newApiserver writes a cluster's manifests; nothing runs yet.
func (g *ground) newApiserver(t *testing.T, c *cluster) *apiserver {
	t.Helper()
	a := &apiserver{g: g, manifests: g.subdir(t, "manifests-"+c.name), data: g.subdir(t, "data-"+c.name), listen: g.listen(), http: g.listen()}
	server := g.file("server-" + c.name)
	a.spec = lab.Spec{Name: filepath.Base(g.subdir(t)) + "-apiserver-" + c.name, Path: binary("clustermesh-apiserver"), Args: []string{
		"--cluster-name", c.name, "--cluster-id", fmt.Sprint(c.id),
		"--manifests", a.manifests, "--data-dir", a.data,
		"--listen", a.listen, "--http", a.http,
		"--tls-cert", server + ".crt", "--tls-key", server + ".key", "--tls-client-ca", g.file("ca.crt"),
	}}
	c.write(t, a.manifests)
	return a
}

// start starts the process and does not wait for anything.
func (a *apiserver) start(t *testing.T) {
	t.Helper()
	var err error
	a.Process, err = a.g.lab.Start(a.spec)
	must(t, err)
}

// startApiserver starts a cluster's apiserver and waits until it is ready. It
// ends with the test.
func (g *ground) startApiserver(t *testing.T, c *cluster) *apiserver {
	t.Helper()
	a := g.newApiserver(t, c)
	a.start(t)
	t.Cleanup(func() { a.Kill() })
	awaitReady(t, a.Process, a.http)
	return a
}

// agent is the product's clustermesh-agent on a node of a cluster, with its
// eBPF maps in a cgroup and a bpffs of its own.
type agent struct {
	*lab.Process
	clusters string // directory with one file per cluster
	socket   string // of the local API
	maps     *kernel.Maps
}

// startAgent starts the agent of a node that reads the clusters whose files are
// given by name, its own included, and waits until it is ready.
func (g *ground) startAgent(t *testing.T, c *cluster, names map[uint16]string, files map[string]string) *agent {
	t.Helper()
	dir := g.subdir(t, "agent")
	clusters := g.subdir(t, "agent", "clusters")
	for name, content := range files {
		replace(t, filepath.Join(clusters, name), content)
	}
	name := filepath.Base(g.subdir(t)) + "-agent"
	bpffs, err := g.lab.MountBPF(name + "-bpf")
	must(t, err)
	cgroup, err := g.lab.Cgroup("pods/" + name)
	must(t, err)
	http := g.listen()
	a := &agent{clusters: clusters, socket: filepath.Join(g.dir, name+".sock")}
	a.Process, err = g.lab.Start(lab.Spec{Name: name, Path: binary("clustermesh-agent"), Args: []string{
		"--cluster-name", c.name, "--cluster-id", fmt.Sprint(c.id), "--node-name", c.name + "-n0",
		"--clusters", clusters, "--cgroup", cgroup, "--bpffs", bpffs, "--state-dir", filepath.Join(dir, "state"),
		"--http", http, "--api-socket", a.socket,
	}})
	must(t, err)
	t.Cleanup(func() { a.Kill() })
	awaitReady(t, a.Process, http)
	a.maps, err = kernel.Open(filepath.Join(bpffs, "clustermesh"), names)
	must(t, err)
	t.Cleanup(func() { must(t, a.maps.Close()) })
	return a
}

// await waits until the node's maps hold exactly what is wanted, and returns
// how long it took. The kernel tells nobody that a map changed, so it looks
// again and again.
func (a *agent) await(t *testing.T, want oracle.Table) time.Duration {
	t.Helper()
	begin, deadline := time.Now(), time.After(giveUp)
	for {
		has, err := a.maps.Table()
		if err == nil && has.Equal(want) {
			return time.Since(begin)
		}
		select {
		case <-a.Done():
			t.Fatalf("the agent has ended:\n%s", tail(a.Log))
		case <-deadline:
			t.Fatalf("the node's maps do not hold what is published after %v (%v):\n%s", giveUp, err, has.Diff(want))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// follow runs a change and waits until the node's maps hold what is wanted
// after it. The time counts if there was anything to do.
func (a *agent) follow(t *testing.T, took *times, want func() oracle.Table, change func()) {
	t.Helper()
	before := want()
	change()
	after := want()
	if d := a.await(t, after); !after.Equal(before) {
		*took = append(*took, d)
	}
}

// untouched runs something and fails if a map entry was published anew
// meanwhile.
func (a *agent) untouched(t *testing.T, during func()) {
	t.Helper()
	before, err := a.maps.Headers()
	must(t, err)
	during()
	after, err := a.maps.Headers()
	must(t, err)
	if after != before {
		t.Errorf("the maps were touched:\n%s\nbefore:\n%s", after, before)
	}
}

// cluster is what the agent says of a cluster.
func (a *agent) cluster(t *testing.T, name string) *api.Cluster {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	answer, err := api.NewAgentClient(conn).Status(t.Context(), &api.StatusRequest{})
	must(t, err)
	for _, c := range answer.GetClusters() {
		if c.GetName() == name {
			return c
		}
	}
	return &api.Cluster{}
}

// awaitCluster waits until the agent says what is wanted of a cluster.
func (a *agent) awaitCluster(t *testing.T, name string, want func(*api.Cluster) bool) {
	t.Helper()
	deadline := time.After(giveUp)
	for !want(a.cluster(t, name)) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("the agent says of %s after %v: %v", name, giveUp, a.cluster(t, name))
		}
	}
}
