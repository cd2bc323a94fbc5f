package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

const (
	pemRequest = "CERTIFICATE REQUEST"
	maxBundle  = 8
	minRSABits = 2048
)

// NewSigningRequest makes a key and the request (PKCS #10, RFC 2986) for a client
// certificate of that role, both in PEM. The key is for whoever asked and never
// leaves him.
func NewSigningRequest(role Role) (request, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make signing request: %w", err)
	}
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: role.CommonName()}}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, private)
	if err != nil {
		return nil, nil, fmt.Errorf("make signing request: %w", err)
	}
	key, err = encodeKey(private)
	return pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der}), key, err
}

// CheckSigningRequest reads a request that came from elsewhere and returns its
// public key. It must ask for a client certificate of exactly that role and for
// nothing else: no other names, no extensions; and be signed with its own key,
// which must be one that is hard to guess.
func CheckSigningRequest(request []byte, role Role) (crypto.PublicKey, error) {
	block, rest := pem.Decode(request)
	if block == nil || block.Type != pemRequest || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("read signing request: it is not one PEM block of type %s", pemRequest)
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read signing request: %w", err)
	}
	err = errors.Join(checkAsked(r, role), checkPublic(r.PublicKey))
	if err == nil {
		// Only now: with a huge key this would take seconds.
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("check signing request: %w", err)
	}
	return r.PublicKey, nil
}

func checkAsked(r *x509.CertificateRequest, role Role) error {
	switch {
	case r.Subject.String() != "CN="+role.CommonName() || len(r.Subject.Names) != 1:
		return fmt.Errorf("it asks for the name %q and not for CN=%s alone", r.Subject, role.CommonName())
	case len(r.Extensions) > 0:
		return errors.New("it asks for extensions, such as further names; only the common name is given out")
	}
	return nil
}

func checkPublic(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize >= elliptic.P256().Params().BitSize {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= minRSABits && bits <= 4*minRSABits {
			return nil
		}
	}
	return fmt.Errorf("a %T of that size is not accepted: use ECDSA P-256 or larger, Ed25519, or RSA of %d bits", key, minRSABits)
}

// SignRequest issues a client certificate for a request of another cluster, with
// the CA in dir. The role must be Remote with a cluster: nothing that comes from
// elsewhere becomes a server or a local client. The validity is one year when
// zero. It is recorded like every certificate and can be revoked by its name.
func SignRequest(dir string, request []byte, role Role, validity time.Duration) ([]byte, error) {
	if role.Kind != Remote || CheckCluster(role.Cluster) != nil {
		return nil, fmt.Errorf("sign request: the role %q is not that of a remote cluster", role.CommonName())
	}
	req := IssueRequest{Kind: Remote, Cluster: role.Cluster, Validity: validity}
	if err := req.Validate(); err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	public, err := CheckSigningRequest(request, role)
	if err != nil {
		return nil, err
	}
	var cert []byte
	err = withAuthority(dir, func(a *authority) (err error) {
		cert, err = a.issue(role.CommonName(), leafTemplate(req, a.issuer.cert, a.now), public)
		return err
	})
	return cert, err
}

// CheckSigned checks a certificate that was issued elsewhere for our key: that
// it belongs to the key, has the role, is a client's, and verifies with the CA
// bundle now. All are PEM.
func CheckSigned(cert, key, bundle []byte, role Role) error {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("check issued certificate: %w", err)
	}
	if len(pair.Certificate) > 1 {
		return errors.New("check issued certificate: it comes with others; only one that a CA of the bundle signed itself is taken")
	}
	cas, err := ParseBundle(bundle)
	if err != nil {
		return err
	}
	if got := pair.Leaf.Subject.CommonName; got != role.CommonName() {
		return fmt.Errorf("check issued certificate: it is for %q and not for %q", got, role.CommonName())
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: poolOf(cas), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err := errors.Join(err, checkUsage(pair.Leaf, role.Kind)); err != nil {
		return fmt.Errorf("check issued certificate: %w", err)
	}
	return nil
}

// ParseBundle reads a PEM file of one to eight CA certificates that came from
// elsewhere. At least one must be valid now.
func ParseBundle(bundle []byte) ([]*x509.Certificate, error) {
	cas, err := parseCerts(bundle)
	if err != nil {
		return nil, fmt.Errorf("read CA bundle: %w", err)
	}
	if len(cas) > maxBundle {
		return nil, fmt.Errorf("read CA bundle: it holds %d certificates, at most %d are taken", len(cas), maxBundle)
	}
	usable := errors.New("none of its CAs is valid")
	for _, c := range cas {
		if !c.IsCA {
			return nil, fmt.Errorf("read CA bundle: %q is not a CA certificate", c.Subject.CommonName)
		}
		if err := checkPublic(c.PublicKey); err != nil {
			return nil, fmt.Errorf("read CA bundle: key of %q: %w", c.Subject.CommonName, err)
		}
		if err := checkValidNow(c, time.Now()); err == nil {
			usable = nil
		}
	}
	if usable != nil {
		return nil, fmt.Errorf("read CA bundle: %w", usable)
	}
	return cas, nil
}

// Bundle returns ca.crt of a CA directory in PEM, after checking that the CA can
// issue, and the certificate of the CA that does.
func Bundle(dir string) (bundle []byte, active *x509.Certificate, err error) {
	ca, err := loadIssuer(dir, time.Now())
	if err != nil {
		return nil, nil, err
	}
	cas, err := readCerts(filepath.Join(dir, caCertFile))
	return encodeCerts(cas), ca.cert, err
}

// Ephemeral returns a server certificate of the CA in dir for one host name,
// followed by the CA itself, with a key that is never written anywhere.
func Ephemeral(dir, host string, validity time.Duration) (tls.Certificate, error) {
	now := time.Now()
	ca, err := loadIssuer(dir, now)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate for %s: %w", host, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject:               pkix.Name{CommonName: host},
		DNSNames:              []string{host},
		NotBefore:             now.Add(-clockTolerance),
		NotAfter:              earlier(now.Add(validity), ca.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, ca.cert, key.Public(), ca.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate for %s: %w", host, err)
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key}, nil
}
