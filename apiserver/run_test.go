package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/clustermesh/clustermesh/kvstore/server"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const patience = 30 * time.Second

// world is an apiserver under test, and a place for its files.
type world struct {
	*testing.T
	config    Config
	pki       string
	ready     chan Addresses
	addresses Addresses
	stop      func() error
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, pki: filepath.Join(t.TempDir(), "pki")}
	w.must(certs.InitCA(w.pki, certs.CAOptions{}))
	server := w.issue(certs.IssueRequest{Kind: certs.Server, Cluster: "east", Hosts: []string{"127.0.0.1"}})
	w.config = Config{
		ClusterName: "east", ClusterID: 7, MaxConnectedClusters: 255, DefaultGlobalNamespace: true,
		EndpointSlices: schema.ModeServicesAndEndpointSlices,
		Manifests:      t.TempDir(), DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		TLS:     certs.ServerFiles{Cert: server.Cert, Key: server.Key, ClientCA: server.CA},
		Log:     slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		Version: "v-test", Revision: "c0ffee",
	}
	return w
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) issue(r certs.IssueRequest) certs.Files {
	f, err := certs.Issue(w.pki, r)
	w.must(err)
	return f
}

// start runs the apiserver until stop is called, at the latest at the end of
// the test, and waits until it is ready.
func (w *world) start() {
	w.Helper()
	w.launch()
	select {
	case w.addresses = <-w.ready:
	case <-time.After(patience):
		w.Fatal("never ready")
	}
}

func (w *world) launch() {
	w.ready = make(chan Addresses, 1)
	ready := w.ready
	w.config.OnReady = func(a Addresses) { ready <- a }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, w.config) }()
	stopped := false
	w.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return fmt.Errorf("did not end within %s", patience)
		}
	}
	w.Cleanup(func() {
		if err := w.stop(); err != nil {
			w.Errorf("ended with %v", err)
		}
	})
}

func (w *world) client(r certs.Role) *clientv3.Client {
	w.Helper()
	f := w.issue(certs.IssueRequest{Kind: r.Kind, Cluster: r.Cluster})
	config, err := certs.ClientTLS(certs.ClientFiles{Cert: f.Cert, Key: f.Key, CA: f.CA, ServerName: "127.0.0.1"}, nil)
	w.must(err)
	return w.connect(config)
}

func (w *world) connect(config *tls.Config) *clientv3.Client {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + w.addresses.Gateway.String()}, TLS: config})
	w.must(err)
	w.Cleanup(func() { c.Close() }) //nolint:errcheck // the server may be gone
	return c
}

func (w *world) list(c *clientv3.Client, prefix string) map[string]string {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, err := c.Get(ctx, prefix, clientv3.WithPrefix())
	w.must(err)
	found := map[string]string{}
	for _, kv := range reply.Kvs {
		found[string(kv.Key)] = string(kv.Value)
	}
	return found
}

// until waits for an event of a prefix that is as wanted, from the beginning
// of the store on.
func (w *world) until(c *clientv3.Client, prefix string, ok func(*clientv3.Event) bool) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for reply := range c.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if slices.ContainsFunc(reply.Events, ok) {
			return
		}
		w.must(reply.Err())
	}
	w.Fatalf("no such event below %s", prefix)
}

func (w *world) get(path string) (int, string) {
	w.Helper()
	reply, err := http.Get("http://" + w.addresses.HTTP.String() + path)
	w.must(err)
	defer reply.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(reply.Body)
	w.must(err)
	return reply.StatusCode, string(body)
}

func (w *world) write(name, content string) {
	w.Helper()
	temporary := filepath.Join(w.config.Manifests, "."+name)
	w.must(os.WriteFile(temporary, []byte(content), 0o644))
	w.must(os.Rename(temporary, filepath.Join(w.config.Manifests, name)))
}

