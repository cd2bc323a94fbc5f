package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/clustermesh/clustermesh/kvstore/server"
)

// serveCluster runs an apiserver's gateway with an empty but complete cluster
// named west in it, and returns the path of a cluster file that leads there.
func serveCluster(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(certs.InitCA(dir, certs.CAOptions{}))
	own, err := certs.Issue(dir, certs.IssueRequest{Kind: certs.Server, Cluster: "west"})
	check(err)
	client, err := certs.Issue(dir, certs.IssueRequest{Kind: certs.Remote, Cluster: "east"})
	check(err)
	tlsConfig, err := certs.ServerTLS(certs.ServerFiles{Cert: own.Cert, Key: own.Key, ClientCA: own.CA}, nil)
	check(err)
	s, err := server.New(server.Config{Cluster: "west", DataDir: t.TempDir(), Listen: "127.0.0.1:0", TLS: tlsConfig})
	check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); check(<-ended) })
	<-s.Started()
	config := schema.ClusterConfig{ID: 2, Capabilities: schema.Capabilities{SyncedCanaries: true, MaxConnectedClusters: 255}}
	ops := []kvstore.Op{{Key: schema.ClusterConfigKey("west"), Value: config.Encode()}}
	for _, k := range schema.PublishedKinds(config) {
		ops = append(ops, kvstore.Op{Key: schema.CanaryKey(k, "west", false), Value: []byte("2026-11-21T00:35:12Z")})
	}
	check(s.Store().Apply(ctx, ops))
	file := filepath.Join(t.TempDir(), "west")
	_, port, _ := strings.Cut(s.Addr().String(), ":")
	text := fmt.Sprintf("endpoints: [https://west.mesh.cilium.io:%s]\ntrusted-ca-file: %s\ncert-file: %s\nkey-file: %s\ncilium-host-aliases: [{hostname: west.mesh.cilium.io, ips: [127.0.0.1]}]\n",
		port, client.CA, client.Cert, client.Key)
	check(os.WriteFile(file, []byte(text), 0o600))
	return file
}

func TestTroubleshootHealthyCluster(t *testing.T) {
	file := serveCluster(t)
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"troubleshoot", file, "--own-id", "1", "--probe-writes"}, nil, &out, &errs); code != cli.ExitOK {
		t.Fatalf("exit code %d\n%s%s", code, &out, &errs)
	}
	if !strings.Contains(out.String(), " 0 failed, ") || !strings.Contains(out.String(), "\npass  canary-services ") {
		t.Errorf("output\n%s", &out)
	}
}

func TestTroubleshootTellsWhatFails(t *testing.T) {
	file := serveCluster(t)
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"troubleshoot", file, "--own-id", "2", "-o", "json"}, nil, &out, &errs); code != cli.ExitFailed {
		t.Fatalf("exit code %d\n%s%s", code, &out, &errs)
	}
	var findings []findingView
	if err := json.Unmarshal(out.Bytes(), &findings); err != nil {
		t.Fatal(err)
	}
	var failed []findingView
	for _, f := range findings {
		if f.Outcome == "fail" {
			failed = append(failed, f)
		}
	}
	if len(failed) != 1 || failed[0].Check != "config-id-own" || failed[0].Remedy == "" || failed[0].Effect == "" || failed[0].File != file {
		t.Errorf("failures %+v, want config-id-own alone", failed)
	}
}
