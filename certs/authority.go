package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// authority is the CA directory while it is held against other writers.
type authority struct {
	dir    string
	issuer issuer
	now    time.Time
}

// withAuthority runs fn while it holds the CA in dir.
func withAuthority(dir string, fn func(*authority) error) error {
	return withDir(dir, func(now time.Time) error {
		ca, err := loadIssuer(dir, now)
		if err != nil {
			return err
		}
		return fn(&authority{dir: dir, issuer: ca, now: now})
	})
}

// withDir runs fn while no other command writes to the CA directory.
func withDir(dir string, fn func(now time.Time) error) error {
	if err := disk.Ensure(dir); err != nil {
		return err
	}
	unlock, err := disk.Lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	return fn(time.Now())
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// issueFiles makes a key and a certificate of the template and writes them as
// <name>.key and <name>.crt.
func (a *authority) issueFiles(name string, tmpl *x509.Certificate) (Files, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, fmt.Errorf("issue certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Files{}, err
	}
	certPEM, err := a.issue(name, tmpl, key.Public())
	if err != nil {
		return Files{}, err
	}
	out := Files{Cert: a.path(name + ".crt"), Key: a.path(name + ".key"), CA: a.path(caCertFile), NotAfter: tmpl.NotAfter.UTC().Truncate(time.Second)}
	if err := disk.Replace(out.Key, disk.KeyMode, keyPEM); err != nil {
		return Files{}, err
	}
	return out, disk.Replace(out.Cert, disk.CertMode, certPEM)
}

// issue signs the template for a public key. It is recorded before anybody can
// have the certificate: whatever is valid is in the record.
func (a *authority) issue(name string, tmpl *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.issuer.cert, public, a.issuer.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	if err := a.record(name, cert); err != nil {
		return nil, err
	}
	return encodeCert(der), nil
}