const shop = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {service.cilium.io/global: "true"}}
spec: {clusterIP: 172.20.0.10, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.7.0.21]}]
ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
status: {podIP: 10.7.0.21, hostIP: 192.0.2.11, phase: Running}
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.7.0.0/24}
`

func TestPublishesManifests(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.start()
	remote := w.client(certs.Role{Kind: certs.Remote, Cluster: "west"})
	w.checkRemoteView(remote)
	local := w.list(w.client(certs.Role{Kind: certs.Local, Cluster: "east"}), "clustermesh/local/")
	if !strings.Contains(local["clustermesh/local/services/v1/east/shop/web"], `"address":"10.7.0.21"`) {
		t.Errorf("local records %v", local)
	}
	w.write("shop.yaml", strings.Replace(shop, "10.7.0.21]", "10.7.0.22]", 1))
	w.until(remote, "cilium/state/services/", func(e *clientv3.Event) bool { return strings.Contains(string(e.Kv.Value), "10.7.0.22") })
	w.must(os.Remove(filepath.Join(w.config.Manifests, "shop.yaml")))
	for _, prefix := range []string{"cilium/state/services/", "cilium/state/nodes/", "cilium/state/identities/", "cilium/state/ip/"} {
		w.until(remote, prefix, func(e *clientv3.Event) bool { return e.Type == clientv3.EventTypeDelete })
	}
	w.must(w.stop())
}

func (w *world) checkRemoteView(c *clientv3.Client) {
	state := w.list(c, "cilium/state/")
	for _, key := range []string{"cilium/state/services/v1/east/shop/web", "cilium/state/nodes/v1/east/node-1", "cilium/state/ip/v1/default/10.7.0.21", "cilium/state/endpointslices/v1/east/shop/web-1"} {
		if state[key] == "" {
			w.Errorf("%s is missing", key)
		}
	}
	if len(state) != 5 { // and one identity
		w.Errorf("published %v", slices.Sorted(maps.Keys(state)))
	}
	if got := len(w.list(c, "cilium/synced/east/")); got != 6 {
		w.Errorf("%d canaries", got)
	}
	if len(w.list(c, "cilium/.heartbeat")) != 1 {
		w.Error("no heartbeat")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, err := c.Get(ctx, "cilium/cluster-config/east")
	w.must(err)
	want := `{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}`
	if len(reply.Kvs) != 1 || string(reply.Kvs[0].Value) != want {
		w.Errorf("cluster config %v", reply.Kvs)
	}
}

// The announcement is older than any record, and each canary younger than all
// records of its kind.
func TestOrderOfPublication(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.start()
	c := w.client(certs.Role{Kind: certs.Local, Cluster: "east"})
	config := w.revision(c, "cilium/cluster-config/east")
	for _, k := range w.config.kinds() {
		canary := w.revision(c, schema.CanaryKey(k, "east", false))
		for key := range w.list(c, schema.WatchPrefix(k, "east", false)) {
			if r := w.revision(c, key); r < config || r > canary {
				t.Errorf("%s has revision %d, the config %d, the canary %d", key, r, config, canary)
			}
		}
	}
}

func (w *world) revision(c *clientv3.Client, key string) int64 {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, err := c.Get(ctx, key)
	w.must(err)
	if len(reply.Kvs) != 1 {
		w.Fatalf("%s does not exist", key)
	}
	return reply.Kvs[0].CreateRevision
}

func TestIdentitiesSurviveRestart(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.start()
	role := certs.Role{Kind: certs.Remote}
	before := w.list(w.client(role), "cilium/state/identities/")
	w.must(w.stop())
	// A journal that says otherwise wins over the sequence of the labels.
	path := filepath.Join(w.config.DataDir, "identities", "journal")
	w.rewriteJournal(path)
	w.start()
	after := w.list(w.client(role), "cilium/state/identities/")
	if len(before) != 1 || len(after) != 1 || after["cilium/state/identities/v1/id/458799"] == "" {
		t.Fatalf("identities %v, then %v", before, after)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.write("bad.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {clusterIP: nope}\n")
	w.start()
	if code, body := w.get("/healthz"); code != 200 {
		t.Errorf("healthz: %d %s", code, body)
	}
	code, body := w.get("/readyz")
	if code != 200 || !strings.Contains(body, "bad.yaml: document 1") || !strings.Contains(body, "spec.clusterIP") {
		t.Errorf("readyz: %d %s", code, body)
	}
	_, metrics := w.get("/metrics")
	for _, want := range []string{
		"clustermesh_ready 1", `clustermesh_build_info{component="apiserver",go_version="` + runtime.Version() + `",revision="c0ffee",version="v-test"} 1`,
		`clustermesh_publisher_operations_total{kind="services",op="put"} 1`, `clustermesh_publisher_pending{kind="ip"} 0`,
		`clustermesh_source_objects{kind="pods"} 1`, "clustermesh_source_problems 1", "clustermesh_source_errors_total 1",
		`clustermesh_export_records{kind="local-services"} 1`, `clustermesh_export_problems{reason="address-conflict"} 0`,
		`clustermesh_identities{state="used"} 1`, "clustermesh_identities_limit 65535", "clustermesh_store_lives_total 1",
		"clustermesh_gateway_connections",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

// Before the source is synced nothing is announced as complete, and readyz
// says what is missing.
func TestNotReadyWithoutSource(t *testing.T) {
	w := newWorld(t)
	w.config.Manifests, w.config.Kubeconfig = "", filepath.Join(t.TempDir(), "kubeconfig")
	w.must(os.WriteFile(w.config.Kubeconfig, []byte(deadKubeconfig), 0o600))
	a, err := prepare(t.Context(), w.config)
	w.must(err)
	w.addresses.HTTP = a.http.Addr()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	deadline := time.Now().Add(patience)
	for {
		code, body := w.get("/readyz")
		if code == 503 && strings.Contains(body, "missing: source: not synced") && strings.Contains(body, "missing: publish services") &&
			strings.Contains(body, "problem: source: services: ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("readyz: %d %s", code, body)
		}
	}
	cancel()
	w.must(<-ended)
}

const deadKubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`

