package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/certs"
)

// The ports of the two programs.
const (
	etcdPort      = 2379
	apiserverPort = 9962
	agentPort     = 9964
)

// cluster is one cluster of the demo: one node with everything on it.
type cluster struct {
	name string
	id   int
	ip   netip.Addr // of the node
	dir  string     // below the demo's temporary directory

	manifests []manifest
	service   service

	node      *place
	system    *cgroup // the product's own programs
	pods      *cgroup // what the agent serves
	apiserver *process
	agent     *process
	backends  []*process
}

func newCluster(cfg Config, tmp, name string, id int, ip string) (*cluster, error) {
	c := &cluster{name: name, id: id, ip: netip.MustParseAddr(ip), dir: filepath.Join(tmp, name)}
	var err error
	if c.manifests, err = readManifests(cfg.examples(), name); err != nil {
		return nil, err
	}
	if c.service, err = findService(c.manifests); err != nil {
		return nil, fmt.Errorf("read examples of %s: %w", name, err)
	}
	for _, sub := range []string{"manifests", "data", "clusters", "bpf", "state"} {
		if err := os.MkdirAll(filepath.Join(c.dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	return c, c.apply(false)
}

// apply writes the manifests to the directory that the apiserver watches.
func (c *cluster) apply(withdrawn bool) error {
	for _, m := range c.manifests {
		data, err := m.render(withdrawn)
		if err != nil {
			return err
		}
		if err := replace(filepath.Join(c.dir, "manifests", m.name), data); err != nil {
			return err
		}
	}
	return nil
}

// replace writes a file in one step. The temporary name has another ending, so
// that nobody takes it for a manifest.
func replace(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// issue makes the cluster's three certificates with the CA in pki.
func (c *cluster) issue(pki string) error {
	for _, req := range []certs.IssueRequest{
		{Kind: certs.Server, Cluster: c.name, Hosts: []string{c.ip.String()}},
		{Kind: certs.Remote, Cluster: c.name},
		{Kind: certs.Local, Cluster: c.name},
	} {
		if _, err := certs.Issue(pki, req); err != nil {
			return err
		}
	}
	return nil
}

// connect tells the cluster's agent where the apiserver of peer is and which
// certificate to show there.
func (c *cluster) connect(pki string, peer *cluster) error {
	role := certs.Role{Kind: certs.Remote, Cluster: c.name}
	if peer == c {
		role.Kind = certs.Local
	}
	base := filepath.Join(pki, role.CommonName())
	text := fmt.Sprintf("endpoints:\n- https://%s\ntrusted-ca-file: %s\ncert-file: %s.crt\nkey-file: %s.key\n",
		netip.AddrPortFrom(peer.ip, etcdPort), filepath.Join(pki, "ca.crt"), base, base)
	return replace(filepath.Join(c.dir, "clusters", peer.name), []byte(text))
}

// build makes the node: its namespaces, cgroups and addresses.
func (c *cluster) build(wire *place, cgroups string) error {
	var err error
	if c.node, err = newPlace(c.name); err != nil {
		return err
	}
	if err := plug(wire, c.node, netip.PrefixFrom(c.ip, 24)); err != nil {
		return fmt.Errorf("connect node of %s: %w", c.name, err)
	}
	for _, p := range c.service.pods {
		if err := c.node.addAddr("lo", host(p.addr.Addr())); err != nil {
			return err
		}
	}
	if c.system, err = newCgroup(filepath.Join(cgroups, c.name+"-system")); err != nil {
		return err
	}
	if c.pods, err = newCgroup(filepath.Join(cgroups, c.name+"-pods")); err != nil {
		return err
	}
	return c.node.mountBPF(filepath.Join(c.dir, "bpf"))
}

// route makes the pods of peer reachable.
func (c *cluster) route(peer *cluster) error {
	for _, p := range peer.service.pods {
		if err := c.node.addRoute(p.addr.Addr(), peer.ip); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) http(port uint16) string { return netip.AddrPortFrom(c.ip, port).String() }

func (c *cluster) apiserverArgs(program, pki string) []string {
	server := filepath.Join(pki, "server-"+c.name)
	return []string{
		program, "--cluster-name", c.name, "--cluster-id", strconv.Itoa(c.id),
		"--manifests", filepath.Join(c.dir, "manifests"), "--data-dir", filepath.Join(c.dir, "data"),
		"--listen", c.http(etcdPort), "--tls-cert", server + ".crt", "--tls-key", server + ".key",
		"--tls-client-ca", filepath.Join(pki, "ca.crt"), "--http", c.http(apiserverPort),
	}
}

func (c *cluster) agentArgs(program string) []string {
	return []string{
		program, "--cluster-name", c.name, "--cluster-id", strconv.Itoa(c.id), "--node-name", c.name + "-node",
		"--clusters", filepath.Join(c.dir, "clusters"), "--cgroup", c.pods.path, "--bpffs", filepath.Join(c.dir, "bpf"),
		"--state-dir", filepath.Join(c.dir, "state"), "--http", c.http(agentPort), "--api-socket", c.socket(),
	}
}

func (c *cluster) socket() string { return filepath.Join(c.dir, "agent.sock") }

// startPods starts an HTTP server for every backend of the manifests.
func (c *cluster) startPods(self, logs string) error {
	for _, p := range c.service.pods {
		proc, err := spawn(c.node, c.pods, logs, p.name, self, "demo", "backend", "--listen", p.addr.String(), "--name", c.name+" "+p.name)
		if err != nil {
			return err
		}
		c.backends = append(c.backends, proc)
	}
	return nil
}

// ready asks /readyz of the program that listens on port.
func (c *cluster) ready(port uint16) func(context.Context) error {
	return func(ctx context.Context) error { return c.get(ctx, "http://"+c.http(port)+"/readyz") }
}

func (c *cluster) get(ctx context.Context, url string) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: c.node.dial}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, maxBody))
		return fmt.Errorf("%s: %s: %s", url, res.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// podsUp reports whether every backend accepts connections.
func (c *cluster) podsUp(ctx context.Context) error {
	for _, p := range c.service.pods {
		conn, err := c.node.dial(ctx, "tcp", p.addr.String())
		if err != nil {
			return err
		}
		conn.Close()
	}
	return nil
}

// agentSays returns a condition on what the agent's local API answers.
func (c *cluster) agentSays(cond func(context.Context, api.AgentClient) error) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := grpc.NewClient("unix:"+c.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		return cond(ctx, api.NewAgentClient(conn))
	}
}

// uses returns a condition: the kernel of this node holds that many backends of
// each cluster for the service, and its agent says so too.
func (c *cluster) uses(want map[string]int) func(context.Context) error {
	return c.agentSays(func(ctx context.Context, agent api.AgentClient) error {
		decided, err := c.decided(ctx, agent)
		if err != nil {
			return err
		}
		held, err := c.held(ctx, agent)
		if err != nil {
			return err
		}
		if !maps.Equal(decided, want) || !maps.Equal(held, want) {
			return fmt.Errorf("node of %s uses backends %v and its kernel holds %v, want %v", c.name, decided, held, want)
		}
		return nil
	})
}

// lost returns a condition: the agent has noticed that it lost a cluster.
func (c *cluster) lost(cluster string) func(context.Context) error {
	return c.agentSays(func(ctx context.Context, agent api.AgentClient) error {
		res, err := agent.Status(ctx, &api.StatusRequest{})
		if err != nil {
			return err
		}
		for _, other := range res.GetClusters() {
			if other.GetName() == cluster && other.GetState() == "synced" {
				return fmt.Errorf("agent of %s says that %s is %s", c.name, cluster, other.GetState())
			}
		}
		return nil
	})
}

func (c *cluster) decided(ctx context.Context, agent api.AgentClient) (map[string]int, error) {
	res, err := agent.Services(ctx, &api.ServicesRequest{Namespace: c.service.namespace, Name: c.service.name})
	if err != nil {
		return nil, err
	}
	if len(res.GetServices()) == 0 {
		return nil, fmt.Errorf("node of %s knows no service %s", c.name, c.service)
	}
	used := map[string]int{}
	for _, b := range res.GetServices()[0].GetBackends() {
		if b.GetSelected() {
			used[b.GetCluster()]++
		}
	}
	return used, nil
}

// held counts what was read back from the maps.
func (c *cluster) held(ctx context.Context, agent api.AgentClient) (map[string]int, error) {
	res, err := agent.Maps(ctx, &api.MapsRequest{})
	if err != nil {
		return nil, err
	}
	for _, e := range res.GetEntries() {
		f := e.GetFrontend()
		if f.GetAddress() != c.service.frontend.Addr().String() || f.GetPort() != uint32(c.service.frontend.Port()) {
			continue
		}
		held := map[string]int{}
		for _, b := range e.GetBackends() {
			held[b.GetCluster()]++
		}
		return held, nil
	}
	return nil, errors.New("no map entry for " + net.JoinHostPort(c.service.frontend.Addr().String(), strconv.Itoa(int(c.service.frontend.Port()))))
}

// close ends everything that runs on the node and removes its namespaces.
func (c *cluster) close() {
	for _, p := range append(c.backends, c.agent, c.apiserver) {
		if p != nil {
			p.kill()
		}
	}
	if c.node != nil {
		c.node.close()
	}
	for _, g := range []*cgroup{c.system, c.pods} {
		if g != nil {
			g.dir.Close()
		}
	}
}
