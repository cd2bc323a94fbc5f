package peers

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Table is a set of peers of which no two claim the same certificate. It is
// immutable and safe for concurrent use.
type Table struct {
	peers      []*Peer // by name
	byIdentity map[Identity][]*Peer
}

// NewTable makes a table; it keeps the peers. The error joins the problems of
// all peers and of all pairs that conflict.
func NewTable(list ...*Peer) (*Table, error) {
	var errs []error
	for i, p := range list {
		if err := p.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("peer %q: %w", p.Name, err))
		}
		p.prepare()
		for _, q := range list[:i] {
			if err := conflict(p, q); err != nil {
				errs = append(errs, fmt.Errorf("peer %q: %w", p.Name, err))
			}
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return newTable(list), nil
}

// prepare computes what is asked often. A peer that is in a table already, and
// so perhaps in use, is left alone.
func (p *Peer) prepare() {
	if p.roots != nil {
		return
	}
	p.roots = poolOf(p.CAs)
	for _, c := range p.CAs {
		if !signs(c, c) {
			p.issued = append(p.issued, c)
		}
	}
}

// newTable indexes peers that are good and prepared.
func newTable(list []*Peer) *Table {
	t := &Table{peers: slices.Clone(list), byIdentity: map[Identity][]*Peer{}}
	slices.SortFunc(t.peers, func(a, b *Peer) int { return cmp.Compare(a.Name, b.Name) })
	for _, p := range t.peers {
		t.byIdentity[p.Identity] = append(t.byIdentity[p.Identity], p)
	}
	return t
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// Peers returns all peers by name. They must not be changed.
func (t *Table) Peers() []*Peer { return t.peers }

// conflict says why two peers cannot both be in force, or nil. Those whose
// certificates our own CA signs need not say that they share it: whoever holds
// it is us, and decides who has which name.
func conflict(p, q *Peer) error {
	if p.Name == q.Name {
		return fmt.Errorf("name %q: used twice; rename one of the files", p.Name)
	}
	ca := common(p, q)
	switch {
	case p.Own != nil && q.Own != nil && p.Identity == q.Identity:
		return fmt.Errorf("identity: peer %q has the same name and ca: own too; give each peer a name of its own", q.Name)
	case ca == nil:
		return nil
	case p.Identity == q.Identity:
		return fmt.Errorf("identity: peer %q has the same name and the CA %q too; give each peer a name of its own", q.Name, ca.Subject)
	case slices.Contains(p.SharesCAWith, q.Name) && slices.Contains(q.SharesCAWith, p.Name):
		return nil
	}
	return fmt.Errorf("ca %q: peer %q trusts it too, so its holder could be either; use a CA per peer, or write shares-ca-with: [%s] here and shares-ca-with: [%s] there",
		ca.Subject, q.Name, q.Name, p.Name)
}

// common returns a CA of p that q trusts too, itself or by its issuer.
func common(p, q *Peer) *x509.Certificate {
	for _, x := range p.CAs {
		for _, y := range q.CAs {
			if bytes.Equal(x.RawSubjectPublicKeyInfo, y.RawSubjectPublicKeyInfo) ||
				slices.Contains(p.issued, x) && signs(y, x) || slices.Contains(q.issued, y) && signs(x, y) {
				return x
			}
		}
	}
	return nil
}

func signs(parent, child *x509.Certificate) bool {
	return bytes.Equal(parent.RawSubject, child.RawIssuer) && child.CheckSignatureFrom(parent) == nil
}

// Reason is a class of refused certificates.
type Reason string

// The reasons. They are values of a metric's label.
const (
	NoCertificate Reason = "no certificate"
	WrongName     Reason = "wrong name"
	WrongUsage    Reason = "wrong usage"
	WeakKey       Reason = "weak key"
	UnknownCA     Reason = "unknown authority"
	Expired       Reason = "expired"
	Revoked       Reason = "revoked"
	Ambiguous     Reason = "ambiguous"
	Encoding      Reason = "wrong encoding"
)

// RefusedError says why a certificate is nobody's.
type RefusedError struct {
	Reason Reason
	// Peer is whose certificate it would be; empty if no peer's CA signed it.
	Peer string
	// Err has the details.
	Err error
}

func (e *RefusedError) Error() string {
	if e.Peer != "" {
		return fmt.Sprintf("refuse certificate of peer %q: %s: %v", e.Peer, e.Reason, e.Err)
	}
	return fmt.Sprintf("refuse certificate: %s: %v", e.Reason, e.Err)
}

// Unwrap returns the details.
func (e *RefusedError) Unwrap() error { return e.Err }

func refuse(r Reason, format string, args ...any) *RefusedError {
	return &RefusedError{Reason: r, Err: fmt.Errorf(format, args...)}
}

// maxChain bounds what a stranger can make us verify.
const maxChain = 5

// Authenticate returns whose certificate is at the head of a chain that a TLS
// client sent, and when its access ends: with its certificate, the CA's, or the
// peer's own. The error is a *[RefusedError]. It does not prove that the client
// has the certificate's key; TLS does. Nor does it know the revocation lists of
// the cluster's own CAs; who has them asks them.
func (t *Table) Authenticate(chain []*x509.Certificate, now time.Time) (p *Peer, until time.Time, err error) {
	if err := checkChain(chain); err != nil {
		return nil, time.Time{}, err
	}
	p, chains, refusal := t.find(chain, now)
	if refusal == nil {
		until, refusal = p.admit(chains, now)
	}
	if refusal != nil {
		return nil, time.Time{}, refusal
	}
	if !p.Expires.IsZero() && p.Expires.Before(until) {
		until = p.Expires
	}
	return p, until, nil
}

func checkChain(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return refuse(NoCertificate, "none was sent")
	}
	leaf := chain[0]
	switch {
	case len(chain) > maxChain:
		return refuse(UnknownCA, "a chain of %d certificates; at most %d are verified", len(chain), maxChain)
	case !meantForClients(leaf):
		return refuse(WrongUsage, "certificate %q is not meant for TLS clients", leaf.Subject)
	case !strong(leaf):
		return refuse(WeakKey, "key of certificate %q", leaf.Subject)
	}
	for _, c := range chain {
		if _, ok := outerOf(c); !ok {
			return refuse(Encoding, "certificate %q is not encoded as its CA encoded it", c.Subject)
		}
	}
	return nil
}

