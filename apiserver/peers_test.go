package apiserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// TestPeersDecideWhoReadsWhat: with a directory of peers a cluster is known by
// its own CA, sees what its file says, and is cut off when the file goes.
func TestPeersDecideWhoReadsWhat(t *testing.T) {
	w := newWorld(t)
	w.config.Peers = t.TempDir()
	theirs := filepath.Join(t.TempDir(), "west")
	w.must(certs.InitCA(theirs, certs.CAOptions{Name: "west"}))
	west, err := certs.Issue(theirs, certs.IssueRequest{Kind: certs.Remote, Cluster: "west"})
	w.must(err)
	peer := filepath.Join(w.config.Peers, "west.yaml")
	text := fmt.Sprintf("ca-file: %s\nidentity:\n  common-name: remote-west\nsees:\n  namespaces: [shop]\n", west.CA)
	w.must(os.WriteFile(peer, []byte(text), 0o600))
	w.write("all.yaml", shopAndBank)
	w.start()

	conn := w.dial(west)
	r, err := conn.Range(t.Context(), "cilium/state/services/v1/east/", schema.PrefixEnd("cilium/state/services/v1/east/"), 0, 0)
	w.must(err)
	if len(r.KVs) != 1 || r.KVs[0].Key != schema.ServiceKey("east", "shop", "web") {
		t.Errorf("a peer that sees namespace shop lists %v", r.KVs)
	}
	local := w.dial(w.issue(certs.IssueRequest{Kind: certs.Local, Cluster: "east"}))
	if _, ok, err := local.Get(t.Context(), schema.ServiceKey("east", "bank", "vault")); err != nil || !ok {
		t.Errorf("own agents do not see all any more: %v %v", ok, err)
	}
	if _, err := w.tryDial(w.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "north"})); err == nil {
		t.Error("a cluster without a peer file got in")
	}
	w.must(os.Remove(peer))
	select {
	case <-conn.Done():
	case <-time.After(patience):
		t.Error("the connection of a removed peer stayed open")
	}
}

// TestPeerOfTheOwnCA: ca: own is what --tls-client-ca holds.
func TestPeerOfTheOwnCA(t *testing.T) {
	w := newWorld(t)
	w.config.Peers = t.TempDir()
	w.must(os.WriteFile(filepath.Join(w.config.Peers, "west.yaml"), []byte("ca: own\nidentity:\n  common-name: remote-west\nsees: all\n"), 0o600))
	w.write("all.yaml", shopAndBank)
	w.start()
	if _, ok, err := w.dial(w.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "west"})).Get(t.Context(), schema.ServiceKey("east", "shop", "web")); err != nil || !ok {
		t.Errorf("a peer with a certificate of the own CA does not read: %v %v", ok, err)
	}
	if _, err := w.tryDial(w.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "north"})); err == nil {
		t.Error("a cluster without a peer file got in")
	}
}

func (w *world) tryDial(f certs.Files) (*kvstore.Conn, error) {
	config, err := certs.ClientTLS(certs.ClientFiles{Cert: f.Cert, Key: f.Key, CA: filepath.Join(w.pki, "ca.crt")}, w.config.Log)
	w.must(err)
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	return kvstore.Dial(ctx, kvstore.ConnConfig{Endpoints: []string{"https://" + w.addresses.Gateway.String()}, TLS: config})
}

func (w *world) dial(f certs.Files) *kvstore.Conn {
	w.Helper()
	conn, err := w.tryDial(f)
	w.must(err)
	w.Cleanup(func() { _ = conn.Close() })
	return conn
}

const shopAndBank = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {service.cilium.io/global: "true"}}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80, protocol: TCP}]}
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: bank, annotations: {service.cilium.io/global: "true"}}
spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], ports: [{port: 80, protocol: TCP}]}
`
