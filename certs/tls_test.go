package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// bench is a server and a client certificate directory under one CA.
type bench struct {
	dir    string
	server ServerFiles
	client ClientFiles
}

func newBench(t *testing.T) bench {
	t.Helper()
	dir := newCADir(t)
	srv, err := Issue(dir, IssueRequest{Kind: Server, Cluster: "east"})
	must(t, err)
	cli, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "west"})
	must(t, err)
	return bench{
		dir:    dir,
		server: ServerFiles{Cert: srv.Cert, Key: srv.Key, ClientCA: srv.CA},
		client: ClientFiles{Cert: cli.Cert, Key: cli.Key, CA: cli.CA, ServerName: "east.mesh.cilium.io"},
	}
}

// forge writes a certificate of the CA in b.dir that Issue would never make.
func (b bench) forge(t *testing.T, name string, edit func(*x509.Certificate)) (cert, key string) {
	t.Helper()
	ca, err := loadIssuer(b.dir, time.Now())
	must(t, err)
	return writeForged(t, b.dir, name, ca, edit)
}

func writeForged(t *testing.T, dir, name string, ca issuer, edit func(*x509.Certificate)) (cert, key string) {
	t.Helper()
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "remote-west"},
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		DNSNames:    []string{"east.mesh.cilium.io"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	edit(tmpl)
	certPEM, keyPEM, err := sign(ca, tmpl)
	must(t, err)
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	must(t, disk.Replace(cert, disk.CertMode, certPEM))
	must(t, disk.Replace(key, disk.KeyMode, keyPEM))
	return cert, key
}

// rawPair loads a pair without the checks of this package, as an attacker would.
func rawPair(t *testing.T, cert, key string) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	must(t, err)
	return pair
}

// serve accepts connections until the test ends and answers each verified one
// with a byte.
func serve(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go greet(tls.Server(c, cfg))
		}
	}()
	return ln.Addr().String()
}

func greet(c *tls.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if c.Handshake() == nil {
		c.Write([]byte{1})
	}
}

// dial shakes hands and waits for the server's byte: in TLS 1.3 a client learns
// of its own refusal only from reading.
func dial(addr string, cfg *tls.Config) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 30 * time.Second}, "tcp", addr, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if c.ConnectionState().Version != tls.VersionTLS13 {
		return errors.New("not TLS 1.3")
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

func TestServerRefusesBadClients(t *testing.T) {
	b := newBench(t)
	cfg, err := ServerTLS(b.server, nil)
	must(t, err)
	addr := serve(t, cfg)
	other := newBench(t)
	selfIssuer, err := loadIssuer(other.dir, time.Now())
	must(t, err)

	cases := []struct {
		name string
		good bool
		edit func(*x509.Certificate)
		ca   *issuer
	}{
		{name: "good remote", good: true, edit: func(*x509.Certificate) {}},
		{name: "good plain remote", good: true, edit: func(c *x509.Certificate) { c.Subject.CommonName = "remote" }},
		{name: "good local", good: true, edit: func(c *x509.Certificate) { c.Subject.CommonName = "local-east" }},
		{name: "expired", edit: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }},
		{name: "not yet valid", edit: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }},
		{name: "server usage", edit: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }},
		{name: "no usage", edit: func(c *x509.Certificate) { c.ExtKeyUsage = nil }},
		{name: "admin name", edit: func(c *x509.Certificate) { c.Subject.CommonName = "admin-east" }},
		{name: "no name", edit: func(c *x509.Certificate) { c.Subject.CommonName = "" }},
		{name: "other CA of equal name", edit: func(*x509.Certificate) {}, ca: &selfIssuer},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			ca, err := loadIssuer(b.dir, time.Now())
			must(t, err)
			if tc.ca != nil {
				ca = *tc.ca
			}
			cert, key := writeForged(t, t.TempDir(), "c", ca, tc.edit)
			err = dial(addr, rawClient(t, b, rawPair(t, cert, key)))
			if (err == nil) != tc.good {
				t.Errorf("handshake: %v, want success %v", err, tc.good)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		cfg := rawClient(t, b, tls.Certificate{})
		if err := dial(addr, cfg); err == nil {
			t.Error("a client without certificate got in")
		}
	})
	t.Run("self-signed", func(t *testing.T) {
		if err := dial(addr, rawClient(t, b, selfSigned(t, "remote-west"))); err == nil {
			t.Error("a self-signed client got in")
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		cfg := rawClient(t, b, rawPair(t, b.client.Cert, b.client.Key))
		cfg.MaxVersion = tls.VersionTLS12
		if err := dial(addr, cfg); err == nil {
			t.Error("TLS 1.2 was accepted")
		}
	})
}

// rawClient is a client that presents whatever it is given.
func rawClient(t *testing.T, b bench, pair tls.Certificate) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(leafOf(t, b.client.CA))
	return &tls.Config{RootCAs: roots, ServerName: "east.mesh.cilium.io", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &pair, nil
	}}
}

func selfSigned(t *testing.T, cn string) tls.Certificate {
	t.Helper()
	certPEM, keyPEM, err := newCA(CAOptions{Name: cn})
	must(t, err)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	must(t, err)
	return pair
}

