package server

import (
	"cmp"
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
	"github.com/clustermesh/clustermesh/kvstore/peers"
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
	failedKey           handshakeReason = "weak key"
	failedRevoked       handshakeReason = "revoked"
	failedAmbiguous     handshakeReason = "ambiguous"
	failedEncoding      handshakeReason = "wrong encoding"
	failedOther         handshakeReason = "other"
)

func handshakeReasons() []handshakeReason {
	return []handshakeReason{
		failedNoCertificate, failedAuthority, failedExpired, failedUsage, failedName, failedNotTLS,
		failedTimeout, failedRejected, failedClosed, failedBusy, failedKey, failedRevoked, failedAmbiguous, failedEncoding, failedOther,
	}
}

// hint says what an operator can do about a failed handshake.
func (r handshakeReason) hint() string {
	switch r {
	case failedNoCertificate:
		return "the peer has no client certificate configured"
	case failedAuthority:
		return "add the CA of the peer's certificate to this gateway's CA bundle, or to the peer's file"
	case failedExpired:
		return "renew the peer's certificate, or correct its clock or ours"
	case failedUsage:
		return "issue the peer a certificate with the extended key usage client authentication"
	case failedName:
		return "issue the peer a certificate with the common name remote or remote-<its cluster>, or with the identity in its peer file"
	case failedKey:
		return "issue the peer a certificate with a key of ECDSA P-256, Ed25519 or RSA 2048, or larger"
	case failedRevoked:
		return "the peer's file or the revocation list of its CA takes it back; issue another if that is a mistake"
	case failedAmbiguous:
		return "issue the peer a certificate that carries the identity of one peer only"
	case failedEncoding:
		return "give the peer its certificate as its CA made it: somebody has encoded it again, perhaps to pass for another than a revoked one"
	case failedBusy:
		return "too many connections are in their handshake: raise the limit, or find who opens them"
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
		logs: rate.NewLimiter(logsPerSecond, logsAtOnce),
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
		if !errors.Is(err, errRefused) {
			h.report(c, err)
		}
		c.Close()
		return nil, nil, err
	}
	level := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	return secure, authInfo{CommonAuthInfo: level, conn: c}, nil
}

// secure does the handshake and admits the peer.
func (h *handshaker) secure(c *conn) (net.Conn, error) {
	if h.cfg.TLS == nil {
		g, err := h.conns.registry.named(h.cfg.PlainTextName)
		if err != nil {
			return nil, err
		}
		return &metered{Conn: c, c: c}, h.conns.admit(c, admission{grant: g})
	}
	who, tc, err := h.shake(c)
	if err == nil {
		err = h.conns.admit(c, who)
	}
	if err != nil {
		return nil, err
	}
	if c.purses.Take(c.shook+connectCost) == 0 {
		c.payer.Take(-c.shook) // it was not in vain
	}
	return &metered{Conn: tc, c: c}, nil
}

// shake does the TLS handshake.
func (h *handshaker) shake(c *conn) (who admission, tc *tls.Conn, err error) {
	deadline := time.Now().Add(h.cfg.Limits.HandshakeTimeout)
	g := &gate{c: c}
	if err = g.await(deadline); err == nil {
		err = g.afford(deadline)
	}
	if err == nil {
		tc, err = h.compute(g, deadline, &who)
		c.shook = g.spent
		c.payer.Take(g.spent - handshakeCost)
	}
	if err != nil && (g.busy || h.conns.wasEvicted(c)) {
		err = errBusy
	}
	return who, tc, err
}

// compute does the handshake with a peer that has begun to speak.
func (h *handshaker) compute(g *gate, deadline time.Time, who *admission) (*tls.Conn, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	g.ctx, g.c.gate = ctx, g
	tc := tls.Server(g.c, h.tlsConfig(who))
	err := tc.HandshakeContext(ctx)
	g.release()
	g.c.gate = nil
	if err == nil { // the rest of the time is for the start of HTTP/2
		err = g.c.SetReadDeadline(deadline.Add(h.cfg.Limits.HandshakeTimeout))
	}
	return tc, err
}

// tlsConfig returns the configured TLS with what the gateway relies on. Its
// handshake fills in who the peer is.
func (h *handshaker) tlsConfig(who *admission) *tls.Config {
	c := h.strict(h.cfg.TLS, who)
	if ask := h.cfg.TLS.GetConfigForClient; ask != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			found, err := ask(hello)
			if err != nil || found == nil {
				return nil, err
			}
			return h.strict(found, who), nil
		}
	}
	return c
}

