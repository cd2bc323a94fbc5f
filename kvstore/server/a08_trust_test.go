package server

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// caDir is a CA directory of the product, whose certificates a server of a test
// serves with.
type caDir struct {
	t     testing.TB
	path  string
	files certs.ServerFiles
}

func newCADir(t testing.TB) *caDir {
	d := &caDir{t: t, path: filepath.Join(t.TempDir(), "pki")}
	d.check(certs.InitCA(d.path, certs.CAOptions{}))
	s := d.issue(certs.IssueRequest{Kind: certs.Server, Cluster: testCluster})
	_, err := certs.Revoke(d.path, certs.RevokeRequest{})
	d.check(err)
	d.files = certs.ServerFiles{Cert: s.Cert, Key: s.Key, ClientCA: s.CA, CRL: filepath.Join(d.path, "ca.crl")}
	return d
}

func (d *caDir) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *caDir) issue(r certs.IssueRequest) certs.Files {
	d.t.Helper()
	f, err := certs.Issue(d.path, r)
	d.check(err)
	return f
}

// serve makes a server use the directory's files and follow them.
func (d *caDir) serve(c *Config) {
	var err error
	c.TLS, err = certs.ServerTLS(d.files, nil)
	d.check(err)
	c.Trust, err = certs.NewTrust(d.files, nil)
	d.check(err)
}

// client is the TLS configuration of a reader with a certificate of the
// directory.
func (d *caDir) client(f certs.Files) *tls.Config {
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	d.check(err)
	return &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"h2"}} // the server is not the question
}

// TestA08_RevokedAndDistrustedReadersAreCut takes back certificates of the CAs
// that TLS trusts: by the revocation list, by withdrawing the CA, and by time.
func TestA08_RevokedAndDistrustedReadersAreCut(t *testing.T) {
	t.Parallel()
	worst := time.Duration(0)
	for _, test := range []struct {
		name     string
		reader   certs.IssueRequest
		peers    func(*caDir) *peers.Set
		withdraw func(d *caDir, f certs.Files)
		why      refusal
	}{
		{"revoked reader", certs.IssueRequest{Kind: certs.Remote, Cluster: "west"}, nil, revokeFile, refusedRevoked},
		{"revoked agent beside peers", certs.IssueRequest{Kind: certs.Local, Cluster: testCluster}, func(*caDir) *peers.Set { return peers.NewSet() }, revokeFile, refusedRevoked},
		{"revoked peer of our own CA", certs.IssueRequest{Kind: certs.Remote, Cluster: "west"}, westOfOurs, revokeFile, refusedRevoked},
		{"CA withdrawn", certs.IssueRequest{Kind: certs.Remote, Cluster: "west"}, nil, withdrawCA, refusedAuthority},
		{"certificate expired", certs.IssueRequest{Kind: certs.Remote, Cluster: "west", Validity: 8 * time.Second}, nil, func(*caDir, certs.Files) {}, refusedExpired},
	} {
		d := newCADir(t)
		w := start(t, d.serve, func(c *Config) {
			if test.peers != nil {
				c.Peers = test.peers(d)
			}
		})
		other := openWatch(t, w.dialWith(d.client(d.issue(certs.IssueRequest{Kind: certs.Local, Cluster: testCluster, Validity: time.Hour}))))
		f := d.issue(test.reader)
		cfg := d.client(f)
		stream, begin := openWatch(t, w.dialWith(cfg)), time.Now().Add(test.reader.Validity)
		test.withdraw(d, f)
		if _, err := stream.stream.Recv(); err == nil || status.Code(err) == codes.DeadlineExceeded {
			t.Errorf("%s: the stream goes on: %v", test.name, err)
		}
		worst = max(worst, time.Since(begin))
		if n := w.metric("clustermesh_gateway_refusals_total", string(test.why)); n < 1 {
			t.Errorf("%s: not counted as %q", test.name, test.why)
		}
		if err := shake(w, cfg); err == nil {
			t.Errorf("%s: let in again", test.name)
		}
		if test.why != refusedAuthority { // else the other one is of the same CA
			w.put("cilium/state/services/v1/east/shop/cart=1")
			if r := other.recv(); len(r.Events) != 1 {
				t.Errorf("%s: another reader's stream: %v", test.name, r)
			}
		}
	}
	if worst > 10*time.Second {
		t.Errorf("a stream ended only after %v", worst)
	}
	t.Logf("certificate revoked, CA withdrawn, certificate at its end: streams closed within %v, others unharmed", worst)
}

// westOfOurs is a configured peer whose certificates are from the directory's CA,
// as after a join.
func westOfOurs(d *caDir) *peers.Set {
	raw, err := os.ReadFile(d.files.ClientCA)
	d.check(err)
	block, _ := pem.Decode(raw)
	ca, err := x509.ParseCertificate(block.Bytes)
	d.check(err)
	set := peers.NewSet()
	admit(d.t, set, guest{peer: &peers.Peer{Name: "west", CAs: []*x509.Certificate{ca}, Identity: peers.Identity{CommonName: "remote-west"}, View: everything}})
	return set
}

func revokeFile(d *caDir, f certs.Files) {
	_, err := certs.Revoke(d.path, certs.RevokeRequest{Files: []string{f.Cert}})
	d.check(err)
}

// withdrawCA replaces the CA and its list by others.
func withdrawCA(d *caDir, _ certs.Files) {
	next := newCADir(d.t)
	for _, name := range []string{"ca.crt", "ca.crl"} {
		raw, err := os.ReadFile(filepath.Join(next.path, name))
		d.check(err)
		at := filepath.Join(d.path, name)
		d.check(os.WriteFile(at+".new", raw, 0o600))
		d.check(os.Rename(at+".new", at))
	}
}

// TestA08_TrustIsAskedOnlyWhenItMatters: connections are verified again after a
// change, not every second.
func TestA08_TrustIsAskedOnlyWhenItMatters(t *testing.T) {
	t.Parallel()
	d := newCADir(t)
	w := start(t, d.serve)
	openWatch(t, w.dialWith(d.client(d.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "west"}))))
	set, trust := w.s.gateway.conns, w.s.cfg.Trust
	reader := set.which(func(*conn) bool { return true })[0]
	set.vet(trust)
	if v := reader.vetted.Load(); v != trust.Version() {
		t.Errorf("vetted at version %d of %d", v, trust.Version())
	}
	before := trust.Version()
	d.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "north"})
	if trust.Version() != before {
		t.Error("an issued certificate changed what is trusted")
	}
	_, err := certs.Revoke(d.path, certs.RevokeRequest{Names: []string{"remote-north"}})
	d.check(err)
	eventually(t, "the reader is looked at again and stays", func() bool { return trust.Version() != before })
	set.vet(trust)
	if len(set.which(func(*conn) bool { return true })) != 1 {
		t.Error("a reader was cut although another was revoked")
	}
}

func TestTrustWithoutTLSIsRefused(t *testing.T) {
	d := newCADir(t)
	cfg := Config{Cluster: testCluster, DataDir: t.TempDir(), Listen: "127.0.0.1:0"}
	d.serve(&cfg)
	cfg.TLS, cfg.PlainTextName = nil, "remote"
	if err := cfg.Validate(); err == nil {
		t.Error("accepted")
	}
}
