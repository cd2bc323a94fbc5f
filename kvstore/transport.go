package kvstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// connect makes the TCP connection. The kernel's keepalive finds a vanished
// host even while no request is under way.
func (c ConnConfig) connect(ctx context.Context, address string) (net.Conn, error) {
	const probes = 5
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: c.Keepalive, Interval: max(c.KeepaliveTimeout/probes, time.Second), Count: probes,
	}}
	return dialer.DialContext(ctx, "tcp", address)
}

// secure does the TLS handshake, here and not in gRPC, for then its outcome is
// an error value and not a text.
func (c ConnConfig) secure(ctx context.Context, raw net.Conn, to target) (net.Conn, error) {
	if !to.secure {
		return raw, nil
	}
	cfg := c.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = to.host
	}
	cfg.NextProtos = []string{"h2"}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol != "h2" {
		return nil, errors.New("server does not offer HTTP/2 (ALPN h2)")
	}
	return conn, nil
}

// tlsStage tells who ended a TLS connection, and about what.
func tlsStage(err error) DialStage {
	if bad := (*tls.CertificateVerificationError)(nil); errors.As(err, &bad) {
		return StageVerify
	}
	if aboutCertificate(err) {
		return StageRefused
	}
	return StageTLS
}

// aboutCertificate tells whether err is an alert from the server about this
// side's certificate. The type of alerts is not exported, their texts are
// those of RFC 8446 section 6.2.
func aboutCertificate(err error) bool {
	op := (*net.OpError)(nil)
	if !errors.As(err, &op) || op.Op != "remote error" {
		return false
	}
	text := op.Err.Error()
	return strings.Contains(text, "certificate") || strings.Contains(text, "access denied")
}

// transport is a connection given to gRPC once. It notes when something was
// received and what broke it.
type transport struct {
	net.Conn
	used    atomic.Bool
	heard   atomic.Int64 // nanoseconds since start
	start   time.Time
	failing sync.Once
	failure error
	broken  chan struct{} // closed when failure is set
}

func newTransport(conn net.Conn) *transport {
	return &transport{Conn: conn, start: time.Now(), broken: make(chan struct{})}
}

// errUsed answers gRPC when it wants to connect again.
var errUsed = errors.New("connection is over; dial again")

func (t *transport) dialOnce(context.Context, string) (net.Conn, error) {
	if t.used.CompareAndSwap(false, true) {
		return t, nil
	}
	return nil, errUsed
}

// Read implements net.Conn.
func (t *transport) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if n > 0 {
		t.heard.Store(int64(time.Since(t.start)))
	}
	if err != nil {
		t.fail(err)
	}
	return n, err
}

// Write implements net.Conn. A server that refuses a certificate sends its
// alert and closes, often before the first request is written; the alert is
// then behind the write error, still to be read.
func (t *transport) Write(p []byte) (int, error) {
	n, err := t.Conn.Write(p)
	if err != nil {
		t.drain()
		t.fail(err)
	}
	return n, err
}

// drain reads to the end of a connection that is over.
func (t *transport) drain() {
	const patience = 200 * time.Millisecond
	t.Conn.SetReadDeadline(time.Now().Add(patience)) //nolint:errcheck // then Read fails
	var discard [512]byte
	for {
		_, err := t.Conn.Read(discard[:])
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			return
		}
		if err != nil {
			t.fail(err)
			return
		}
	}
}

func (t *transport) fail(err error) {
	t.failing.Do(func() {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("server closed the connection: %w", err)
		}
		t.failure = err
		close(t.broken)
	})
}

// cause returns what broke the transport, or err when nothing did.
func (t *transport) cause(err error) error {
	select {
	case <-t.broken:
		if !errors.Is(t.failure, net.ErrClosed) {
			return t.failure
		}
	default:
	}
	return err
}

// silence is how long nothing was received.
func (t *transport) silence() time.Duration {
	return time.Since(t.start) - time.Duration(t.heard.Load())
}

// handshaken are gRPC credentials for a connection whose handshake is done.
type handshaken struct{ secure bool }

func (h handshaken) ClientHandshake(_ context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return raw, handshakenInfo{credentials.CommonAuthInfo{SecurityLevel: h.level()}}, nil
}

func (h handshaken) level() credentials.SecurityLevel {
	if h.secure {
		return credentials.PrivacyAndIntegrity
	}
	return credentials.NoSecurity
}

func (h handshaken) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("handshake as a server: not supported")
}

func (h handshaken) Info() credentials.ProtocolInfo {
	if h.secure {
		return credentials.ProtocolInfo{SecurityProtocol: "tls"}
	}
	return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
}

func (h handshaken) Clone() credentials.TransportCredentials { return h }

func (h handshaken) OverrideServerName(string) error { return nil }

type handshakenInfo struct{ credentials.CommonAuthInfo }

// AuthType implements credentials.AuthInfo.
func (handshakenInfo) AuthType() string { return "handshaken" }
