package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"
)

// anchors is what decides which peers are believed: the CAs, and what they have
// taken back. Both are of one moment.
type anchors struct {
	pool    *x509.CertPool
	cas     []*x509.Certificate
	revoked revoked
	lists   editions
	gone    []*x509.Certificate // CAs that were in the bundle while this process ran, and are not
	end     time.Time           // when the last of the CAs ends
}

// loadTrust follows a CA bundle and, unless its path is empty, a revocation list.
func loadTrust(ca, crl string, log *slog.Logger) (*live[anchors], error) {
	if err := needPath("CA", ca); err != nil {
		return nil, err
	}
	paths, remedy := []string{ca}, caRemedy
	if crl != "" {
		paths, remedy = append(paths, crl), caRemedy+"; make a revocation list with: clustermesh certs revoke --dir DIR"
	}
	f := &follower{ca: ca, crl: crl, log: log}
	l, err := newLive(paths, log, f.parse)
	l.gone = crl != "" // what the list no longer says, the bundle may
	return l, hint(err, remedy)
}

// follower makes of each state of the files what is in force after the state
// before: a file that is put back does not put back what was trusted then.
type follower struct {
	ca, crl string // paths; crl is empty without a list
	log     *slog.Logger
	last    anchors
}

func (f *follower) parse(contents [][]byte) (anchors, error) {
	now, err := parseAnchors(f.ca, contents[0], f.crl, slices.Concat(contents[1:]...))
	if err == nil {
		if old := now.keep(f.last); old != nil {
			f.log.Warn("kept the revocation list before, and took the CAs that are new", "err", old)
		}
	} else {
		var withdrawn bool
		if now, withdrawn = f.last.without(f.ca, contents[0]); !withdrawn {
			return anchors{}, err
		}
		f.log.Warn("withdrew CAs that are no longer in the bundle; those that stay keep the revocation list before", "err", err)
	}
	f.last = now.after(f.last)
	return f.last, nil
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
	if out.revoked, out.lists, err = parseRevoked(crl, cas); err != nil {
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
	out.revoked, out.lists = a.revoked, a.lists
	return out, true
}

// keep leaves in force the list of each CA that had one and now has none, or an
// older one, which would forget what was revoked since. The error says which;
// it is no reason to shut out whom a CA that is new has signed for.
func (a anchors) keep(before anchors) error {
	var errs []error
	for _, c := range a.cas {
		key := string(c.RawSubjectPublicKeyInfo)
		now, was := a.lists[key], before.lists[key]
		switch {
		case before.revoked[key] == nil:
			continue
		case a.revoked[key] == nil:
			errs = append(errs, fmt.Errorf("the revocation list of %q is gone; %s", c.Subject.CommonName, crlRemedy))
		case now.olderThan(was):
			errs = append(errs, fmt.Errorf("the revocation list of %q, %s, is older than %s, which was in force before; put the newest ca.crl of the CA's directory in its place, or write one with: clustermesh certs revoke --dir DIR; where the newest was written with a clock that was ahead, and is lost, restart this process, which then takes the list as it is",
				c.Subject.CommonName, now, was))
		default:
			continue
		}
		a.revoked[key], a.lists[key] = before.revoked[key], was
	}
	return errors.Join(errs...)
}

// after adds what is remembered of the state before: which CAs were in the
// bundle, by their keys, and the newest list of each: one that comes back does
// so with what it had revoked.
func (a anchors) after(before anchors) anchors {
	for _, c := range slices.Concat(before.gone, before.cas) {
		same := func(o *x509.Certificate) bool {
			return bytes.Equal(o.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo)
		}
		if !slices.ContainsFunc(a.cas, same) && !slices.ContainsFunc(a.gone, same) {
			a.gone = append(a.gone, c)
		}
	}
	lists, gone := editions{}, revoked{}
	maps.Copy(lists, before.lists)
	maps.Copy(lists, a.lists)
	maps.Copy(gone, before.revoked)
	maps.Copy(gone, a.revoked)
	a.lists, a.revoked = lists, gone
	return a
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
	chains, err := now.chains(cs.PeerCertificates, time.Now())
	if err != nil {
		return time.Time{}, fmt.Errorf("verify client: %w", err)
	}
	return now.revoked.until(chains)
}

func (a anchors) chains(certificates []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	return certificates[0].Verify(x509.VerifyOptions{
		Roots:         a.pool,
		Intermediates: poolOf(certificates[1:]),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// Chains returns the chains from a client's certificate, the first, to the CAs
// of the bundle as it is now. Ask [Trust.Revoked] after it, not before: then a
// CA that is withdrawn in between is noticed.
func (t *Trust) Chains(certificates []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	return t.live.get().chains(certificates, now)
}

// Revoked returns an error if a CA of the bundle has taken back one of these
// certificates, which wraps [ErrRevoked], or if it comes from a CA that was in
// the bundle while this process ran and is not any more, whoever else may
// believe it: with such a CA its revocation list is gone, too. That a CA which is
// gone has signed for one of the bundle, for a rotation, says nothing against
// that. Certificates of other CAs are none of its business.
func (t *Trust) Revoked(certificates []*x509.Certificate) error {
	now := t.live.get()
	for _, c := range certificates {
		for _, ca := range now.cas {
			if now.revoked[string(ca.RawSubjectPublicKeyInfo)][serialOf(c)] && c.CheckSignatureFrom(ca) == nil {
				return fmt.Errorf("certificate %q with serial %s: %w", c.Subject.CommonName, serialOf(c), ErrRevoked)
			}
		}
		for _, ca := range now.gone {
			if bytes.Equal(c.RawIssuer, ca.RawSubject) && c.CheckSignatureFrom(ca) == nil && !now.believes(certificates) {
				return fmt.Errorf("certificate %q with serial %s: its CA %q has been taken out of the own bundle (if it is the peer's own CA, restart the apiserver): %w",
					c.Subject.CommonName, serialOf(c), ca.Subject.CommonName, x509.UnknownAuthorityError{Cert: c})
			}
		}
	}
	return nil
}

// believes reports whether a client's certificates lead to a CA of the bundle.
func (a anchors) believes(certificates []*x509.Certificate) bool {
	chains, err := a.chains(certificates, time.Now())
	return err == nil && a.revoked.check(chains) == nil
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
