package interop

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pki"
)

// startLimit is how long a program may take to get ready; it is generous
// because the machine may be busy.
const startLimit = 30 * time.Second

// ground is what all tests stand on: the lab, the certificates, the ports.
type ground struct {
	lab  *lab.Lab
	dir  string
	pki  string
	port atomic.Int32
}

// must ends the test on an error of the test's own machinery.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newGround(t *testing.T) *ground {
	t.Helper()
	if !lab.Inside() {
		t.Skip("missing on this machine: " + strings.Join(lab.Missing(nil, nil), ", "))
	}
	must(t, lab.Settle())
	g := &ground{dir: scratch(t)}
	g.pki = filepath.Join(g.dir, "pki")
	g.port.Store(2400)
	var err error
	g.lab, err = lab.New(g.dir)
	must(t, err)
	t.Cleanup(func() { must(t, g.lab.Close()) })
	must(t, certs.InitCA(g.pki, certs.CAOptions{}))
	_, err = certs.Issue(g.pki, certs.IssueRequest{Kind: certs.Remote})
	must(t, err)
	for _, cluster := range []string{"east", "west"} {
		for _, request := range []certs.IssueRequest{
			{Kind: certs.Server, Cluster: cluster, Hosts: []string{"127.0.0.1"}},
			{Kind: certs.Remote, Cluster: cluster},
			{Kind: certs.Local, Cluster: cluster},
		} {
			_, err := certs.Issue(g.pki, request)
			must(t, err)
		}
	}
	return g
}

// scratch is a directory for everything the tests write. It is kept when a test
// fails, because the logs are in it.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "clustermesh-interop-")
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs are kept in %s", filepath.Join(dir, "log"))
			return
		}
		must(t, os.RemoveAll(dir))
	})
	return dir
}

// subdir makes a directory that belongs to one test.
func (g *ground) subdir(t *testing.T, elements ...string) string {
	t.Helper()
	dir := filepath.Join(append([]string{g.dir, strings.ReplaceAll(t.Name(), "/", "-")}, elements...)...)
	must(t, os.MkdirAll(dir, 0o700))
	return dir
}

// listen returns an address that nobody has used yet.
func (g *ground) listen() string { return fmt.Sprintf("127.0.0.1:%d", g.port.Add(1)) }

// file is the path of a certificate or key, without its extension.
func (g *ground) file(name string) string { return filepath.Join(g.pki, name) }

// issueUser makes a client certificate for an etcd user that the product's own
// command has no kind for.
func (g *ground) issueUser(t *testing.T, name string) {
	t.Helper()
	ca, err := pki.Load(g.file("ca.crt"), g.file("ca.key"))
	must(t, err)
	pair, err := ca.Issue(pki.Leaf{Name: name, Start: time.Now().Add(-time.Minute), Usage: x509.ExtKeyUsageClientAuth})
	must(t, err)
	must(t, os.WriteFile(g.file(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o600))
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	must(t, err)
	must(t, os.WriteFile(g.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
}

// etcdConfig is the content of a file by which etcd's clients find and trust a
// server: what Cilium and the product both read.
func (g *ground) etcdConfig(address, user string) string {
	base := g.file(user)
	return fmt.Sprintf("endpoints:\n- https://%s\ntrusted-ca-file: %s\ncert-file: %s.crt\nkey-file: %s.key\n",
		address, g.file("ca.crt"), base, base)
}

// replace writes a file in one step. The temporary name has another ending, so
// that nobody takes it for what it becomes.
func replace(t *testing.T, path, content string) {
	t.Helper()
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	must(t, os.WriteFile(temporary, []byte(content), 0o600))
	must(t, os.Rename(temporary, path))
}

// awaitReady waits until a program answers 200 on /readyz.
func awaitReady(t *testing.T, p *lab.Process, address string) {
	t.Helper()
	deadline := time.After(startLimit)
	for {
		err := ready(address)
		if err == nil {
			return
		}
		select {
		case <-p.Done():
			t.Fatalf("%s has ended:\n%s", p.Name, tail(p.Log))
		case <-deadline:
			t.Fatalf("%s is not ready after %v: %v\n%s", p.Name, startLimit, err, tail(p.Log))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func ready(address string) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + address + "/readyz")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4096))
		return fmt.Errorf("%s: %s", answer.Status, bytes.TrimSpace(text))
	}
	return nil
}

func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
