package apiserver

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/source"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const ciliumObjects = `
{apiVersion: cilium.io/v2, kind: CiliumNode, metadata: {name: node-1}, spec: {addresses: [{type: InternalIP, ip: 192.0.2.11}], encryption: {key: 7}}}
---
apiVersion: cilium.io/v2
kind: CiliumIdentity
metadata: {name: "459000"}
security-labels: {"k8s:app": web, "k8s:io.cilium.k8s.policy.cluster": east, "k8s:io.kubernetes.pod.namespace": shop}
---
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: web-1, namespace: shop}
status: {identity: {id: 459000}, encryption: {key: 7}, networking: {addressing: [{ipv4: 10.7.0.21}], node: 192.0.2.11}}
---
{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceExport, metadata: {name: web, namespace: shop, creationTimestamp: "2026-11-20T10:00:00Z"}}
`

// one is the value of a key that must exist.
func (w *world) one(c *clientv3.Client, key string) string {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, err := c.Get(ctx, key)
	w.must(err)
	if len(reply.Kvs) != 1 {
		w.Fatalf("%s does not exist", key)
	}
	return string(reply.Kvs[0].Value)
}

// canaries are the kinds whose canary a remote cluster finds.
func (w *world) canaries(c *clientv3.Client) []string {
	var kinds []string
	for key := range w.list(c, "cilium/synced/east/") {
		kinds = append(kinds, strings.TrimSuffix(strings.TrimPrefix(key, "cilium/synced/east/cilium/state/"), "/v1"))
	}
	slices.Sort(kinds)
	return kinds
}

// Where Cilium is, its numbers are exported and not our own.
func TestPublishesCiliumsIdentities(t *testing.T) {
	w := newWorld(t)
	w.write("shop.yaml", shop)
	w.write("cilium.yaml", ciliumObjects)
	w.start()
	c := w.client(certs.Role{Kind: certs.Remote, Cluster: "west"})
	got := slices.Sorted(maps.Keys(w.list(c, "cilium/state/")))
	want := []string{
		"cilium/state/endpointslices/v1/east/shop/web-1", "cilium/state/identities/v1/id/459000", "cilium/state/ip/v1/default/10.7.0.21",
		"cilium/state/nodes/v1/east/node-1", "cilium/state/serviceexports/v1/east/shop/web", "cilium/state/services/v1/east/shop/web",
	}
	if !slices.Equal(got, want) {
		t.Errorf("published %v", got)
	}
	if ip := w.one(c, "cilium/state/ip/v1/default/10.7.0.21"); !strings.Contains(ip, `"ID":459000,"Key":7`) {
		t.Errorf("address %s", ip)
	}
	if config := w.one(c, "cilium/cluster-config/east"); !strings.Contains(config, `"serviceExportsEnabled":true`) {
		t.Errorf("cluster config %s", config)
	}
	if _, body := w.get("/readyz"); !strings.Contains(body, "identity source: cilium") {
		t.Errorf("readyz: %s", body)
	}
	_, metrics := w.get("/metrics")
	for _, want := range []string{
		`clustermesh_identity_source{source="cilium"} 1`, `clustermesh_source_objects{kind="ciliumendpoints"} 1`, `clustermesh_source_objects{kind="pods"} 0`,
		`clustermesh_export_records{kind="endpointslices"} 1`, `clustermesh_export_records{kind="serviceexports"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(metrics, "cilium_clustermesh_apiserver_") {
		t.Error("Cilium's metrics are served without being asked for")
	}
}

// Told to, numbers of our own are made although Cilium's exist.
func TestOwnIdentitiesIfTold(t *testing.T) {
	w := newWorld(t)
	w.config.IdentitySource, w.config.MCSAPI = "own", "false"
	w.write("shop.yaml", shop)
	w.write("cilium.yaml", ciliumObjects)
	w.start()
	c := w.client(certs.Role{Kind: certs.Remote})
	state := w.list(c, "cilium/state/")
	if state["cilium/state/identities/v1/id/459000"] != "" || len(state) != 5 {
		t.Errorf("published %v", slices.Sorted(maps.Keys(state)))
	}
	if _, metrics := w.get("/metrics"); !strings.Contains(metrics, `clustermesh_identity_source{source="own"} 1`) {
		t.Error("metrics lack the identity source")
	}
}

