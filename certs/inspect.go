package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"time"
)

// Info is what a person wants to know of a certificate.
type Info struct {
	File        string    `json:"file"`
	Kind        Kind      `json:"kind"`
	Cluster     string    `json:"cluster,omitempty"` // of a remote or local certificate
	Subject     string    `json:"subject"`
	SANs        []string  `json:"sans,omitempty"`
	Issuer      string    `json:"issuer"`
	SelfSigned  bool      `json:"selfSigned,omitempty"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	Fingerprint string    `json:"sha256"` // of the DER encoding, in hex
}

// Valid reports whether the certificate is inside its validity period at now.
func (i Info) Valid(now time.Time) bool {
	return !now.Before(i.NotBefore) && !now.After(i.NotAfter)
}

// Inspect describes every certificate of a PEM file in the order of the file.
func Inspect(file string) ([]Info, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("inspect certificate: %w", err)
	}
	parsed, err := parseCerts(data)
	if err != nil {
		return nil, fmt.Errorf("inspect certificate %s: %w", file, err)
	}
	var infos []Info
	for _, c := range parsed {
		infos = append(infos, describe(file, c))
	}
	return infos, nil
}

func describe(file string, c *x509.Certificate) Info {
	kind, cluster := classify(c)
	sum := sha256.Sum256(c.Raw)
	return Info{
		File:        file,
		Kind:        kind,
		Cluster:     cluster,
		Subject:     c.Subject.String(),
		SANs:        sans(c),
		Issuer:      c.Issuer.String(),
		SelfSigned:  bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil,
		Serial:      fmt.Sprintf("%x", c.SerialNumber),
		NotBefore:   c.NotBefore,
		NotAfter:    c.NotAfter,
		Fingerprint: hex.EncodeToString(sum[:]),
	}
}

func sans(c *x509.Certificate) []string {
	out := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	for _, u := range c.URIs {
		out = append(out, u.String())
	}
	return append(out, c.EmailAddresses...)
}

// classify asks what the certificate would be accepted as, so a client
// certificate without a role is Unknown, and one that may be both server and
// client, as Cilium's charts issue them, is judged by its common name first.
func classify(c *x509.Certificate) (Kind, string) {
	if c.IsCA {
		return CA, ""
	}
	if role, err := ParseRole(c.Subject.CommonName); err == nil && allows(c, x509.ExtKeyUsageClientAuth) {
		return role.Kind, role.Cluster
	}
	if allows(c, x509.ExtKeyUsageServerAuth) {
		return Server, ""
	}
	return Unknown, ""
}

// allows reports whether the certificate names the usage. No list of usages at
// all means "any" to crypto/x509, but not here.
func allows(c *x509.Certificate, usage x509.ExtKeyUsage) bool {
	return slices.Contains(c.ExtKeyUsage, usage) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}
