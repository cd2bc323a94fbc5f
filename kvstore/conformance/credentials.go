package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/certs"
)

func credentialChecks() []Check {
	return []Check{{
		ID: "client-files", Group: "credentials", Title: "certificate, key and CA files are usable",
		Why:    "the client waits for the files, trying again every 5 s",
		Remedy: "check the paths and that certificate and key belong together; issue new ones with: clustermesh certs issue --kind remote",
		run:    checkClientFiles,
	}, {
		ID: "client-validity", Group: "credentials", Title: "the client's certificate is valid now, and for clients", Needs: []string{"client-files"},
		Why:    "the server refuses the client in the TLS handshake, and the client tries again for ever",
		Remedy: "renew it with: clustermesh certs issue --kind remote; check this machine's clock",
		run:    checkClientValidity,
	}, {
		ID: "client-name", Group: "credentials", Title: "the client's certificate names a role", Needs: []string{"client-files"},
		Why:    "etcd knows no such user and denies every read; the client waits without an error in its log",
		Remedy: "use a certificate with the common name remote, remote-<own cluster> or, at the own cluster, local-<own cluster>",
		run:    checkClientName,
	}}
}

func checkClientFiles(_ context.Context, s *session) finding {
	pair, pairErr := tls.LoadX509KeyPair(s.target.CertFile, s.target.KeyFile)
	pem, err := os.ReadFile(s.target.CAFile)
	roots := x509.NewCertPool()
	if err == nil && !roots.AppendCertsFromPEM(pem) {
		err = errors.New(s.target.CAFile + ": no certificate in PEM form in it")
	}
	if err := errors.Join(pairErr, err); err != nil {
		return fail("%v", err)
	}
	s.pair, s.roots = &pair, roots
	return pass("%s, %s, %s", s.target.CertFile, s.target.KeyFile, s.target.CAFile)
}

func checkClientValidity(_ context.Context, s *session) finding {
	leaf := s.pair.Leaf
	if f := validNow(leaf); f.outcome != Pass {
		return f
	}
	if !usableFor(leaf, x509.ExtKeyUsageClientAuth) {
		return fail("certificate %q is not meant for TLS clients (extended key usage)", leaf.Subject)
	}
	return validNow(leaf)
}

func validNow(c *x509.Certificate) finding {
	now := time.Now()
	switch {
	case now.Before(c.NotBefore):
		return invalid(fail("certificate %q is not valid before %s; this machine's clock says %s", c.Subject, stamp(c.NotBefore), stamp(now)), c, true)
	case now.After(c.NotAfter):
		return invalid(fail("certificate %q expired on %s; this machine's clock says %s", c.Subject, stamp(c.NotAfter), stamp(now)), c, false)
	}
	return pass("certificate %q is valid for another %s, until %s", c.Subject, c.NotAfter.Sub(now).Round(time.Minute), stamp(c.NotAfter))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// usableFor applies X.509's rule that a certificate without usages is for all.
func usableFor(c *x509.Certificate, usage x509.ExtKeyUsage) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, usage) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func checkClientName(_ context.Context, s *session) finding {
	name := s.pair.Leaf.Subject.CommonName
	role, err := certs.ParseRole(name)
	if err != nil {
		return fail("%v", err)
	}
	s.role = role
	return pass("common name %s", name)
}
