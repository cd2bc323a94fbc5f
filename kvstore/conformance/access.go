package conformance

import (
	"context"
	"crypto/tls"
	"net"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func accessChecks() []Check {
	return []Check{{
		ID: "refuses-plain-text", Group: "access", Title: "the port serves nothing without TLS", Needs: []string{"connect"},
		Why:    "clients do not notice, but anybody on the way may read and forge what the cluster publishes",
		Remedy: "serve this port with TLS only",
		run:    checkPlainText,
	}, {
		ID: "refuses-no-certificate", Group: "access", Title: "a client without a certificate is refused", Needs: []string{"tls-handshake"},
		Why:    "clients do not notice, but anybody may read what the cluster publishes",
		Remedy: "require client certificates (etcd: --client-cert-auth)",
		run:    checkNoCertificate,
	}, {
		ID: "refuses-foreign-ca", Group: "access", Title: "a client certificate of an unknown CA is refused", Needs: []string{"tls-handshake"},
		Why:    "clients do not notice, but anybody may read what the cluster publishes",
		Remedy: "verify client certificates against the CA of the mesh (etcd: --trusted-ca-file)",
		run:    checkForeignCA,
	}, {
		ID: "client-accepted", Group: "access", Title: "the server accepts the client's certificate", Needs: []string{"tls-handshake", "client-validity"},
		Why:    "the client is disconnected after each handshake and tries again for ever",
		Remedy: "add the CA of this client's certificate to those that CLUSTER's apiserver trusts, or join anew if CLUSTER was told to disconnect this cluster; its log names the reason",
		run:    checkAccepted,
	}, {
		ID: "etcd-api", Group: "access", Title: "the etcd v3 API is served", Needs: []string{"client-accepted"},
		Why:    "no request of the client is answered; the cluster never becomes ready",
		Remedy: "check that the port is that of the apiserver's gateway or etcd and not of another gRPC service",
		run:    checkAPI,
	}}
}

func checkPlainText(ctx context.Context, s *session) finding {
	err := s.askOnce(ctx, func(ctx context.Context) (net.Conn, error) { return s.dialTCP(ctx, s.address) })
	if err == nil || !transportFailed(err) {
		return fail("a request in plain text was answered")
	}
	return pass("not answered")
}

func checkNoCertificate(ctx context.Context, s *session) finding { return s.checkStranger(ctx, nil) }

func checkForeignCA(ctx context.Context, s *session) finding {
	name := "remote"
	if s.pair != nil {
		name = s.pair.Leaf.Subject.CommonName
	}
	own, err := strangerCertificate(name)
	if err != nil {
		return skip("make a certificate: %v", err)
	}
	return s.checkStranger(ctx, own)
}

func (s *session) checkStranger(ctx context.Context, own *tls.Certificate) finding {
	err := s.askOnce(ctx, func(ctx context.Context) (net.Conn, error) { return s.dialTLS(ctx, own, nil) })
	switch {
	case err == nil:
		return fail("a read was answered")
	case transportFailed(err) || refused(err):
		return pass("refused")
	}
	return fail("a request was answered: %s", text(err))
}

func checkAccepted(ctx context.Context, s *session) finding {
	if err := s.open(ctx); err != nil && transportFailed(err) {
		return fail("%s", status.Convert(err).Message())
	}
	return pass("as %s", s.pair.Leaf.Subject.CommonName)
}

func checkAPI(ctx context.Context, s *session) finding {
	_, err := s.ask(ctx, heartbeatRange(), 1, 0)
	switch status.Code(err) {
	case codes.OK, codes.PermissionDenied, codes.Unauthenticated:
		return pass("KV.Range is answered")
	}
	return fail("KV.Range: %s", text(err))
}
