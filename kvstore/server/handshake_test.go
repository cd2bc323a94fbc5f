package server

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// shake connects with TLS and waits until the server has judged the client,
// which in TLS 1.3 is after the client's own handshake is over.
func shake(w *world, cfg *tls.Config) error {
	raw, err := net.Dial("tcp", w.s.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(w.ctx()); err != nil {
		return err
	}
	// A served connection begins with the server's HTTP/2 settings.
	_, err = c.Read(make([]byte, 9))
	return err
}

func TestBadCertificates(t *testing.T) {
	w := start(t)
	stranger := newAuthority(t)
	with := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: certs, RootCAs: w.ca.pool(), NextProtos: []string{"h2"}, ServerName: "127.0.0.1"}
	}
	old := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	usage := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	noALPN, tls12 := with(w.ca.client("remote")), with(w.ca.client("remote"))
	noALPN.NextProtos = nil
	tls12.MaxVersion = tls.VersionTLS12
	distrust := with(w.ca.client("remote"))
	distrust.RootCAs = stranger.pool()
	for _, test := range []struct {
		name   string
		tls    *tls.Config
		reason handshakeReason
	}{
		{"other CA", with(stranger.client("remote")), failedAuthority},
		{"expired", with(w.ca.client("remote", old)), failedExpired},
		{"server certificate", with(w.ca.client("remote", usage)), failedUsage},
		{"admin", with(w.ca.client("admin-" + testCluster)), failedName},
		{"root", with(w.ca.client("root")), failedName},
		{"another cluster's agents", with(w.ca.client("local-west")), failedName},
		{"no name", with(w.ca.client("")), failedName},
		{"none", with(), failedNoCertificate},
		{"no HTTP/2", noALPN, failedOther},
		{"TLS 1.2", tls12, failedOther},
		{"does not trust us", distrust, failedRejected},
	} {
		t.Run(test.name, func(t *testing.T) {
			refused(t, w, test.reason, func() error { return shake(w, test.tls) })
		})
	}
	if err := shake(w, with(w.ca.client("remote"))); err != nil {
		t.Fatalf("good certificate afterwards: %v", err)
	}
	eventually(t, "no connection is left", func() bool { return w.metric("clustermesh_gateway_connections", "") == 0 })
}

// refused checks that an attempt fails, is counted once under its reason and
// logged once.
func refused(t *testing.T, w *world, reason handshakeReason, attempt func() error) {
	t.Helper()
	const name = "clustermesh_gateway_handshake_failures_total"
	before := w.metric(name, string(reason))
	logged := strings.Count(w.log.String(), "tls handshake failed")
	if err := attempt(); err == nil {
		t.Fatal("connection was served")
	}
	eventually(t, "counted as "+string(reason), func() bool { return w.metric(name, string(reason)) == before+1 })
	eventually(t, "logged", func() bool { return len(w.handshakes()) == logged+1 })
	lines := w.handshakes()
	last := lines[len(lines)-1]
	if !strings.Contains(last, "level=WARN") || !strings.Contains(last, string(reason)) || !strings.Contains(last, "peer=127.0.0.1:") {
		t.Errorf("log line is %s", last)
	}
}

