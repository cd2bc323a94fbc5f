package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"

	"github.com/clustermesh/clustermesh/certs"
)

// handshakeReason is a class of failed TLS handshakes.
type handshakeReason string

const (
	failedNoCertificate handshakeReason = "no certificate"
	failedAuthority     handshakeReason = "unknown authority"
	failedExpired       handshakeReason = "expired"
	failedUsage         handshakeReason = "wrong usage"
	failedName          handshakeReason = "wrong name"
	failedNotTLS        handshakeReason = "not TLS"
	failedTimeout       handshakeReason = "timeout"
	failedRejected      handshakeReason = "rejected by peer"
	failedClosed        handshakeReason = "closed by peer"
	failedBusy          handshakeReason = "busy"
	failedOther         handshakeReason = "other"
)

func handshakeReasons() []handshakeReason {
	return []handshakeReason{
		failedNoCertificate, failedAuthority, failedExpired, failedUsage, failedName, failedNotTLS,
		failedTimeout, failedRejected, failedClosed, failedBusy, failedOther,
	}
}

// hint says what an operator can do about a failed handshake.
func (r handshakeReason) hint() string {
	switch r {
	case failedNoCertificate:
		return "the peer has no client certificate configured"
	case failedAuthority:
		return "add the CA of the peer's certificate to this gateway's CA bundle"
	case failedExpired:
		return "renew the peer's certificate, or correct its clock or ours"
	case failedUsage:
		return "issue the peer a certificate with the extended key usage client authentication"
	case failedName:
		return "issue the peer a certificate with the common name remote or remote-<its cluster>"
	case failedNotTLS:
		return "the peer must use https"
	case failedRejected:
		return "the peer does not accept our certificate: check its CA and the name it connects to"
	}
	return "check the network between the peer and this gateway"
}

var errBusy = errors.New("too many handshakes in progress")

// handshaker is the gateway's transport security: it decides who a connection
// belongs to before gRPC sees it, and reports every failure once.
type handshaker struct {
	cfg     Config
	conns   *connSet
	metrics *metrics
	slots   chan struct{} // one per handshake in progress
	logs    *rate.Limiter // a flood of bad connections must not flood the log
}

var _ credentials.TransportCredentials = (*handshaker)(nil)

const (
	logsPerSecond = 2
	logsAtOnce    = 50
)

func newHandshaker(cfg Config, conns *connSet, m *metrics) *handshaker {
	return &handshaker{
		cfg: cfg, conns: conns, metrics: m,
		slots: make(chan struct{}, cfg.Limits.Handshakes),
		logs:  rate.NewLimiter(logsPerSecond, logsAtOnce),
	}
}

// authInfo ties requests to their connection.
type authInfo struct {
	credentials.CommonAuthInfo
	conn *conn
}

// AuthType implements [credentials.AuthInfo].
func (authInfo) AuthType() string { return "clustermesh" }

// ServerHandshake implements [credentials.TransportCredentials].
func (h *handshaker) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, fmt.Errorf("connection of type %T does not come from the gateway's listener", raw)
	}
	secure, err := h.secure(c)
	if err != nil {
		h.report(c, err)
		c.Close()
		return nil, nil, err
	}
	level := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	return secure, authInfo{CommonAuthInfo: level, conn: c}, nil
}

// secure does the handshake and grants what the certificate's name may read.
func (h *handshaker) secure(c *conn) (net.Conn, error) {
	if h.cfg.TLS == nil {
		g, err := grantFor(h.cfg.Cluster, h.cfg.PlainTextName)
		h.conns.admit(c, g, time.Time{})
		return c, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.Limits.HandshakeTimeout)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return nil, errBusy
	}
	tc := tls.Server(c, h.tlsConfig())
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	leaf := tc.ConnectionState().VerifiedChains[0][0]
	g, err := grantFor(h.cfg.Cluster, leaf.Subject.CommonName)
	h.conns.admit(c, g, leaf.NotAfter)
	return tc, err
}

// tlsConfig returns the configured TLS with what the gateway relies on.
func (h *handshaker) tlsConfig() *tls.Config {
	c := h.strict(h.cfg.TLS)
	if ask := h.cfg.TLS.GetConfigForClient; ask != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			found, err := ask(hello)
			if err != nil || found == nil {
				return nil, err
			}
			return h.strict(found), nil
		}
	}
	return c
}

func (h *handshaker) strict(base *tls.Config) *tls.Config {
	c := base.Clone()
	c.GetConfigForClient = nil
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.NextProtos = []string{"h2"}
	// A resumed session would outlive the removal of its CA.
	c.SessionTicketsDisabled = true
	if c.ClientCAs == nil {
		// Otherwise Go would accept everything the system's roots signed.
		c.ClientCAs = x509.NewCertPool()
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error { return h.verify(base, cs) }
	return c
}

// verify refuses, within the handshake, certificates that no grant is for.
func (h *handshaker) verify(base *tls.Config, cs tls.ConnectionState) error {
	if base.VerifyConnection != nil {
		if err := base.VerifyConnection(cs); err != nil {
			return err
		}
	}
	if len(cs.VerifiedChains) == 0 {
		return errors.New("client certificate is not verified")
	}
	if cs.NegotiatedProtocol == "" {
		return errors.New("peer does not speak HTTP/2")
	}
	_, err := grantFor(h.cfg.Cluster, cs.VerifiedChains[0][0].Subject.CommonName)
	return err
}

// report counts a failed handshake and logs it, at debug if the peer only
// opened and closed the connection as health checks of load balancers do.
func (h *handshaker) report(c *conn, err error) {
	reason := classify(err)
	h.metrics.handshakeFailures.WithLabelValues(string(reason)).Inc()
	level := slog.LevelWarn
	if reason == failedClosed || !h.logs.Allow() {
		level = slog.LevelDebug
	}
	h.cfg.Log.Log(context.Background(), level, "tls handshake failed",
		"peer", c.RemoteAddr().String(), "reason", string(reason), "hint", reason.hint(), "err", err)
}

// classify finds the reason class of a handshake error.
func classify(err error) handshakeReason {
	var (
		name    *nameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &name), errors.Is(err, certs.ErrNoRole):
		return failedName
	case errors.As(err, &unknown):
		return failedAuthority
	case errors.As(err, &invalid):
		return classifyInvalid(invalid)
	case errors.As(err, &record):
		return failedNotTLS
	case errors.Is(err, errBusy):
		return failedBusy
	}
	return classifyTransport(err)
}

func classifyInvalid(err x509.CertificateInvalidError) handshakeReason {
	switch err.Reason {
	case x509.Expired:
		return failedExpired
	case x509.IncompatibleUsage:
		return failedUsage
	}
	return failedAuthority
}

func classifyTransport(err error) handshakeReason {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return failedTimeout
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), strings.Contains(err.Error(), "connection reset"):
		return failedClosed
	case strings.Contains(err.Error(), "remote error: tls:"):
		return failedRejected
	case strings.Contains(err.Error(), "didn't provide a certificate"):
		return failedNoCertificate
	}
	return failedOther
}

// ClientHandshake implements [credentials.TransportCredentials]; the gateway
// is no client.
func (h *handshaker) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("gateway credentials are for servers")
}

// Info implements [credentials.TransportCredentials].
func (h *handshaker) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements [credentials.TransportCredentials].
func (h *handshaker) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements [credentials.TransportCredentials].
func (h *handshaker) OverrideServerName(string) error { return nil }