// A store that fails is replaced by a new life with the same content.
func TestStoreIsRebuilt(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	a, err := prepare(t.Context(), w.config)
	w.must(err)
	ready := make(chan Addresses, 1)
	a.config.OnReady = func(x Addresses) { ready <- x }
	fail := make(chan error)
	a.runServer = func(ctx context.Context, s *server.Server) error {
		ctx, cancel := context.WithCancelCause(ctx)
		go func() { cancel(<-fail) }()
		if err := s.Run(ctx); err != nil {
			return err
		}
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	w.addresses = <-ready
	before := w.list(w.client(certs.Role{Kind: certs.Remote}), "cilium/state/")
	first := a.status.current().server.ClusterID()
	fail <- errors.New("the disk is gone")
	deadline := time.Now().Add(patience)
	for len(a.status.missing()) > 0 || a.status.current().server.ClusterID() == first {
		if time.Now().After(deadline) {
			t.Fatalf("not rebuilt: %v", a.status.missing())
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.addresses.Gateway = a.status.current().server.Addr()
	after := w.list(w.client(certs.Role{Kind: certs.Remote}), "cilium/state/")
	if len(before) == 0 || !maps.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
	close(fail)
	cancel()
	w.must(<-ended)
}

func TestUnusableAddressesEndTheRun(t *testing.T) {
	w := newWorld(t)
	w.config.Listen = "192.0.2.1:1"
	err := Run(t.Context(), w.config)
	if err == nil || !strings.Contains(err.Error(), "192.0.2.1:1") {
		t.Errorf("error %v", err)
	}
}

func TestValidateNamesEveryFlag(t *testing.T) {
	err := Config{MaxConnectedClusters: 255, Listen: "nowhere", HTTP: "x", Kubeconfig: "a", Manifests: "b", QuotaBytes: 1 << 20}.Validate()
	for _, flag := range []string{"--cluster-name", "--cluster-id", "--manifests", "--data-dir", `--listen "nowhere"`, "--tls-cert", "--tls-key", "--tls-client-ca", `--http "x"`, "--quota-backend-bytes 1048576"} {
		if err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("error does not mention %s:\n%v", flag, err)
		}
	}
	if err := (Config{ClusterName: "east", ClusterID: 300, MaxConnectedClusters: 300}).Validate(); !strings.Contains(err.Error(), `--max-connected-clusters "300"`) {
		t.Errorf("error %v", err)
	}
}
