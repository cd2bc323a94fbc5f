package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"
)

// ServerFiles are the PEM files of a TLS server.
type ServerFiles struct {
	Cert     string // the server's certificate, intermediates after it
	Key      string // its private key
	ClientCA string // the CAs that client certificates must come from
	// CRL is the revocation list of ClientCA, ca.crl of its directory, whose
	// certificates are refused. Optional.
	CRL string
}

// ClientFiles are the PEM files of a TLS client and the name it insists on.
type ClientFiles struct {
	Cert string // the client's certificate, intermediates after it
	Key  string // its private key
	CA   string // the CAs that the server's certificate must come from
	// ServerName is the DNS name or IP address that the server's certificate
	// must contain. When empty it is the name or address dialled, and CAs added
	// to the CA file later need a new configuration; see ClientTLS.
	ServerName string
	// CRL is the revocation list of CA, whose certificates are refused. Optional.
	CRL string
}

// ServerTLS returns the configuration of a server that talks TLS 1.3 to clients
// whose certificate is signed by ClientCA, is meant for clients, and whose common
// name is a Role; all others fail the handshake.
//
// All files are looked at in every handshake and take effect in it when they
// changed, so a renewed certificate, a CA bundle with a CA more or less or a
// longer revocation list needs no restart. Files that are unreadable, half written or do not belong
// together leave the previous ones in force. Connections that exist are not
// touched; [Trust] tells which of them would be refused now. Session resumption is off: it would skip the current CA bundle.
//
// An error means the files are not usable now; it names all that is wrong.
// Calling again later is the way to wait for files that do not exist yet.
func ServerTLS(f ServerFiles, log *slog.Logger) (*tls.Config, error) {
	log = orDiscard(log)
	leaf, errLeaf := loadLeaf(f.Cert, f.Key, Server, log)
	trust, errTrust := loadTrust(f.ClientCA, f.CRL, log)
	if err := errors.Join(errLeaf, errTrust); err != nil {
		return nil, fmt.Errorf("set up TLS server: %w", err)
	}
	current := func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return serverConfig(leaf.get(), trust.get()), nil
	}
	cfg := serverConfig(leaf.get(), trust.get())
	cfg.GetConfigForClient = current
	return cfg, nil
}

func serverConfig(leaf *tls.Certificate, trust anchors) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{*leaf},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    trust.pool,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return errors.Join(checkClient(cs), trust.revoked.check(cs.VerifiedChains))
		},
		SessionTicketsDisabled: true,
	}
}

// checkClient adds to crypto/tls's own verification what that leaves open: names
// that mean nothing here or are two, certificates that are not plainly those of
// a client, weak keys, and chains that are long to make us work.
func checkClient(cs tls.ConnectionState) error {
	if _, err := PeerRole(cs); err != nil {
		return err
	}
	leaf := cs.PeerCertificates[0]
	switch {
	case len(cs.PeerCertificates) > maxChain:
		return fmt.Errorf("verify client: a chain of %d certificates; at most %d are verified", len(cs.PeerCertificates), maxChain)
	case !singleName(leaf):
		return fmt.Errorf("certificate %q: more than one common name: %w", leaf.Subject, ErrNoRole)
	case !onlyClient(leaf):
		return fmt.Errorf("certificate %q: %w", leaf.Subject.CommonName, ErrNotForClients)
	}
	for _, c := range cs.PeerCertificates {
		if err := checkPublic(c.PublicKey); err != nil {
			return fmt.Errorf("certificate %q: %w: %w", c.Subject.CommonName, ErrWeakKey, err)
		}
	}
	return nil
}

