package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// world is a cluster, the server that publishes it, and who looks at it. It is
// healthy until something in it is changed, before it is opened.
type world struct {
	t       *testing.T
	ca      *authority
	cluster string
	config  schema.ClusterConfig
	content map[string][]byte // overrides what cluster and config yield; nil deletes
	server  *standin
	front   front
	beat    func() time.Time // what heartbeats say; nil beats only once
	target  Target
	opts    Options
}

const host = "east.mesh.cilium.io"

func newWorld(t *testing.T, cluster string) *world {
	w := &world{
		t: t, ca: newAuthority(t), cluster: cluster, content: map[string][]byte{}, server: newStandin(cluster), beat: time.Now,
		config: announced(),
		opts:   Options{OwnID: 1, Wait: true, HeartbeatWait: 8 * time.Second, PingInterval: 20 * time.Millisecond, ProbeWrites: true},
	}
	w.front.tls = &tls.Config{
		Certificates: []tls.Certificate{w.serverCertificate()}, ClientCAs: w.ca.pool(),
		ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"},
	}
	w.target = Target{Cluster: cluster, HostAliases: map[string][]netip.Addr{host: {netip.MustParseAddr("127.0.0.1")}}}
	w.ca.files(&w.target, w.ca.issue("remote", x509.ExtKeyUsageClientAuth))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.front.Listener = lis
	w.target.Endpoint = "https://" + net.JoinHostPort(host, w.port())
	return w
}

// announced is what a cluster with everything announces.
func announced() schema.ClusterConfig {
	known := false
	return schema.ClusterConfig{ID: 7, Capabilities: schema.Capabilities{
		SyncedCanaries: true, MaxConnectedClusters: 255, ServiceExportsEnabled: &known, EndpointSlicesExportMode: schema.ModeServicesAndEndpointSlices,
	}}
}

func (w *world) port() string {
	_, port, _ := net.SplitHostPort(w.front.Addr().String())
	return port
}

func (w *world) serverCertificate(change ...func(*x509.Certificate)) tls.Certificate {
	named := func(c *x509.Certificate) { c.DNSNames = []string{host} }
	return w.ca.issue("clustermesh-apiserver", x509.ExtKeyUsageServerAuth, append([]func(*x509.Certificate){named}, change...)...)
}

func (w *world) serveCertificate(c tls.Certificate) { w.front.tls.Certificates = []tls.Certificate{c} }

// open fills the store and serves until the test ends.
func (w *world) open() {
	w.t.Helper()
	w.fill(w.server.store)
	revision := w.server.store.Revision() - 1 // what is newest can still be read as it was before
	w.server.store.Compact(revision)
	w.server.compacted = revision
	w.put(schema.HeartbeatKey, schema.EncodeTime(w.beatTime().Unix()))
	w.put(doomed, nil)
	server := w.server.serve(&w.front)
	w.t.Cleanup(server.Stop)
	if w.beat != nil {
		stop := make(chan struct{})
		ended := make(chan struct{})
		w.t.Cleanup(func() { close(stop); <-ended })
		go func() { defer close(ended); w.keepBeating(stop) }()
	}
}

func (w *world) beatTime() time.Time {
	if w.beat == nil {
		return time.Now()
	}
	return w.beat()
}

func (w *world) keepBeating(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
			w.put(schema.HeartbeatKey, schema.EncodeTime(w.beat().Unix()))
		}
	}
}

func (w *world) put(key string, value []byte) {
	err := w.server.store.Apply(context.Background(), []kvstore.Op{{Key: key, Value: value, Delete: value == nil}})
	if err != nil {
		w.t.Error(err)
	}
}

// doomed is the key of an entry that is deleted before anybody looks.
const doomed = "cilium/state/services/v1/east/shop/doomed"

// fill writes everything that a healthy cluster publishes, in pieces that every
// store takes.
func (w *world) fill(store kvstore.Writer) {
	w.t.Helper()
	entries := entriesOf(w.cluster, w.config)
	entries[doomed] = []byte("{}")
	maps.Copy(entries, w.content)
	var ops []kvstore.Op
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		if entries[key] != nil {
			ops = append(ops, kvstore.Op{Key: key, Value: entries[key]})
		}
	}
	for chunk := range slices.Chunk(ops, 100) {
		if err := store.Apply(context.Background(), chunk); err != nil {
			w.t.Fatal(err)
		}
	}
}

