package kvstore_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/kvstore"
)

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	template := certificate(name, time.Hour)
	template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	key := newKey(t)
	return authority{sign(t, template, template, key, key), key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificate(name string, life time.Duration) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life),
	}
}

func sign(t *testing.T, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a authority) issue(t *testing.T, name string, life time.Duration) tls.Certificate {
	key := newKey(t)
	cert := sign(t, certificate(name, life), a.cert, key, a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a authority) expired(t *testing.T) tls.Certificate { return a.issue(t, "peer", -time.Hour) }

func (a authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a authority) server(t *testing.T, name string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.issue(t, name, time.Hour)}, ClientCAs: a.pool(),
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
}

// client trusts the authority and, unless name is empty, has a certificate.
func (a authority) client(t *testing.T, name string) *tls.Config {
	cfg := &tls.Config{RootCAs: a.pool(), MinVersion: tls.VersionTLS13}
	if name != "" {
		cfg.Certificates = []tls.Certificate{a.issue(t, name, time.Hour)}
	}
	return cfg
}

// clientFrom trusts the authority with a certificate of another one, which it
// sends although the server does not ask for such.
func (a authority) clientFrom(t *testing.T, other authority) *tls.Config {
	cert := other.issue(t, "peer", time.Hour)
	return &tls.Config{RootCAs: a.pool(), MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
}

// proxy forwards TCP connections until it is frozen or cut.
type proxy struct {
	address  string
	accepted atomic.Int32
	frozen   atomic.Bool
	mu       sync.Mutex
	conns    []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: listener.Addr().String()}
	t.Cleanup(func() {
		listener.Close()
		p.cut()
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			p.accepted.Add(1)
			p.join(conn, to)
		}
	}()
	return p
}

func (p *proxy) join(client net.Conn, to string) {
	server, err := net.Dial("tcp", to)
	if err != nil {
		client.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, client, server)
	p.mu.Unlock()
	go p.copy(client, server)
	go p.copy(server, client)
}

// copy forwards, and swallows once frozen.
func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	buffer := make([]byte, 1<<15)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if p.frozen.Load() {
			io.Copy(io.Discard, from)
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) freeze() { p.frozen.Store(true) }

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}

func dialOdd(t *testing.T, s oddWatch) *kvstore.Conn {
	t.Helper()
	return dialServices(t, s)
}

// dialServices serves any implementation and connects to it.
func dialServices(t *testing.T, s interface {
	etcdserverpb.KVServer
	etcdserverpb.WatchServer
}) *kvstore.Conn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, s)
	etcdserverpb.RegisterWatchServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return dial(t, kvstore.ConnConfig{Endpoints: []string{"http://" + listener.Addr().String()}})
}
