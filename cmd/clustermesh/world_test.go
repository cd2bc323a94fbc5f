//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/agent"
	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/apiserver"
	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/bpf/layout"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/clustermesh/clustermesh/kvstore/server"
)

// world is a node of cluster east with whatever it is surrounded by: apiservers,
// certificates, cluster files and an agent, all of them the real ones; only the
// kernel's maps are in memory. Paths of it are expanded in commands: CLUSTERS,
// SOCKET, DATA, APISERVER.
type world struct {
	*testing.T
	dir   string
	names map[string]string // what is expanded in commands
	stop  map[string]func() // by cluster, of apiservers
	tls   func(*tls.Config) // changes that of a store, or nil
	agent agent.Config
	maps  layout.Capacity
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "cm") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{T: t, dir: dir, stop: map[string]func(){}, maps: layout.Capacity{Frontends: 64, Records: 256}}
	w.names = map[string]string{"CLUSTERS": w.path("clusters"), "SOCKET": w.path("agent.sock"), "DATA": w.path("data"), "PKI": w.path("pki"), "DIR": dir}
	for _, name := range []string{"clusters", "data", "peers", "state"} {
		w.must(os.Mkdir(w.path(name), 0o755))
	}
	w.agent = agent.Config{
		ClusterName: "east", ClusterID: 1, NodeName: "n1", ClustersDir: w.path("clusters"), PeersDir: w.path("peers"), BPFFS: dir, StateDir: w.path("state"),
		APISocket: w.path("agent.sock"), Version: "test", Log: slog.New(slog.DiscardHandler), MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
	}
	w.must(certs.InitCA(w.path("pki"), certs.CAOptions{}))
	return w
}

func (w *world) path(parts ...string) string {
	return filepath.Join(append([]string{w.dir}, parts...)...)
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) write(text string, parts ...string) {
	w.Helper()
	path := w.path(parts...)
	w.must(os.MkdirAll(filepath.Dir(path), 0o755))
	w.must(os.WriteFile(path+".new", []byte(text), 0o600))
	w.must(os.Rename(path+".new", path))
}

func (w *world) issue(r certs.IssueRequest) certs.Files {
	w.Helper()
	f, err := certs.Issue(w.path("pki"), r)
	w.must(err)
	return f
}

// serverTLS are the files of a cluster's server.
func (w *world) serverTLS(cluster string) certs.ServerFiles {
	f := w.issue(certs.IssueRequest{Kind: certs.Server, Cluster: cluster})
	return certs.ServerFiles{Cert: f.Cert, Key: f.Key, ClientCA: f.CA}
}

// cluster runs an apiserver that publishes manifests, and writes the file that
// leads to it.
func (w *world) cluster(name string, id uint32, manifests string) {
	w.Helper()
	w.write(manifests, "manifests-"+name, "all.yaml")
	ready := make(chan apiserver.Addresses, 1)
	w.start(name, apiserver.Config{
		ClusterName: name, ClusterID: id, MaxConnectedClusters: 255, DefaultGlobalNamespace: true, IdentitySource: "own", MCSAPI: "false",
		Manifests: w.path("manifests-" + name), DataDir: w.path("data", name), Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0", TLS: w.serverTLS(name),
		OnReady: func(a apiserver.Addresses) { ready <- a },
	})
	select {
	case a := <-ready:
		w.names["APISERVER-"+name] = "http://" + a.HTTP.String()
		w.file(name, a.Gateway.String())
	case <-time.After(time.Minute):
		w.Fatalf("%s is not ready within a minute", name)
	}
}

func (w *world) start(name string, c apiserver.Config) {
	w.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := apiserver.Run(ctx, c); err != nil {
			w.Errorf("apiserver of %s: %v", name, err)
		}
	}()
	w.stop[name] = sync.OnceFunc(func() { cancel(); <-done })
	w.Cleanup(w.stop[name])
}

// file writes a cluster file: the server's usual name leads to address.
func (w *world) file(name, address string) {
	w.Helper()
	w.fileFor(name, name+".mesh.cilium.io", address)
}

func (w *world) fileFor(name, host, address string) {
	w.Helper()
	kind := certs.Remote
	if name == "east" {
		kind = certs.Local
	}
	f := w.issue(certs.IssueRequest{Kind: kind, Cluster: "east"})
	ip, port, err := net.SplitHostPort(address)
	w.must(err)
	w.write(fmt.Sprintf("endpoints: [https://%s:%s]\ntrusted-ca-file: %s\ncert-file: %s\nkey-file: %s\ncilium-host-aliases: [{hostname: %s, ips: [%q]}]\n",
		host, port, f.CA, f.Cert, f.Key, host, ip), "clusters", name)
}

