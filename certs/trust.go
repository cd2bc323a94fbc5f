package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// anchors is what decides which peers are believed: the CAs, and what they have
// taken back. Both are of one moment.
type anchors struct {
	pool    *x509.CertPool
	cas     []*x509.Certificate
	revoked revoked
	end     time.Time // when the last of the CAs ends
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
	var last anchors
	l, err := newLive([]string{ca, crl}, log, func(c [][]byte) (anchors, error) {
		now, err := parseAnchors(ca, c[0], crl, c[1])
		if err == nil {
			err = now.keeps(last)
		}
		if err != nil {
			var withdrawn bool
			if now, withdrawn = last.without(ca, c[0]); !withdrawn {
				return anchors{}, err
			}
			log.Warn("withdrew CAs that are no longer in the bundle; those that stay keep the revocation list before", "err", err)
		}
		last = now
		return now, nil
	})
	l.gone = true // what the list no longer says, the bundle may
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
	out := anchorsOf(cas)
	if crlPath == "" {
		return out, nil
	}
	if out.revoked, err = parseRevoked(crl, cas); err != nil {
		return anchors{}, fmt.Errorf("read revocation list %s: %w", crlPath, err)
	}
	return out, nil
}

// without withdraws the CAs that a bundle no longer has, whatever is wrong with
// the revocation list beside it, and reports whether that is all that can be
// done: some are withdrawn and some stay. A CA that is new waits for its list.
func (a anchors) without(path string, bundle []byte) (anchors, bool) {
	now, err := parseAnchors(path, bundle, "", nil)
	if err != nil {
		return a, false
	}
	stay := slices.DeleteFunc(slices.Clone(a.cas), func(c *x509.Certificate) bool { return !slices.ContainsFunc(now.cas, c.Equal) })
	if len(stay) == 0 || len(stay) == len(a.cas) {
		return a, false
	}
	out := anchorsOf(stay)
	out.revoked = a.revoked
	return out, true
}

// keeps wants a list of each CA that stays and had one.
func (a anchors) keeps(before anchors) error {
	for _, c := range a.cas {
		key := string(c.RawSubjectPublicKeyInfo)
		if before.revoked[key] != nil && a.revoked[key] == nil {
			return fmt.Errorf("the revocation list of %q is gone; %s", c.Subject.CommonName, crlRemedy)
		}
	}
	return nil
}

func anchorsOf(cas []*x509.Certificate) anchors {
	out := anchors{pool: poolOf(cas), cas: cas}
	for _, c := range cas {
		if c.NotAfter.After(out.end) {
			out.end = c.NotAfter
		}
	}
	return out
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

// Version returns a number that changes whenever what is trusted does: as long
// as it is the same, what [Trust.Until] said holds.
func (t *Trust) Version() uint64 {
	_, version := t.live.current()
	return version
}

// End returns when the last of the trusted CAs ends.
func (t *Trust) End() time.Time { return t.live.get().end }

// CheckClient returns nil while the client at the other end of an accepted
// connection would pass a handshake now. Otherwise the error says why not: its
// certificate expired, its CA is no longer trusted, or it wraps [ErrRevoked].
func (t *Trust) CheckClient(cs tls.ConnectionState) error {
	_, err := t.Until(cs)
	return err
}

// Until is CheckClient that also tells when time alone will end the trust: with
// the first certificate to end of the chain that lasts longest.
func (t *Trust) Until(cs tls.ConnectionState) (time.Time, error) {
	if err := checkClient(cs); err != nil {
		return time.Time{}, err
	}
	now := t.live.get()
	chains, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots:         now.pool,
		Intermediates: poolOf(cs.PeerCertificates[1:]),
		CurrentTime:   time.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("verify client: %w", err)
	}
	return now.revoked.until(chains)
}

// Revoked returns an error that wraps [ErrRevoked] if one of these certificates
// was issued by a CA of the bundle and is in its revocation list, whoever else
// may believe it. Certificates of other CAs are none of its business.
func (t *Trust) Revoked(certificates []*x509.Certificate) error {
	now := t.live.get()
	if len(now.revoked) == 0 {
		return nil
	}
	for _, c := range certificates {
		for _, ca := range now.cas {
			if now.revoked[string(ca.RawSubjectPublicKeyInfo)][serialOf(c)] && c.CheckSignatureFrom(ca) == nil {
				return fmt.Errorf("certificate %q with serial %s: %w", c.Subject.CommonName, serialOf(c), ErrRevoked)
			}
		}
	}
	return nil
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
	_, err := r.until(chains)
	return err
}

// until returns the end of the chain without a revoked certificate that lasts
// longest.
func (r revoked) until(chains [][]*x509.Certificate) (end time.Time, err error) {
	for _, chain := range chains {
		if failed := r.checkChain(chain); failed != nil {
			err = failed
			continue
		}
		if e := endOf(chain); e.After(end) {
			end = e
		}
	}
	if !end.IsZero() {
		err = nil
	}
	return end, err
}

// endOf returns when the first certificate of a chain ends.
func endOf(chain []*x509.Certificate) time.Time {
	first := slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	return first.NotAfter
}

func (r revoked) checkChain(chain []*x509.Certificate) error {
	for i := range len(chain) - 1 {
		if c := chain[i]; r[string(chain[i+1].RawSubjectPublicKeyInfo)][serialOf(c)] {
			return fmt.Errorf("certificate %q with serial %s: %w", c.Subject.CommonName, serialOf(c), ErrRevoked)
		}
	}
	return nil
}
