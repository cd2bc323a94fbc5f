package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// session is what the checks of one run have learnt so far. Checks run one
// after the other; a check that others need leaves here what it found.
type session struct {
	target Target
	opts   Options

	host, port string
	addrs      []netip.Addr // resolve
	address    string       // connect: the first that took a connection

	pair  *tls.Certificate // client-files
	roots *x509.CertPool   // client-files
	role  certs.Role       // client-name
	seen  *tls.ConnectionState

	conn  *grpc.ClientConn // client-accepted
	kv    etcdserverpb.KVClient
	watch etcdserverpb.WatchClient
	heard headers

	announced []byte               // config-exists
	config    schema.ClusterConfig // config-json
	canaries  []string             // read-synced: what follows the canary prefix

	survey  survey         // page-order
	history *history       // watch-start
	content content        // data checks
	ranges  []netip.Prefix // data-nodes
}

func newSession(t Target, o Options) *session {
	s := &session{target: t, opts: o, survey: newSurvey()}
	if u, err := url.Parse(t.Endpoint); err == nil {
		s.host, s.port = u.Hostname(), u.Port()
	}
	return s
}

func (s *session) close() {
	if s.conn != nil {
		s.conn.Close() //nolint:errcheck // it only says that it was closed before
	}
}

// timeout bounds one request.
func (s *session) timeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.opts.Timeout)
}

func (s *session) dialTCP(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := s.timeout(ctx)
	defer cancel()
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// dialTLS connects as the bearer of a certificate, or of none, and verifies
// nothing: that is for the checks. saw, if set, is told of the server as soon as
// its certificate is here, even if the server then refuses this side.
func (s *session) dialTLS(ctx context.Context, own *tls.Certificate, saw func(tls.ConnectionState)) (net.Conn, error) {
	raw, err := s.dialTCP(ctx, s.address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.timeout(ctx)
	defer cancel()
	conn := tls.Client(raw, s.lenientTLS(own, saw))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// lenientTLS takes whatever a server offers, so that the checks can name it.
func (s *session) lenientTLS(own *tls.Certificate, saw func(tls.ConnectionState)) *tls.Config {
	cfg := &tls.Config{
		ServerName: s.host, MinVersion: tls.VersionTLS10, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if saw != nil {
				saw(state)
			}
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if own == nil {
				return new(tls.Certificate), nil
			}
			return own, nil // whatever CAs the server says it knows
		},
	}
	return cfg
}

// cached tells whether the cluster's entries are below a relay's keys.
func (s *session) cached() bool { return s.config.Capabilities.Cached }

// source describes the cluster to the decoders of entries.
func (s *session) source() schema.Source {
	return schema.Source{Cluster: s.target.Cluster, ClusterID: s.config.ID, Cached: s.cached()}
}