// Exactly the kinds that are announced have canaries, and the announcement says
// what the flags say.
func TestAnnouncements(t *testing.T) {
	base := []string{"identities", "ip", "nodes"}
	for what, c := range map[string]struct {
		mode, mcs string
		config    string
		more      []string
	}{
		"services alone": {"", "absent", `{"syncedCanaries":true,"maxConnectedClusters":511}`, []string{"services"}},
		"slices alone": {schema.ModeEndpointSlicesOnly, "absent",
			`{"syncedCanaries":true,"maxConnectedClusters":511,"endpointSlicesExportMode":"endpointslices-only"}`, []string{"endpointslices"}},
		"exports disabled": {"", "false", `{"syncedCanaries":true,"maxConnectedClusters":511,"serviceExportsEnabled":false}`, []string{"serviceexports", "services"}},
		"everything": {schema.ModeServicesAndEndpointSlices, "true",
			`{"syncedCanaries":true,"maxConnectedClusters":511,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}`,
			[]string{"endpointslices", "serviceexports", "services"}},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.config.ClusterID, w.config.MaxConnectedClusters = 500, 511
			w.config.EndpointSlices, w.config.MCSAPI = c.mode, c.mcs
			w.write("shop.yaml", shop)
			w.start()
			remote := w.client(certs.Role{Kind: certs.Remote})
			if got, want := w.canaries(remote), slices.Sorted(slices.Values(append(c.more, base...))); !slices.Equal(got, want) {
				t.Errorf("canaries %v, want %v", got, want)
			}
			if got, want := w.one(remote, "cilium/cluster-config/east"), `{"id":500,"capabilities":`+c.config+`}`; got != want {
				t.Errorf("config %s\n  want %s", got, want)
			}
			for key := range w.list(remote, "cilium/state/") {
				if kind := strings.Split(key, "/")[2]; !slices.Contains(append(c.more, base...), kind) {
					t.Errorf("%s is published without being announced", key)
				}
			}
			w.checkRange(remote, 500<<15, 501<<15-1)
		})
	}
}

// checkRange reads the identities as another cluster with 511 would.
func (w *world) checkRange(c *clientv3.Client, first, last uint32) {
	identities := w.list(c, "cilium/state/identities/")
	if len(identities) != 1 {
		w.Errorf("identities %v", identities)
	}
	for key, value := range identities {
		id, err := schema.DecodeIdentity(schema.Source{Cluster: "east", ClusterID: 500}, 511, key, []byte(value), schema.DefaultLimits())
		if err != nil || id.ID < first || id.ID > last {
			w.Errorf("identity %v, %v", id, err)
		}
	}
}

// Until it is known whether the cluster has ServiceExports nothing is announced
// that might prove wrong: a reader looks once per connection.
func TestAnnouncementWaitsForSource(t *testing.T) {
	for mcs, announced := range map[string]bool{"auto": false, "false": true} {
		w := newWorld(t)
		w.config.IdentitySource, w.config.MCSAPI = "own", mcs
		w.config.Manifests, w.config.Kubeconfig = "", filepath.Join(t.TempDir(), "kubeconfig")
		w.must(os.WriteFile(w.config.Kubeconfig, []byte(deadKubeconfig), 0o600))
		a, err := prepare(t.Context(), w.config)
		w.must(err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.run(ctx) }()
		w.untilKey(a, schema.HeartbeatKey)
		if announced {
			w.untilKey(a, schema.ClusterConfigKey("east"))
		} else if w.hasKey(a, schema.ClusterConfigKey("east")) {
			t.Errorf("--mcs-api %s: announced before anything was known", mcs)
		}
		cancel()
		w.must(<-ended)
	}
}

func (w *world) untilKey(a *apiserver, key string) {
	w.Helper()
	for deadline := time.Now().Add(patience); !w.hasKey(a, key); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("%s never appeared", key)
		}
	}
}

func (w *world) hasKey(a *apiserver, key string) bool {
	l := a.status.current()
	if l == nil {
		return false
	}
	select {
	case <-l.server.Started():
	default:
		return false
	}
	r, err := l.server.Store().Range(w.Context(), key, "", 1, 0)
	return err == nil && len(r.KVs) == 1
}

