package peers

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"slices"
)

// identities lists every name by which a certificate may be a peer's.
func identities(c *x509.Certificate) []Identity {
	var ids []Identity
	if uris := rawURIs(c); len(uris) == 1 {
		ids = append(ids, Identity{URI: uris[0]})
	}
	for _, n := range c.DNSNames {
		if id := (Identity{DNS: n}); n != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if cn, ok := commonName(c); ok {
		ids = append(ids, Identity{CommonName: cn})
	}
	return ids
}

// rawURIs returns the URI names as the certificate spells them: the parsed form
// drops differences (an empty fragment, the case of the scheme).
func rawURIs(c *x509.Certificate) []string {
	subjectAltName := asn1.ObjectIdentifier{2, 5, 29, 17}
	const uriTag = 6 // GeneralName.uniformResourceIdentifier, RFC 5280 section 4.2.1.6
	var uris []string
	for _, e := range c.Extensions {
		if !e.Id.Equal(subjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return nil
		}
		for _, n := range names {
			if n.Class == asn1.ClassContextSpecific && n.Tag == uriTag {
				uris = append(uris, string(n.Bytes))
			}
		}
	}
	return uris
}

// commonName returns the common name if the subject has exactly one.
func commonName(c *x509.Certificate) (string, bool) {
	oid := asn1.ObjectIdentifier{2, 5, 4, 3}
	n := 0
	for _, a := range c.Subject.Names {
		if a.Type.Equal(oid) {
			n++
		}
	}
	return c.Subject.CommonName, n == 1 && c.Subject.CommonName != ""
}

const minRSABits = 2048

// strong reports whether a certificate's key is of a kind and size in use today
// (NIST SP 800-57: at least 112 bits of security).
func strong(c *x509.Certificate) bool {
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521()
	case ed25519.PublicKey:
		return true
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSABits && k.E >= 65537
	}
	return false
}

// meantForClients reports whether a certificate may be shown by a TLS client:
// it names that usage itself (no list of usages at all would mean any), and it
// is no CA.
func meantForClients(c *x509.Certificate) bool {
	signs := c.KeyUsage == 0 || c.KeyUsage&x509.KeyUsageDigitalSignature != 0
	return !c.IsCA && signs && slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}
