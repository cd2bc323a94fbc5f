package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority is a certificate authority of a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	a.key = newKey(t)
	a.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, a.key)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign completes the template with what all certificates of tests share.
func (a *authority) sign(tmpl *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl.SerialNumber = serial
	if tmpl.NotAfter.IsZero() {
		tmpl.NotAfter = time.Now().Add(time.Hour)
	}
	tmpl.NotBefore = time.Now().Add(-2 * time.Hour)
	parent := a.cert
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// client issues a client certificate; change may alter it first.
func (a *authority) client(name string, change ...func(*x509.Certificate)) tls.Certificate {
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range change {
		c(tmpl)
	}
	key := newKey(a.t)
	cert := a.sign(tmpl, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *authority) server() tls.Certificate {
	return a.client("clustermesh-apiserver", func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	})
}

// serverTLS is what a Config holds.
func (a *authority) serverTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.server()}, ClientCAs: a.pool()}
}

// clientTLS is what a reader with the named certificate uses.
func (a *authority) clientTLS(name string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.client(name)}, RootCAs: a.pool(), NextProtos: []string{"h2"}}
}

// files writes CA, certificate and key for a command line client.
func (a *authority) files(name string) (ca, cert, key string) {
	f := newFiles(a.t, a.client(name))
	return f.write("ca.crt", "CERTIFICATE", a.cert.Raw), f.cert, f.key
}

// files are a certificate and its key on disk.
type files struct {
	t              testing.TB
	dir, cert, key string
}

func newFiles(t testing.TB, c tls.Certificate) files {
	f := files{t: t, dir: t.TempDir()}
	f.cert, f.key = f.replace(c)
	return f
}

// replace writes another certificate and key, in place and one after the other:
// in between they do not belong together.
func (f files) replace(c tls.Certificate) (cert, key string) {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.write("tls.crt", "CERTIFICATE", c.Certificate[0]), f.write("tls.key", "PRIVATE KEY", der)
}

func (f files) write(file, kind string, der []byte) string {
	path := filepath.Join(f.dir, file)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}