// handshakes are the log's lines of failed handshakes; etcd has lines of its own.
func (w *world) handshakes() (lines []string) {
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, "tls handshake failed") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestConnectionsThatAreNotTLS(t *testing.T) {
	patient := start(t, func(c *Config) { c.Limits.HandshakeTimeout = time.Minute })
	w := start(t, func(c *Config) { c.Limits.HandshakeTimeout = 300 * time.Millisecond })
	attempt := func(w *world, say string) func() error {
		return func() error {
			c, err := net.Dial("tcp", w.s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte(say)); err != nil {
				return err
			}
			var got bytes.Buffer
			_, err = got.ReadFrom(c)
			if err == nil {
				err = net.ErrClosed // closed by the server without a word of HTTP/2
			}
			return err
		}
	}
	refused(t, patient, failedNotTLS, attempt(patient, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	refused(t, patient, failedNotTLS, attempt(patient, "GET /version HTTP/1.1\r\n\r\n"))
	refused(t, w, failedTimeout, attempt(w, ""))
	refused(t, w, failedTimeout, attempt(w, "\x16\x03\x01\x02\x00\x01")) // the start of a hello
}

func TestHealthProbesAreNotLoggedAsWarnings(t *testing.T) {
	w := start(t)
	c, err := net.Dial("tcp", w.s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	eventually(t, "counted", func() bool {
		return w.metric("clustermesh_gateway_handshake_failures_total", string(failedClosed)) == 1
	})
	eventually(t, "logged", func() bool { return len(w.handshakes()) > 0 })
	if line := w.handshakes()[0]; strings.Contains(line, "level=WARN") {
		t.Errorf("log line is %s", line)
	}
}

func TestConnectionLimit(t *testing.T) {
	w := start(t, func(c *Config) { c.Limits.Connections = 2 })
	status := func(conn *grpc.ClientConn) error {
		_, err := pb.NewMaintenanceClient(conn).Status(w.ctx(), &pb.StatusRequest{})
		return err
	}
	for range 2 {
		if err := status(w.dial("remote")); err != nil {
			t.Fatal(err)
		}
	}
	if err := status(w.dial("remote")); err == nil {
		t.Fatal("third connection was served")
	}
	if w.metric("clustermesh_gateway_refusals_total", "connections") == 0 {
		t.Error("refusal is not counted")
	}
}

// TestPlacesAreKeptForOwnAgents lets remote readers take all connections that
// they can: an own agent still gets in, with configured peers and without.
func TestPlacesAreKeptForOwnAgents(t *testing.T) {
	west := westGuest(t)
	few := func(c *Config) { c.Limits.Connections = 8 }
	old := start(t, generous, few)
	now, _ := startPeers(t, []guest{west}, generous, few)
	for _, test := range []struct {
		w      *world
		remote func() *grpc.ClientConn
	}{
		{old, func() *grpc.ClientConn { return old.dial("remote") }},
		{now, func() *grpc.ClientConn { return now.dialAs(west) }},
	} {
		ask := func(conn *grpc.ClientConn) error {
			_, err := pb.NewMaintenanceClient(conn).Status(test.w.ctx(), &pb.StatusRequest{})
			return err
		}
		for i := range 6 {
			if err := ask(test.remote()); err != nil {
				t.Errorf("remote reader %d: %v", i, err)
			}
		}
		for range 4 {
			if ask(test.remote()) == nil {
				t.Error("a remote reader took a place that is kept for own agents")
			}
		}
		for i := range 2 {
			if err := ask(test.w.dial("local-" + testCluster)); err != nil {
				t.Errorf("own agent %d: %v", i, err)
			}
		}
		if ask(test.w.dial("local-"+testCluster)) == nil {
			t.Error("more connections than the limit")
		}
	}
}

// TestConfigPerConnection changes the server's CA while it runs.
func TestConfigPerConnection(t *testing.T) {
	next := newAuthority(t)
	var current atomic.Pointer[tls.Config]
	w := start(t, func(c *Config) {
		current.Store(c.TLS)
		c.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil }}
	})
	dial := func(ca *authority) error {
		conn, err := grpc.NewClient("passthrough:///"+w.s.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(ca.clientTLS("remote"))))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = pb.NewMaintenanceClient(conn).Status(w.ctx(), &pb.StatusRequest{})
		return err
	}
	if err := dial(w.ca); err != nil {
		t.Fatal(err)
	}
	current.Store(next.serverTLS())
	if err := dial(next); err != nil {
		t.Fatal(err)
	}
	if err := dial(w.ca); err == nil {
		t.Fatal("the old CA is still accepted")
	}
	current.Store(&tls.Config{Certificates: next.serverTLS().Certificates})
	if err := dial(next); err == nil {
		t.Fatal("without a CA pool the certificate was accepted")
	}
}

func TestRemovedAndExpiredPeersAreCut(t *testing.T) {
	t.Parallel()
	w := start(t)
	cut := func(conn *grpc.ClientConn, name string, act func()) {
		t.Helper()
		s, err := pb.NewWatchClient(conn).Watch(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(createRequest(&pb.WatchCreateRequest{Key: []byte("cilium/state/a")})); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		act()
		if _, err := s.Recv(); err == nil || status.Code(err) == codes.DeadlineExceeded {
			t.Errorf("stream of %s peer goes on", name)
		}
	}
	cut(w.dial("remote-west"), "removed", func() {
		if n := w.s.Disconnect(func(name string) bool { return name == "remote-north" }); n != 0 {
			t.Errorf("%d connections of another peer closed", n)
		}
		if n := w.s.Disconnect(func(name string) bool { return name == "remote-west" }); n != 1 {
			t.Errorf("%d connections closed", n)
		}
	})
	soon := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(8 * time.Second) }
	creds := &tls.Config{Certificates: []tls.Certificate{w.ca.client("remote", soon)}, RootCAs: w.ca.pool()}
	conn, err := grpc.NewClient("passthrough:///"+w.s.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(creds)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cut(conn, "expired", func() {})
}

func TestSystemRootsAreNeverTrusted(t *testing.T) {
	h := newHandshaker(Config{TLS: &tls.Config{}}.withDefaults(), nil, nil)
	if c := h.tlsConfig(new(admission)); c.ClientCAs == nil || !c.ClientCAs.Equal(x509.NewCertPool()) {
		t.Error("without client CAs Go would trust the system's roots")
	}
}

func createRequest(r *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
}
