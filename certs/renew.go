package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// RenewOptions say which certificates Renew looks at.
type RenewOptions struct {
	// Names are the certificates to look at, without .crt, such as
	// server-east; all of the directory when empty.
	Names []string
	// Force renews what is not due yet.
	Force bool
}

// Renewal is what Renew found out about one certificate and did with it.
type Renewal struct {
	Files
	Name    string    `json:"name"`
	Due     time.Time `json:"due"` // of the certificate that is now in force: half of its life
	Renewed bool      `json:"renewed"`
	// Reason says why it was renewed, or why it should be and could not.
	Reason string `json:"reason,omitempty"`
}

// Renew issues certificates in dir anew: the same name, names of hosts and
// usages, a new key and as long a life as before. A certificate is due when half
// of its life is over, when a CA other than the active one signed it, when it
// begins in the future, or when its key does not belong to it (a renewal was
// interrupted). Certificates of
// which dir holds no key are somebody else's and left alone.
//
// One certificate that cannot be renewed does not keep the others from it; the
// error joins all that failed.
func Renew(dir string, opts RenewOptions) ([]Renewal, error) {
	var out []Renewal
	err := withAuthority(dir, func(a *authority) error {
		cas, err := readCerts(a.path(caCertFile))
		if err != nil {
			return err
		}
		var errs []error
		for _, l := range a.renewable(opts.Names, cas) {
			done, err := a.renew(l, opts.Force)
			out, errs = append(out, done), append(errs, err)
		}
		return errors.Join(append(errs, missing(opts.Names, out, dir))...)
	})
	return out, err
}

func missing(names []string, found []Renewal, dir string) error {
	var errs []error
	for _, name := range names {
		if !slices.ContainsFunc(found, func(r Renewal) bool { return r.Name == name }) {
			errs = append(errs, fmt.Errorf("renew certificate: %s holds no %s.crt with a key that its CA has issued", dir, name))
		}
	}
	return errors.Join(errs...)
}

// renewable are the leaves of the directory that one of its CAs has signed and
// that have a key beside them.
func (a *authority) renewable(names []string, cas []*x509.Certificate) []leaf {
	var out []leaf
	for _, l := range leavesIn(a.dir) {
		_, err := os.Stat(a.path(l.name + ".key"))
		if len(names) > 0 && !slices.Contains(names, l.name) || errors.Is(err, fs.ErrNotExist) || signerOf(l.cert, cas) == nil {
			continue
		}
		out = append(out, l)
	}
	return out
}

func (a *authority) renew(l leaf, force bool) (Renewal, error) {
	out := Renewal{Name: l.name, Due: halfLife(l.cert), Reason: a.reason(l, force)}
	out.Files = Files{Cert: a.path(l.name + ".crt"), Key: a.path(l.name + ".key"), CA: a.path(caCertFile), NotAfter: l.cert.NotAfter}
	if out.Reason == "" {
		return out, nil
	}
	tmpl := a.successor(l.cert)
	if out.Reason == reasonHalf && tmpl.NotAfter.Equal(a.issuer.cert.NotAfter) && tmpl.NotAfter.Sub(l.cert.NotAfter) < time.Second {
		return out, fmt.Errorf("renew %s: %w", l.name, errCAEnds)
	}
	files, err := a.issueFiles(l.name, tmpl)
	if err != nil {
		return out, fmt.Errorf("renew %s: %w", l.name, err)
	}
	out.Files, out.Renewed, out.Due = files, true, halfLife(tmpl)
	return out, nil
}

// errCAEnds: a new certificate would end on the same day.
var errCAEnds = errors.New("the CA ends as soon as the certificate does; replace the CA with: clustermesh certs rotate --dir DIR prepare")

const (
	reasonForced   = "forced"
	reasonHalf     = "half of its life is over"
	reasonOtherCA  = "signed by a CA that does not issue any more"
	reasonMismatch = "its key does not belong to it"
	reasonFuture   = "it is not valid yet: the clock was ahead when it was issued"
)

func (a *authority) reason(l leaf, force bool) string {
	_, err := tls.LoadX509KeyPair(a.path(l.name+".crt"), a.path(l.name+".key"))
	switch {
	case err != nil:
		return reasonMismatch
	case l.cert.CheckSignatureFrom(a.issuer.cert) != nil:
		return reasonOtherCA
	case force:
		return reasonForced
	case a.now.Before(l.cert.NotBefore):
		return reasonFuture
	case !a.now.Before(halfLife(l.cert)):
		return reasonHalf
	}
	return ""
}

// halfLife counts from when a certificate was issued, which is not when it
// begins: otherwise one of a few minutes would be due as soon as it was made.
func halfLife(c *x509.Certificate) time.Time {
	issued := c.NotBefore.Add(clockTolerance)
	return issued.Add(c.NotAfter.Sub(issued) / 2)
}

// successor is the template of the certificate that takes the place of c.
func (a *authority) successor(c *x509.Certificate) *x509.Certificate {
	return &x509.Certificate{
		Subject:               c.Subject,
		DNSNames:              c.DNSNames,
		IPAddresses:           c.IPAddresses,
		URIs:                  c.URIs,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           c.ExtKeyUsage,
		BasicConstraintsValid: true,
		NotBefore:             a.now.Add(-clockTolerance),
		NotAfter:              earlier(a.now.Add(a.lifeLike(c)), a.issuer.cert.NotAfter),
	}
}

// lifeLike is how long c was meant to be valid. One that ended with its CA was
// cut short, and what was meant is not known.
func (a *authority) lifeLike(c *x509.Certificate) time.Duration {
	cas, err := readCerts(filepath.Join(a.dir, caCertFile))
	if ca := signerOf(c, cas); err == nil && ca != nil && c.NotAfter.Equal(ca.NotAfter) {
		return defaultLife
	}
	return c.NotAfter.Sub(c.NotBefore) - clockTolerance
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
