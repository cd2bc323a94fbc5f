package peers

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"slices"
)

// A fingerprint is the sum of a whole certificate, of which only a part is
// signed. Whoever holds a certificate can encode the rest again; such a copy must
// not pass for another certificate.

// outer is the outer sequence of a certificate (RFC 5280 section 4.1).
type outer struct {
	Signed, Algorithm asn1.RawValue
	Signature         asn1.BitString
}

// outerOf takes a certificate apart. It is false if there is more to it, or if it
// is not encoded as the CA that made it has encoded it: crypto/x509 reads past
// what follows the signature, and past unused bits of it.
func outerOf(c *x509.Certificate) (o outer, ok bool) {
	if rest, err := asn1.Unmarshal(c.Raw, &o); err != nil || len(rest) > 0 || o.Signature.BitLength%8 != 0 {
		return o, false
	}
	again, err := asn1.Marshal(o)
	return o, err == nil && bytes.Equal(again, c.Raw)
}

// sums are those that a certificate can be listed by: its own and, if an ECDSA
// key signed it, that of the copy with the other form of the signature, which
// everybody can compute (s and n-s are both right). The other kinds of signatures
// have one form.
func sums(c, signer *x509.Certificate) [][sha256.Size]byte {
	all := [][sha256.Size]byte{sha256.Sum256(c.Raw)}
	key, ok := signer.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return all
	}
	o, ok := outerOf(c)
	var signature struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(o.Signature.Bytes, &signature); !ok || err != nil {
		return all
	}
	signature.S.Sub(key.Params().N, signature.S)
	other, err := asn1.Marshal(signature)
	if err != nil {
		return all
	}
	o.Signature = asn1.BitString{Bytes: other, BitLength: 8 * len(other)}
	if der, err := asn1.Marshal(o); err == nil {
		all = append(all, sha256.Sum256(der))
	}
	return all
}

// revoked returns the first certificate of a verified chain that the operator
// listed, or nil. The last one is from our own configuration.
func (p *Peer) revoked(chain []*x509.Certificate) *x509.Certificate {
	for i, c := range chain {
		signer := chain[min(i+1, len(chain)-1)]
		if len(p.RevokedCertificates) > 0 && slices.ContainsFunc(sums(c, signer), p.lists) {
			return c
		}
	}
	return nil
}

func (p *Peer) lists(sum [sha256.Size]byte) bool { return slices.Contains(p.RevokedCertificates, sum) }