// entriesOf is what a cluster with some entries of every kind publishes.
func entriesOf(cluster string, config schema.ClusterConfig) map[string][]byte {
	entries := map[string][]byte{schema.ClusterConfigKey(cluster): config.Encode()}
	for _, k := range kinds() {
		entries[schema.CanaryKey(k, cluster, false)] = schema.EncodeTime(1_800_000_000)
	}
	entries[schema.ServiceKey(cluster, "shop", "web")] = service(cluster).Encode()
	node := schema.Node{Name: "n1", Cluster: cluster, ClusterID: 7, IPAddresses: []schema.NodeAddress{{Type: "InternalIP", IP: "192.0.2.11"}}}
	entries[schema.NodeKey(cluster, "n1")] = node.Encode()
	for i := range uint32(300) {
		id := identity(cluster, i)
		entries[schema.IdentityKey(id.ID)] = id.Encode()
	}
	ip := ipEntry()
	entries[schema.IPKey(ip.IP)] = ip.Encode()
	entries[schema.EndpointSliceKey(cluster, "shop", "web-1")] = new(schema.SliceCodec).Encode(&schema.EndpointSlice{
		Cluster: cluster, ClusterID: 7, Namespace: "shop", Name: "web-1", Labels: map[string]string{"kubernetes.io/service-name": "web"},
		AddressType: schema.IPv4, Ports: []schema.SlicePort{{Name: "http", Protocol: schema.TCP, Port: 8080}},
		Endpoints: []schema.Endpoint{{Addresses: []netip.Addr{netip.MustParseAddr("10.7.0.1")}, Ready: schema.ConditionTrue}},
	})
	export := schema.ServiceExport{
		Cluster: cluster, Namespace: "shop", Name: "web", Created: 1_800_000_000, Type: schema.ExportClusterSetIP, SessionAffinity: schema.SessionAffinityNone,
		Ports: []schema.ExportPort{{Name: "http", Protocol: schema.TCP, Port: 80}},
	}
	entries[schema.ServiceExportKey(cluster, "shop", "web")] = export.Encode()
	return entries
}

func service(cluster string) *schema.Service {
	return &schema.Service{
		Cluster: cluster, ClusterID: 7, Namespace: "shop", Name: "web", Shared: true, IncludeExternal: true,
		Frontends: map[netip.Addr]schema.PortMap{netip.MustParseAddr("172.20.0.10"): {"http": {Protocol: schema.TCP, Port: 80}}},
		Backends:  map[netip.Addr]schema.PortMap{netip.MustParseAddr("10.7.0.1"): {"http": {Protocol: schema.TCP, Port: 8080}}},
	}
}

func identity(cluster string, i uint32) *schema.Identity {
	return &schema.Identity{ID: 7<<16 + i, Labels: map[string]string{
		"k8s:app": fmt.Sprint("app-", i), "k8s:io.cilium.k8s.policy.cluster": cluster, "k8s:io.kubernetes.pod.namespace": "shop",
	}}
}

func ipEntry() *schema.IPEntry {
	return &schema.IPEntry{IP: "10.7.0.1", HostIP: "192.0.2.11", ID: 7<<16 + 1, K8sNamespace: "shop", K8sPodName: "web-1"}
}

// outcomes runs the suite.
func (w *world) outcomes() (map[string]Outcome, []Result) {
	results := Run(w.t.Context(), w.target, w.opts)
	found := map[string]Outcome{}
	for _, r := range results {
		found[r.Check.ID] = r.Outcome
	}
	return found, results
}

// expect is what a run yields if the named checks end otherwise than by passing:
// those that build on them are skipped.
func expect(spoiled map[string]Outcome) map[string]Outcome {
	want := map[string]Outcome{}
	for _, c := range Checks() {
		want[c.ID] = Pass
		if o, ok := spoiled[c.ID]; ok {
			want[c.ID] = o
		}
		for _, need := range c.Needs {
			if want[need] != Pass {
				want[c.ID] = Skip
			}
		}
	}
	return want
}

func (w *world) compare(want map[string]Outcome) {
	w.t.Helper()
	found, results := w.outcomes()
	for _, r := range results {
		if o := found[r.Check.ID]; o != want[r.Check.ID] {
			w.t.Errorf("%s: %s, want %s: %s", r.Check.ID, o, want[r.Check.ID], r.Evidence)
		}
		if r.Outcome == Fail && (r.Remedy == "" || r.Evidence == "") || r.Outcome == Skip && r.Evidence == "" {
			w.t.Errorf("%s: evidence %q, remedy %q", r.Check.ID, r.Evidence, r.Remedy)
		}
		if r.Outcome == Fail || testing.Verbose() && want[r.Check.ID] == Pass {
			w.t.Logf("%s %s: %s", r.Outcome, r.Check.ID, r.Evidence)
		}
	}
}