func (h *handshaker) strict(base *tls.Config, who *admission) *tls.Config {
	c := base.Clone()
	c.GetConfigForClient = nil
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	c.NextProtos = []string{"h2"}
	// A resumed session would outlive the removal of its CA.
	c.SessionTicketsDisabled = true
	if h.cfg.Peers != nil {
		// Each peer's chain is verified against its own CAs, by us. Strangers
		// are not told whose CAs these are.
		c.ClientAuth, c.ClientCAs = tls.RequireAnyClientCert, nil
		c.VerifyConnection = func(cs tls.ConnectionState) (err error) {
			*who, err = h.identify(base, cs)
			return err
		}
		return c
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	if c.ClientCAs == nil {
		// Otherwise Go would accept everything the system's roots signed.
		c.ClientCAs = x509.NewCertPool()
	}
	c.VerifyConnection = func(cs tls.ConnectionState) (err error) {
		*who, err = h.verify(base, cs)
		return err
	}
	return c
}

var errNotHTTP2 = errors.New("peer does not speak HTTP/2")

// verify refuses, within the handshake, certificates that no grant is for.
func (h *handshaker) verify(base *tls.Config, cs tls.ConnectionState) (admission, error) {
	if base.VerifyConnection != nil {
		if err := base.VerifyConnection(cs); err != nil {
			return admission{}, err
		}
	}
	if len(cs.VerifiedChains) == 0 {
		return admission{}, errors.New("client certificate is not verified")
	}
	if cs.NegotiatedProtocol == "" {
		return admission{}, errNotHTTP2
	}
	leaf := cs.VerifiedChains[0][0]
	g, err := h.conns.registry.named(leaf.Subject.CommonName)
	return admission{grant: g, until: leaf.NotAfter, chain: cs.PeerCertificates}, err
}

// identify decides, where peers are configured, whose certificate it is. The
// CAs of the TLS configuration are then for the cluster's own agents alone.
func (h *handshaker) identify(base *tls.Config, cs tls.ConnectionState) (admission, error) {
	switch {
	case len(cs.PeerCertificates) == 0:
		return admission{}, &peers.RefusedError{Reason: peers.NoCertificate, Err: errors.New("none was sent")}
	case cs.NegotiatedProtocol == "":
		return admission{}, errNotHTTP2
	}
	own, errOwn := h.ownAgent(base, cs)
	if own != nil {
		return *own, nil
	}
	roster, _ := h.conns.registry.current()
	p, until, err := roster.table.Authenticate(cs.PeerCertificates, time.Now())
	if err != nil {
		return admission{}, cmp.Or(errOwn, err)
	}
	if h.cfg.Trust != nil { // many peers have their certificates from our own CA
		if err := h.cfg.Trust.Revoked(cs.PeerCertificates); err != nil {
			return admission{}, err
		}
	}
	return admission{grant: roster.grants[p], until: until, chain: cs.PeerCertificates, roster: roster}, nil
}

// ownAgent verifies a certificate that claims to be that of the cluster's own
// agents; others are nobody and no error.
func (h *handshaker) ownAgent(base *tls.Config, cs tls.ConnectionState) (*admission, error) {
	leaf := cs.PeerCertificates[0]
	if base.ClientCAs == nil || leaf.Subject.CommonName != "local-"+h.cfg.Cluster {
		return nil, nil
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: base.ClientCAs, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	cs.VerifiedChains = chains
	who, err := h.verify(base, cs)
	if err != nil {
		return nil, err
	}
	return &who, nil
}

// report counts a failed handshake and logs it, at debug if the peer only
// opened and closed the connection as health checks of load balancers do.
func (h *handshaker) report(c *conn, err error) {
	reason := classify(err)
	h.metrics.failHandshake(h.conns.registry.claimed(err), reason)
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
		refused *peers.RefusedError
	)
	switch {
	case errors.As(err, &refused):
		return handshakeReason(refused.Reason)
	case errors.As(err, &name), errors.Is(err, certs.ErrNoRole):
		return failedName
	case errors.Is(err, certs.ErrRevoked):
		return failedRevoked
	case errors.Is(err, certs.ErrNotForClients):
		return failedUsage
	case errors.Is(err, certs.ErrWeakKey):
		return failedKey
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
