package peers

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Peer is a reader of the store. It is not changed once it is in a [Table].
type Peer struct {
	// Name names the peer in logs and metrics: 1 to 63 lower-case letters,
	// digits and '-', but not "local" or "other".
	Name string
	// CAs sign the peer's certificates; intermediates that the peer sends with
	// its certificate are used too.
	CAs []*x509.Certificate
	// Own, in place of CAs, says that this cluster's own CA signs the peer's
	// certificates, as it does for clusters that join.
	Own Own
	// SharesCAWith names the peers that may have a CA of this one too. Both
	// must name each other.
	SharesCAWith []string
	// Identity is the name that the peer's certificates carry.
	Identity Identity
	// View is what the peer may see.
	View View
	// Expires ends the peer's access; zero means never.
	Expires time.Time
	// Revoked ends the peer's access now.
	Revoked bool
	// RevokedCertificates are SHA-256 sums of the DER encoding of certificates
	// that are refused although their peer is not, with what those of CAs among
	// them signed, however a client encodes them.
	RevokedCertificates [][sha256.Size]byte

	roots  *x509.CertPool
	issued []*x509.Certificate // of CAs, those that another CA signed
}

// Own are the cluster's own CAs as they are at the moment they are asked, so
// that one that is added or withdrawn counts without anybody writing peers'
// files anew. What they have revoked is not looked at here, where nobody knows
// of it.
type Own interface {
	// Chains returns the chains from a client's certificate, the first, to the
	// CAs; the others may be links of them. The error is one of crypto/x509.
	Chains(certificates []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error)
}

// Identity is the name in a certificate, compared byte by byte. Exactly one of
// its members is set.
type Identity struct {
	// URI is the certificate's only URI name, as in SPIFFE.
	URI string
	// DNS is one of the certificate's DNS names.
	DNS string
	// CommonName is the subject's common name, remote or remote-<cluster>, as in
	// Cilium's certificates. Names of the other kinds are ignored then.
	CommonName string
}

// View is the part of the store that a peer may see.
type View struct {
	// All is everything that is exported to other clusters; the rest must be
	// empty then.
	All bool
	// Namespaces whose services, endpoint slices and service exports are seen.
	Namespaces []string
	// Services that are seen beside those of the namespaces.
	Services []Service
	// Nodes, Identities and Addresses say whether all or none of these kinds are
	// seen; they belong to no namespace that their keys name.
	Nodes, Identities, Addresses bool
}

// Service names a Kubernetes service.
type Service struct{ Namespace, Name string }

const (
	maxName     = 63
	maxIdentity = 512
	maxCAs      = 64
	maxListed   = 1024
)

// reserved are the names that metrics use for those who are no peers.
func reserved(name string) bool { return name == "local" || name == "other" }

// Validate joins all problems of the peer, each with its field, value and
// remedy; the fields are called as in a peer's file.
func (p *Peer) Validate() error {
	var errs []error
	if !validLabel(p.Name) || reserved(p.Name) {
		errs = append(errs, fmt.Errorf("name %q: not usable; use 1 to %d lower-case letters, digits and '-', but not local or other", p.Name, maxName))
	}
	errs = append(errs, p.validateCAs(), p.Identity.validate(), p.View.validate())
	for _, name := range p.SharesCAWith {
		if !validLabel(name) || name == p.Name {
			errs = append(errs, fmt.Errorf("shares-ca-with %q: not the name of another peer; write its file's name without .yaml", name))
		}
	}
	return errors.Join(errs...)
}

func (p *Peer) validateCAs() error {
	if p.Own != nil {
		if len(p.CAs) > 0 {
			return fmt.Errorf("ca: own, and %d certificates beside it; give one of them", len(p.CAs))
		}
		return nil
	}
	if len(p.CAs) == 0 || len(p.CAs) > maxCAs {
		return fmt.Errorf("ca: %d certificates; give the 1 to %d CA certificates that sign this peer's certificates", len(p.CAs), maxCAs)
	}
	var errs []error
	for _, c := range p.CAs {
		switch {
		case !c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			errs = append(errs, fmt.Errorf("ca %q: not a CA certificate; give the certificate of the CA itself, not one that it signed", c.Subject))
		case !strong(c):
			errs = append(errs, fmt.Errorf("ca %q: its key is too weak; use ECDSA P-256 or larger, Ed25519, or RSA of 2048 bits or more", c.Subject))
		}
	}
	return errors.Join(errs...)
}

func (i Identity) validate() error {
	set := 0
	for _, v := range []string{i.URI, i.DNS, i.CommonName} {
		if v != "" {
			set++
		}
		if len(v) > maxIdentity {
			return fmt.Errorf("identity: a name of %d bytes; at most %d are allowed", len(v), maxIdentity)
		}
	}
	switch {
	case set != 1:
		return fmt.Errorf("identity: %d names are set; set exactly one of uri, dns, common-name", set)
	case i.URI != "" && !validURI(i.URI):
		return fmt.Errorf("identity.uri %q: not usable; write scheme://host/path exactly as in the certificate", i.URI)
	case i.DNS != "" && !validHost(i.DNS):
		return fmt.Errorf("identity.dns %q: not usable; write a lower-case host name without wildcard, exactly as in the certificate", i.DNS)
	case i.CommonName != "" && !validCommonName(i.CommonName):
		return fmt.Errorf("identity.common-name %q: not usable; write remote or remote-<cluster> as in Cilium's certificates, or use uri or dns", i.CommonName)
	}
	return nil
}

func validURI(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme != "" && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" &&
		!strings.ContainsAny(s, "#?") && printable(s)
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func validHost(s string) bool {
	labels := strings.Split(s, ".")
	return len(s) <= 253 && !slices.ContainsFunc(labels, func(l string) bool { return !validLabel(l) })
}

func validCommonName(s string) bool {
	cluster, named := strings.CutPrefix(s, "remote-")
	return s == "remote" || named && validLabel(cluster)
}

// validLabel reports whether s is a label of RFC 1123, which is what Kubernetes
// calls namespaces and services.
func validLabel(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		alnum := 'a' <= s[i] && s[i] <= 'z' || '0' <= s[i] && s[i] <= '9'
		if !alnum && (s[i] != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return true
}

func (v View) validate() error {
	listed := len(v.Namespaces) + len(v.Services)
	kinds := v.Nodes || v.Identities || v.Addresses
	switch {
	case v.All && (listed > 0 || kinds):
		return errors.New("sees: all, and more beside it; remove one of them")
	case !v.All && listed == 0 && !kinds:
		return errors.New("sees: nothing; write all, or what the peer may see: namespaces, services, nodes, identities, addresses")
	case listed > maxListed:
		return fmt.Errorf("sees: %d namespaces and services; at most %d are allowed, use namespaces instead of single services", listed, maxListed)
	}
	var errs []error
	for _, n := range v.Namespaces {
		if !validLabel(n) {
			errs = append(errs, fmt.Errorf("sees.namespaces %q: not the name of a namespace; write it as kubectl get namespaces does", n))
		}
	}
	for _, s := range v.Services {
		if !validLabel(s.Namespace) || !validLabel(s.Name) {
			errs = append(errs, fmt.Errorf("sees.services %q: not a service; write namespace/name", s.Namespace+"/"+s.Name))
		}
	}
	return errors.Join(errs...)
}

// Equal reports whether both views show the same keys in the same words.
func (v View) Equal(o View) bool {
	return v.All == o.All && v.Nodes == o.Nodes && v.Identities == o.Identities && v.Addresses == o.Addresses &&
		slices.Equal(v.Namespaces, o.Namespaces) && slices.Equal(v.Services, o.Services)
}
