package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"time"
)

func tlsChecks() []Check {
	return []Check{{
		ID: "tls-handshake", Group: "tls", Title: "the server speaks TLS and shows a certificate", Needs: []string{"connect"},
		Why:    "the client cannot connect and tries again for ever",
		Remedy: "check that the port is that of the apiserver's gateway and that nothing between here and there ends TLS",
		run:    checkHandshake,
	}, {
		ID: "tls-version", Group: "tls", Title: "TLS 1.2 or newer", Needs: []string{"tls-handshake"},
		Why:    "the client ends the handshake",
		Remedy: "raise the server's minimum TLS version; clustermesh's own agents need TLS 1.3",
		run:    checkVersion,
	}, {
		ID: "tls-alpn", Group: "tls", Title: "HTTP/2 is negotiated (ALPN h2)", Needs: []string{"tls-handshake"},
		Why:    "gRPC ends the connection after the handshake",
		Remedy: "serve HTTP/2; a load balancer must pass TLS through or offer h2 itself",
		run:    checkALPN,
	}, {
		ID: "tls-chain", Group: "tls", Title: "the server's certificate comes from the client's CA", Needs: []string{"tls-handshake", "client-files"},
		Why:    "the client refuses the server: certificate signed by unknown authority",
		Remedy: "put the CA that signed CLUSTER's server certificate into trusted-ca-file, and have the server send its intermediates",
		run:    checkChain,
	}, {
		ID: "tls-name", Group: "tls", Title: "the server's certificate names the endpoint's host", Needs: []string{"tls-handshake"},
		Why:    "the client refuses the server: certificate is not valid for the name",
		Remedy: "use a host that is in the certificate, such as CLUSTER.mesh.cilium.io with cilium-host-aliases, or issue it with: clustermesh certs issue --kind server --host HOST",
		run:    checkHostName,
	}, {
		ID: "tls-validity", Group: "tls", Title: "the server's certificate is valid now", Needs: []string{"tls-handshake"},
		Why:    "the client refuses the server: certificate has expired or is not yet valid",
		Remedy: "renew the server's certificate with: clustermesh certs issue --kind server; check the clocks of both machines",
		run:    func(_ context.Context, s *session) finding { return validNow(s.leaf()) },
	}, {
		ID: "tls-usage", Group: "tls", Title: "the server's certificate is meant for servers", Needs: []string{"tls-handshake"},
		Why:    "the client refuses the server: incompatible key usage",
		Remedy: "issue the certificate with the extended key usage server authentication",
		run:    checkUsage,
	}}
}

// leaf is the server's certificate, once tls-handshake passed.
func (s *session) leaf() *x509.Certificate { return s.seen.PeerCertificates[0] }

func checkHandshake(ctx context.Context, s *session) finding {
	conn, err := s.dialTLS(ctx, s.pair, func(state tls.ConnectionState) { s.seen = &state })
	if conn != nil {
		conn.Close()
	}
	if s.seen == nil {
		return noHandshake(fail("handshake: %v", err), err)
	}
	return pass("certificate %q of %q", s.leaf().Subject, s.leaf().Issuer)
}

func checkVersion(_ context.Context, s *session) finding {
	name := tls.VersionName(s.seen.Version)
	if s.seen.Version < tls.VersionTLS12 {
		return fail("the server chose %s although more was offered", name)
	}
	return pass("%s", name)
}

func checkALPN(_ context.Context, s *session) finding {
	if s.seen.NegotiatedProtocol != "h2" {
		return fail("the server chose %q, offered was h2", s.seen.NegotiatedProtocol)
	}
	return pass("h2")
}

// checkChain verifies signatures only: name, time and usage have their own
// checks.
func checkChain(_ context.Context, s *session) finding {
	between := x509.NewCertPool()
	for _, c := range s.seen.PeerCertificates[1:] {
		between.AddCert(c)
	}
	at, leaf := time.Now(), s.leaf()
	if at.Before(leaf.NotBefore) || at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: s.roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return s.elsewhere(fail("%v (certificate %q of %q)", err, leaf.Subject, leaf.Issuer))
	}
	root := chains[0][len(chains[0])-1]
	return pass("signed by %q", root.Subject)
}

func checkHostName(_ context.Context, s *session) finding {
	if err := s.leaf().VerifyHostname(s.host); err != nil {
		return s.elsewhere(fail("%v", err))
	}
	names := strings.Join(s.leaf().DNSNames, ", ")
	if len(s.leaf().IPAddresses) > 0 {
		names += ", " + join(s.leaf().IPAddresses)
	}
	return pass("%s is one of %s", s.host, strings.TrimPrefix(names, ", "))
}

func checkUsage(_ context.Context, s *session) finding {
	if !usableFor(s.leaf(), x509.ExtKeyUsageServerAuth) {
		return fail("certificate %q has other extended key usages only", s.leaf().Subject)
	}
	return pass("server authentication")
}