// ClientTLS returns the configuration of a client that talks TLS 1.3, presents
// the certificate of f and accepts only servers whose certificate is signed by
// f.CA, is meant for servers and contains the expected name. The system's CAs
// are never asked.
//
// Changed files take effect in the next handshake, as they do with ServerTLS,
// with one exception: without f.ServerName a CA that is added to f.CA counts
// only for configurations made afterwards (one that is withdrawn is refused at
// once), so a caller that dials by address makes a configuration per connection.
func ClientTLS(f ClientFiles, log *slog.Logger) (*tls.Config, error) {
	log = orDiscard(log)
	leaf, errLeaf := loadLeaf(f.Cert, f.Key, Remote, log)
	trust, errTrust := loadTrust(f.CA, f.CRL, log)
	if err := errors.Join(errLeaf, errTrust); err != nil {
		return nil, fmt.Errorf("set up TLS client: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: f.ServerName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return leaf.get(), nil
		},
		// crypto/tls reads RootCAs from the configuration before the handshake
		// and offers a client no hook to replace it (a server has
		// GetConfigForClient), so a live CA needs the built-in verification
		// off and all of it done in VerifyConnection, which runs in every
		// handshake and cannot be skipped by the server. That in turn needs a
		// name fixed here: an IP address put into the configuration later is
		// known to the built-in verification alone.
		InsecureSkipVerify: f.ServerName != "",
		RootCAs:            trust.get().pool,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return checkServer(cs, trust.get(), f.ServerName)
		},
	}, nil
}

// checkServer verifies the chain, its usage, that it is not revoked, and the name unless that is empty
// because it has been verified already.
func checkServer(cs tls.ConnectionState, trust anchors, name string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("verify server: it presented no certificate")
	}
	leaf := cs.PeerCertificates[0]
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         trust.pool,
		Intermediates: poolOf(cs.PeerCertificates[1:]),
		DNSName:       name,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err == nil {
		err = errors.Join(checkUsage(leaf, Server), trust.revoked.check(chains))
	}
	if err == nil {
		return nil
	}
	// The type is the one that crypto/tls itself reports, for callers that
	// tell a server that is not trusted from one that does not answer.
	return &tls.CertificateVerificationError{
		UnverifiedCertificates: cs.PeerCertificates,
		Err:                    fmt.Errorf("certificate %q of issuer %q: %w", leaf.Subject.CommonName, leaf.Issuer.CommonName, err),
	}
}

func loadLeaf(cert, key string, kind Kind, log *slog.Logger) (*live[*tls.Certificate], error) {
	if err := errors.Join(needPath("certificate", cert), needPath("private key", key)); err != nil {
		return nil, err
	}
	l, err := newLive([]string{cert, key}, log, func(c [][]byte) (*tls.Certificate, error) {
		return parseLeaf(c[0], c[1], cert, key, kind)
	})
	return l, hint(err, fmt.Sprintf("issue one with: clustermesh certs issue --kind %s --cluster NAME --dir DIR", kind))
}

func needPath(what, path string) error {
	if path == "" {
		return fmt.Errorf("the %s file is not set", what)
	}
	return nil
}

// hint adds the remedy to an error.
func hint(err error, remedy string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		remedy = "run as a user who may read it"
	}
	return fmt.Errorf("%w; %s", err, remedy)
}

func parseLeaf(cert, key []byte, certPath, keyPath string, kind Kind) (*tls.Certificate, error) {
	chain, err := parseCerts(cert)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", certPath, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read private key %s for certificate %s: %w", keyPath, certPath, err)
	}
	if err := errors.Join(checkValidNow(chain[0], time.Now()), checkUsage(chain[0], kind)); err != nil {
		return nil, fmt.Errorf("use certificate %s: %w", certPath, err)
	}
	return &pair, nil
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

func checkUsage(c *x509.Certificate, kind Kind) error {
	usage, name := x509.ExtKeyUsageClientAuth, "clients"
	if kind == Server {
		usage, name = x509.ExtKeyUsageServerAuth, "servers"
	}
	if !allows(c, usage) {
		return fmt.Errorf("certificate %q is not meant for TLS %s (extended key usage)", c.Subject.CommonName, name)
	}
	return nil
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