// service is a global service of one port with backends, in a namespace of
// everybody's.
func service(name, port string, annotations string, backends ...string) string {
	text := fmt.Sprintf(`---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata:
  name: %[1]s
  namespace: shop
  annotations: {service.cilium.io/global: "true"%[3]s}
spec:
  type: ClusterIP
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports: [{name: %[2]s, protocol: TCP, port: 80, targetPort: 8080}]
`, name, port, annotations)
	if len(backends) == 0 {
		return text
	}
	return text + fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-1, namespace: shop, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: %[2]s, protocol: TCP, port: 8080}]
endpoints: [{conditions: {ready: true}, addresses: [%[3]s]}]
`, name, port, strings.Join(backends, "]}, {conditions: {ready: true}, addresses: ["))
}

func node(name, ip, cidr string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Node
metadata: {name: %s}
spec: {podCIDR: %s, podCIDRs: [%s]}
status: {addresses: [{type: InternalIP, address: %s}]}
`, name, cidr, cidr, ip)
}

// pair is east and west with a service that both have.
func (w *world) pair() {
	w.cluster("east", 1, service("cart", "http", "", "10.1.0.1"))
	w.cluster("west", 2, service("cart", "http", "", "10.2.0.1", "10.2.0.2"))
}

// store runs the gateway of a cluster in front of what the test writes itself.
func (w *world) store(name string, id uint32, adjust func(map[string][]byte)) {
	w.Helper()
	tlsConfig, err := certs.ServerTLS(w.serverTLS(name), nil)
	w.must(err)
	if w.tls != nil {
		w.tls(tlsConfig)
	}
	s, err := server.New(server.Config{Cluster: name, DataDir: w.path("data", name), Listen: "127.0.0.1:0", TLS: tlsConfig})
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	w.Cleanup(func() { cancel(); w.must(<-ended) })
	<-s.Started()
	config := schema.ClusterConfig{ID: id, Capabilities: schema.Capabilities{SyncedCanaries: true, MaxConnectedClusters: 255}}
	content := map[string][]byte{schema.ClusterConfigKey(name): config.Encode(), schema.HeartbeatKey: schema.EncodeTime(time.Now().Unix())}
	for _, k := range schema.PublishedKinds(config) {
		content[schema.CanaryKey(k, name, false)] = schema.EncodeTime(time.Now().Unix())
	}
	adjust(content)
	var ops []kvstore.Op
	for key, value := range content {
		ops = append(ops, kvstore.Op{Key: key, Value: value})
	}
	w.must(s.Store().Apply(ctx, ops))
	w.file(name, s.Addr().String())
}

// listen serves connections until the test ends.
func (w *world) listen(serve func(net.Conn)) string {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	w.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.Cleanup(func() { c.Close() })
			go serve(c)
		}
	}()
	return l.Addr().String()
}

// closedPort is an address at which nobody listens.
func (w *world) closedPort() string {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	defer l.Close()
	return l.Addr().String()
}

// node runs the agent.
func (w *world) node() {
	w.Helper()
	a, err := agent.New(w.agent, &memoryKernel{Memory: datapath.NewMemory(w.maps)})
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	w.Cleanup(func() { cancel(); w.must(<-ended) })
}

// memoryKernel is maps in memory: a wait for a grace period is another
// goroutine's.
type memoryKernel struct {
	*datapath.Memory
	mu sync.Mutex
}

func (k *memoryKernel) WaitRCU() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Grace()
	return nil
}

func (k *memoryKernel) Counters() (bpf.Counters, error) { return bpf.Counters{}, nil }

func (k *memoryKernel) StoreBackends(offset uint32, region layout.Region, backends []layout.Backend) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Memory.StoreBackends(offset, region, backends)
}

func (k *memoryKernel) StoreTable(at uint32, slots []uint16) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Memory.StoreTable(at, slots)
}

func (k *memoryKernel) StoreHeader(id uint32, h layout.Header) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Memory.StoreHeader(id, h)
}

func (k *memoryKernel) InsertFrontend(key layout.FrontendKey, id uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.Memory.InsertFrontend(key, id)
}

func (k *memoryKernel) DeleteFrontend(key layout.FrontendKey) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.Memory.DeleteFrontend(key)
}

// words is a command with the world's paths in it.
func (w *world) words(command string) []string {
	words := strings.Fields(command)
	for i, word := range words {
		for name, value := range w.names {
			if before, after, found := strings.Cut(word, name); found && !strings.HasPrefix(after, "-") {
				words[i] = before + value + after
			}
		}
	}
	return words
}

// say runs a command of the operator's and returns all that it prints.
func (w *world) say(command string) (text string, code int) {
	w.Helper()
	words := w.words(command)
	if words[0] != "clustermesh" { // in a process of its own, with something in its way
		return w.sayIn(words)
	}
	var out bytes.Buffer
	code = run(w.Context(), words[1:], nil, &out, &out)
	return out.String(), code
}

// sayIn runs a command of this test's binary.
func (w *world) sayIn(words []string) (string, int) {
	w.Helper()
	path, err := exec.LookPath(words[0])
	w.must(err)
	cmd := exec.CommandContext(w.Context(), path, words[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		w.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