// find verifies the chain against the CAs of every peer whose name it carries,
// and returns whose it is and by which ways.
func (t *Table) find(chain []*x509.Certificate, now time.Time) (found *Peer, chains [][]*x509.Certificate, refusal *RefusedError) {
	refusal = refuse(WrongName, "certificate %q carries the name of no peer", chain[0].Subject)
	for _, id := range identities(chain[0]) {
		for _, p := range t.byIdentity[id] {
			ways, failed := p.verify(chain, now)
			switch {
			case failed != nil && found == nil:
				refusal = failed
			case failed == nil && found != nil && found != p:
				return nil, nil, refuse(Ambiguous, "certificate %q is that of peer %q and of peer %q", chain[0].Subject, found.Name, p.Name)
			case failed == nil:
				found, chains, refusal = p, ways, nil
			}
		}
	}
	return found, chains, refusal
}

// verify checks the chain against the peer's CAs and returns the ways to them, of
// strong keys alone.
func (p *Peer) verify(chain []*x509.Certificate, now time.Time) ([][]*x509.Certificate, *RefusedError) {
	chains, err := p.chains(chain, now)
	if err != nil {
		return nil, classify(err)
	}
	chains = slices.DeleteFunc(chains, func(c []*x509.Certificate) bool { _, ok := lifetime(c); return !ok })
	if len(chains) == 0 {
		return nil, refuse(WeakKey, "key of a CA of certificate %q", chain[0].Subject)
	}
	return chains, nil
}

func (p *Peer) chains(chain []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	if p.Own != nil {
		return p.Own.Chains(chain, now)
	}
	return chain[0].Verify(x509.VerifyOptions{
		Roots: p.roots, Intermediates: poolOf(chain[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// lifetime returns the earliest end in a chain, or false if a key is weak.
func lifetime(chain []*x509.Certificate) (end time.Time, ok bool) {
	end = chain[0].NotAfter
	for _, c := range chain {
		if !strong(c) {
			return end, false
		}
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end, true
}

func classify(err error) *RefusedError {
	var invalid x509.CertificateInvalidError
	reason := UnknownCA
	if errors.As(err, &invalid) {
		switch invalid.Reason {
		case x509.Expired:
			reason = Expired
		case x509.IncompatibleUsage:
			reason = WrongUsage
		}
	}
	return &RefusedError{Reason: reason, Err: err}
}

// admit checks what the operator withdrew, and returns the end of the way to the
// peer's CAs that lasts longest without it.
func (p *Peer) admit(chains [][]*x509.Certificate, now time.Time) (until time.Time, refusal *RefusedError) {
	switch {
	case p.Revoked:
		refusal = refuse(Revoked, "revoked: true in the peer's file")
	case !p.Expires.IsZero() && !now.Before(p.Expires):
		refusal = refuse(Expired, "the peer itself expired on %s", p.Expires.UTC().Format(time.RFC3339))
	default:
		until, refusal = p.last(chains)
	}
	if refusal != nil {
		refusal.Peer = p.Name
	}
	return until, refusal
}

// last returns the end of the chain without a revoked certificate that lasts
// longest.
func (p *Peer) last(chains [][]*x509.Certificate) (until time.Time, refusal *RefusedError) {
	for _, chain := range chains {
		if c := p.revoked(chain); c != nil {
			refusal = refuse(Revoked, "certificate %q is in the peer's list of revoked ones", c.Subject)
		} else if end, _ := lifetime(chain); end.After(until) {
			until = end
		}
	}
	if !until.IsZero() {
		return until, nil
	}
	return until, refusal
}
