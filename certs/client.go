package certs

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
)

var (
	// ErrNotForClients is wrapped by the error of a handshake with a client whose
	// certificate is a CA's, or does not itself say that it is for TLS clients.
	ErrNotForClients = errors.New("certificate is not plainly one for TLS clients (extended key usage client authentication, key usage digital signature, no CA)")
	// ErrWeakKey is wrapped by the error of a handshake with a client whose
	// certificate, or one of its chain, has a key that is out of use.
	ErrWeakKey = errors.New("key is too weak")
)

// maxChain bounds what a stranger can make us verify.
const maxChain = 5

// onlyClient reports whether a certificate may be shown by a client: it names
// that usage itself (any usage would do as a server too), and it signs nothing
// but handshakes.
func onlyClient(c *x509.Certificate) bool {
	signs := c.KeyUsage == 0 || c.KeyUsage&x509.KeyUsageDigitalSignature != 0
	return !c.IsCA && signs && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}

// singleName reports whether the subject has one common name: of several, each
// reader could take another.
func singleName(c *x509.Certificate) bool {
	commonName, n := asn1.ObjectIdentifier{2, 5, 4, 3}, 0
	for _, a := range c.Subject.Names {
		if a.Type.Equal(commonName) {
			n++
		}
	}
	return n == 1
}