// With --cilium-compat the health check, the metrics and the layout of the
// secret are those of Cilium's apiserver.
func TestCiliumCompat(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	for to, from := range map[string]string{"tls.crt": w.config.TLS.Cert, "tls.key": w.config.TLS.Key, "ca.crt": w.config.TLS.ClientCA} {
		data, err := os.ReadFile(from)
		w.must(err)
		w.must(os.WriteFile(filepath.Join(dir, to), data, 0o600))
	}
	w.config.TLS, w.config.TLSDir = certs.ServerFiles{}, dir
	w.config.CiliumCompat, w.config.HealthListen = true, "127.0.0.1:0"
	w.write("shop.yaml", shop)
	w.start()
	reply, err := http.Get("http://" + w.addresses.Health.String() + "/readyz")
	w.must(err)
	defer reply.Body.Close() //nolint:errcheck // read to its end
	body := make([]byte, 16)
	n, _ := reply.Body.Read(body)
	if reply.StatusCode != 200 || string(body[:n]) != "Ready" {
		t.Errorf("health check: %d %q", reply.StatusCode, body[:n])
	}
	_, metrics := w.get("/metrics")
	for _, want := range []string{
		`cilium_clustermesh_apiserver_version{arch="`, `version="v-test"} 1`,
		`cilium_clustermesh_apiserver_kvstore_sync_queue_size{scope="nodes/v1",source_cluster="east"} 0`,
		`cilium_clustermesh_apiserver_kvstore_sync_errors_total{scope="endpointslices/v1",source_cluster="east"} 0`,
		`cilium_clustermesh_apiserver_kvstore_initial_sync_completed{action="write",scope="serviceexports/v1",source_cluster="east"} 1`,
		"clustermesh_ready 1",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(metrics, "cilium_clustermesh_apiserver_bootstrap_seconds 0\n") || !strings.Contains(metrics, "cilium_clustermesh_apiserver_bootstrap_seconds ") {
		t.Error("metrics lack the seconds until everything was published")
	}
	if strings.Contains(metrics, `scope="local`) {
		t.Error("our own kind has a metric under Cilium's name")
	}
}

func TestCiliumHealthBeforeReady(t *testing.T) {
	w := newWorld(t)
	w.config.CiliumCompat, w.config.HealthListen = true, "127.0.0.1:0"
	a, err := prepare(t.Context(), w.config)
	w.must(err)
	reply := httptest.NewRecorder()
	a.ciliumHealth().ServeHTTP(reply, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
	if reply.Code != 500 || reply.Body.String() != "NotReady" {
		t.Errorf("health check: %d %q", reply.Code, reply.Body)
	}
	w.must(a.http.Close())
	w.must(a.health.Close())
	w.must(a.core.journal.close())
}

func TestValidateModes(t *testing.T) {
	w := newWorld(t)
	w.config.IdentitySource, w.config.MCSAPI, w.config.EndpointSlices = "theirs", "yes", "all"
	w.config.CiliumCompat, w.config.HealthListen = true, "9880"
	err := w.config.Validate()
	for _, want := range []string{`--identity-source "theirs": not known`, `--mcs-api "yes"`, `--endpoint-slices-export-mode "all"`, `--health-listen "9880"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %s:\n%v", want, err)
		}
	}
	w.config.IdentitySource, w.config.MCSAPI, w.config.EndpointSlices, w.config.CiliumCompat = "cilium", "absent", "", false
	if err := w.config.Validate(); err != nil {
		t.Error(err)
	}
}

// The kinds that have publishers do not depend on what the source reads, for
// canaries of all announced kinds are written in any case.
func TestKindsAreThoseAnnounced(t *testing.T) {
	for _, mcs := range []string{"", "auto", "true", "false", "absent"} {
		config := Config{ClusterName: "east", ClusterID: 7, MaxConnectedClusters: 255, MCSAPI: mcs}
		for _, reads := range []source.Reads{{}, {ServiceExports: "v1beta1", Cilium: true}} {
			want := append(schema.PublishedKinds(config.clusterConfig(reads)), schema.KindLocalService)
			if got := config.kinds(); !slices.Equal(got, want) {
				t.Errorf("--mcs-api %q, %+v: publishes %v, announces %v", mcs, reads, got, want)
			}
		}
	}
}
