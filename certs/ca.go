package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

const (
	caCertFile = "ca.crt"
	caKeyFile  = "ca.key"

	day            = 24 * time.Hour
	defaultCALife  = 3650 * day
	defaultLife    = 365 * day
	clockTolerance = 5 * time.Minute // certificates begin this much in the past, for peers whose clock is behind
)

// CAOptions are the free choices of a new CA. The zero value is usable.
type CAOptions struct {
	// Name is the CA's common name, "clustermesh CA" when empty.
	Name string
	// Validity is how long the CA is valid from now, ten years when zero.
	Validity time.Duration
}

// InitCA creates a certificate authority in dir: ca.crt and ca.key (ECDSA P-256,
// key readable by its owner alone). It creates dir with mode 0700 when missing
// and never overwrites: an existing ca.crt or ca.key is an error that wraps
// fs.ErrExist.
func InitCA(dir string, opts CAOptions) error {
	if opts.Validity < 0 {
		return fmt.Errorf("create CA: validity %s is negative", opts.Validity)
	}
	if err := disk.Ensure(dir); err != nil {
		return err
	}
	for _, name := range []string{caCertFile, caKeyFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return caExists(filepath.Join(dir, name))
		}
	}
	cert, key, err := newCA(opts)
	if err != nil {
		return fmt.Errorf("create CA: %w", err)
	}
	return storeCA(dir, cert, key)
}

func caExists(path string) error {
	return fmt.Errorf("create CA: %s is there already (%w); every certificate issued so far depends on it, so move it away first if it is really to be replaced", path, fs.ErrExist)
}

// storeCA writes the key first: whoever loses a race against a second InitCA
// loses it before his certificate is visible.
func storeCA(dir string, cert, key []byte) error {
	keyPath := filepath.Join(dir, caKeyFile)
	if err := disk.Create(keyPath, disk.KeyMode, key); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return caExists(keyPath)
		}
		return err
	}
	if err := disk.Create(filepath.Join(dir, caCertFile), disk.CertMode, cert); err != nil {
		return errors.Join(err, os.Remove(keyPath))
	}
	return nil
}

func newCA(opts CAOptions) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	tmpl := caTemplate(opts, time.Now())
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return encodeCert(der), keyPEM, err
}

func caTemplate(opts CAOptions, now time.Time) *x509.Certificate {
	name, life := opts.Name, opts.Validity
	if name == "" {
		name = "clustermesh CA"
	}
	if life == 0 {
		life = defaultCALife
	}
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-clockTolerance),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
}

// issuer is a CA that can sign.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// loadIssuer returns the CA that signs: the one of ca.crt to which ca.key
// belongs. Where it stands in the bundle does not matter, so replacing ca.key
// is all it takes to change over to another CA, in one step.
func loadIssuer(dir string, now time.Time) (issuer, error) {
	ca, err := pairIssuer(filepath.Join(dir, caCertFile), filepath.Join(dir, caKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return issuer{}, fmt.Errorf("load CA: %w; create one with: clustermesh certs init --dir %s", err, dir)
	}
	if err != nil {
		return issuer{}, fmt.Errorf("load CA: %w", err)
	}
	if err := checkIssuer(ca.cert, now); err != nil {
		return issuer{}, fmt.Errorf("load CA from %s: %w", filepath.Join(dir, caCertFile), err)
	}
	return ca, nil
}

// pairIssuer finds the certificate of a bundle to which the key belongs.
func pairIssuer(bundle, keyFile string) (issuer, error) {
	cas, err := readCerts(bundle)
	if err != nil {
		return issuer{}, err
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return issuer{}, err
	}
	var mismatch error
	for _, c := range cas {
		pair, err := tls.X509KeyPair(encodeCert(c.Raw), keyPEM)
		if err != nil {
			mismatch = err
			continue
		}
		key, ok := pair.PrivateKey.(crypto.Signer)
		if !ok {
			return issuer{}, fmt.Errorf("key %s cannot sign", keyFile)
		}
		return issuer{cert: c, key: key}, nil
	}
	return issuer{}, fmt.Errorf("use %s with %s: %w", keyFile, bundle, mismatch)
}

func checkIssuer(cert *x509.Certificate, now time.Time) error {
	if !cert.IsCA {
		return fmt.Errorf("%q is not a CA certificate", cert.Subject.CommonName)
	}
	return checkValidNow(cert, now)
}

func checkValidNow(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(cert.NotBefore):
		return fmt.Errorf("certificate %q is not valid before %s; check the clock of this machine", cert.Subject.CommonName, stamp(cert.NotBefore))
	case now.After(cert.NotAfter):
		return fmt.Errorf("certificate %q expired on %s", cert.Subject.CommonName, stamp(cert.NotAfter))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