func TestClientRefusesBadServers(t *testing.T) {
	b := newBench(t)
	other := newBench(t)
	otherCA, err := loadIssuer(other.dir, time.Now())
	must(t, err)
	cases := []struct {
		name string
		good bool
		sni  string
		edit func(*x509.Certificate)
		ca   *issuer
	}{
		{name: "good", good: true},
		{name: "good by address", good: true, sni: "192.0.2.9", edit: func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("192.0.2.9")} }},
		{name: "expired", edit: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }},
		{name: "not yet valid", edit: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }},
		{name: "client usage", edit: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }},
		{name: "no usage", edit: func(c *x509.Certificate) { c.ExtKeyUsage = nil }},
		{name: "other name", edit: func(c *x509.Certificate) { c.DNSNames = []string{"north.mesh.cilium.io"} }},
		{name: "name in CN only", edit: func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = "east.mesh.cilium.io", nil }},
		{name: "other address", sni: "192.0.2.10", edit: func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("192.0.2.9")} }},
		{name: "other CA of equal name", ca: &otherCA},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			ca, err := loadIssuer(b.dir, time.Now())
			must(t, err)
			if tc.ca != nil {
				ca = *tc.ca
			}
			if tc.edit == nil {
				tc.edit = func(*x509.Certificate) {}
			}
			cert, key := writeForged(t, t.TempDir(), "s", ca, tc.edit)
			addr := serve(t, &tls.Config{Certificates: []tls.Certificate{rawPair(t, cert, key)}})
			files := b.client
			if tc.sni != "" {
				files.ServerName = tc.sni
			}
			cfg, err := ClientTLS(files, nil)
			must(t, err)
			err = dial(addr, cfg)
			if bad := (*tls.CertificateVerificationError)(nil); (err == nil) != tc.good || !tc.good && !errors.As(err, &bad) {
				t.Errorf("handshake: %v (%T), want success %v", err, err, tc.good)
			}
		})
	}
	t.Run("self-signed", func(t *testing.T) {
		cfg, err := ClientTLS(b.client, nil)
		must(t, err)
		if err := dial(serve(t, &tls.Config{Certificates: []tls.Certificate{selfSigned(t, "east.mesh.cilium.io")}}), cfg); err == nil {
			t.Error("a self-signed server was believed")
		}
	})
}

// TestClientWithoutNameVerifiesWhatItDialled covers configurations to which the
// caller adds the name for each connection, an address among them.
func TestClientWithoutNameVerifiesWhatItDialled(t *testing.T) {
	b := newBench(t)
	other := newBench(t)
	srv, err := ServerTLS(b.server, nil)
	must(t, err)
	addr := serve(t, srv)
	b.client.ServerName = ""
	b.client.CA = copyTo(t, b.client.CA, filepath.Join(b.dir, "bundle.crt"))
	cfg, err := ClientTLS(b.client, nil)
	must(t, err)
	for name, good := range map[string]bool{"127.0.0.1": true, "east.mesh.cilium.io": true, "192.0.2.1": false, "example.com": false} {
		c := cfg.Clone()
		c.ServerName = name
		err := dial(addr, c)
		if (err == nil) != good {
			t.Errorf("verified as %s: %v, want success %v", name, err, good)
		}
		if bad := (*tls.CertificateVerificationError)(nil); !good && !errors.As(err, &bad) {
			t.Errorf("verified as %s: error is a %T", name, err)
		}
	}
	if c := cfg.Clone(); tls.Client(nil, c).Handshake() == nil {
		t.Error("a handshake without any name was tried")
	}
	copyTo(t, other.client.CA, b.client.CA)
	if err := dial(addr, cfg); err == nil {
		t.Error("a server of the withdrawn CA was believed")
	}
}

func TestInitialErrorsNameFileAndRemedy(t *testing.T) {
	b := newBench(t)
	garbage := filepath.Join(b.dir, "garbage")
	must(t, os.WriteFile(garbage, []byte("hello"), 0o600))
	expired, expiredKey := b.forge(t, "expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })
	cases := []struct {
		name  string
		files ServerFiles
		want  []string
	}{
		{"all unset", ServerFiles{}, []string{"certificate file is not set", "private key file is not set", "CA file is not set"}},
		{"missing", ServerFiles{b.dir + "/no.crt", b.server.Key, b.dir + "/no-ca.crt", ""}, []string{"no.crt", "no such file", "certs issue --kind server", "no-ca.crt", "certs init"}},
		{"garbage", ServerFiles{garbage, b.server.Key, garbage, ""}, []string{garbage, "no complete PEM block"}},
		{"key of another", ServerFiles{b.server.Cert, b.client.Key, b.server.ClientCA, ""}, []string{b.client.Key, "does not match"}},
		{"client certificate", ServerFiles{b.client.Cert, b.client.Key, b.server.ClientCA, ""}, []string{b.client.Cert, "not meant for TLS servers"}},
		{"expired", ServerFiles{expired, expiredKey, b.server.ClientCA, ""}, []string{expired, "expired on", "certs issue"}},
		{"leaf as CA", ServerFiles{b.server.Cert, b.server.Key, b.client.Cert, ""}, []string{b.client.Cert, "not a CA"}},
	}
	for _, tc := range cases {
		_, err := ServerTLS(tc.files, nil)
		for _, want := range tc.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v does not mention %q", tc.name, err, want)
			}
		}
	}
	if _, err := ClientTLS(ClientFiles{Cert: b.server.Cert, Key: b.server.Key, CA: b.client.CA}, nil); err == nil || !strings.Contains(err.Error(), "certs issue --kind remote") {
		t.Errorf("server certificate as client: %v", err)
	}
}

// sign makes a key and the certificate of a template, whatever it says.
func sign(ca issuer, tmpl *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return encodeCert(der), keyPEM, err
}
