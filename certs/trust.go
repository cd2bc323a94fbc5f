package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// anchors is what decides which peers are believed: the CAs, and what they have
// taken back. Both are of one moment.
type anchors struct {
	pool    *x509.CertPool
	revoked revoked
}

// loadTrust follows a CA bundle and, unless its path is empty, a revocation list.
func loadTrust(ca, crl string, log *slog.Logger) (*live[anchors], error) {
	if err := needPath("CA", ca); err != nil {
		return nil, err
	}
	if crl == "" {
		l, err := newLive([]string{ca}, log, func(c [][]byte) (anchors, error) {
			return parseAnchors(ca, c[0], "", nil)
		})
		return l, hint(err, caRemedy)
	}
	l, err := newLive([]string{ca, crl}, log, func(c [][]byte) (anchors, error) {
		return parseAnchors(ca, c[0], crl, c[1])
	})
	return l, hint(err, caRemedy+"; make a revocation list with: clustermesh certs revoke --dir DIR")
}

const caRemedy = "it must hold the ca.crt of the peers; create a CA with: clustermesh certs init --dir DIR"

func parseAnchors(caPath string, ca []byte, crlPath string, crl []byte) (anchors, error) {
	cas, err := parseCerts(ca)
	if err != nil {
		return anchors{}, fmt.Errorf("read CA bundle %s: %w", caPath, err)
	}
	for _, c := range cas {
		if !c.IsCA {
			return anchors{}, fmt.Errorf("read CA bundle %s: %q is not a CA certificate", caPath, c.Subject.CommonName)
		}
	}
	out := anchors{pool: poolOf(cas)}
	if crlPath == "" {
		return out, nil
	}
	if out.revoked, err = parseRevoked(crl, cas); err != nil {
		return anchors{}, fmt.Errorf("read revocation list %s: %w", crlPath, err)
	}
	return out, nil
}

// Trust says of a client that connected some time ago whether it would still
// get in. A server asks it now and then about the connections it holds, because
// a handshake is verified only once. Safe for concurrent use.
type Trust struct{ live *live[anchors] }

// NewTrust follows the ClientCA and CRL files of f as [ServerTLS] does; an error
// means that they are not usable now.
func NewTrust(f ServerFiles, log *slog.Logger) (*Trust, error) {
	l, err := loadTrust(f.ClientCA, f.CRL, orDiscard(log))
	if err != nil {
		return nil, fmt.Errorf("set up trust: %w", err)
	}
	return &Trust{live: l}, nil
}

// CheckClient returns nil while the client at the other end of an accepted
// connection would pass a handshake now. Otherwise the error says why not: its
// certificate expired, its CA is no longer trusted, or it wraps [ErrRevoked].
func (t *Trust) CheckClient(cs tls.ConnectionState) error {
	if err := checkClient(cs); err != nil {
		return err
	}
	now := t.live.get()
	chains, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots:         now.pool,
		Intermediates: poolOf(cs.PeerCertificates[1:]),
		CurrentTime:   time.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("verify client: %w", err)
	}
	return now.revoked.check(chains)
}

// ErrRevoked is wrapped by the error of a handshake with a peer whose
// certificate its CA has revoked.
var ErrRevoked = errors.New("certificate is revoked")

// revoked holds the serial numbers that each CA, named by its public key, has
// taken back.
type revoked map[string]map[string]bool

// check wants one chain without a revoked certificate.
func (r revoked) check(chains [][]*x509.Certificate) error {
	if len(r) == 0 {
		return nil
	}
	var err error
	for _, chain := range chains {
		if err = r.checkChain(chain); err == nil {
			return nil
		}
	}
	return err
}

func (r revoked) checkChain(chain []*x509.Certificate) error {
	for i := range len(chain) - 1 {
		if c := chain[i]; r[string(chain[i+1].RawSubjectPublicKeyInfo)][serialOf(c)] {
			return fmt.Errorf("certificate %q with serial %s: %w", c.Subject.CommonName, serialOf(c), ErrRevoked)
		}
	}
	return nil
}
