package peers

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"
)

// parts are those of a certificate's outer sequence.
type parts struct {
	TBS, Algorithm asn1.RawValue
	Signature      asn1.BitString
}

func partsOf(t testing.TB, der []byte) (p parts) {
	t.Helper()
	if _, err := asn1.Unmarshal(der, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// sequence is a sequence of what is encoded already.
func sequence(t testing.TB, content ...[]byte) []byte {
	return encode(t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: bytes.Join(content, nil)})
}

// reencoded are other encodings of a certificate that an ECDSA key signed, with
// the same signed part: none of them needs the key.
func reencoded(t testing.TB, der []byte, signer *ecdsa.PublicKey) map[string][]byte {
	t.Helper()
	p := partsOf(t, der)
	var s struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(p.Signature.Bytes, &s); err != nil {
		t.Fatal(err)
	}
	tbs, algorithm, signature := p.TBS.FullBytes, p.Algorithm.FullBytes, p.Signature.Bytes
	shifted := new(big.Int).Lsh(new(big.Int).SetBytes(signature), 2).Bytes() // it begins with 0x30
	s.S.Sub(signer.Params().N, s.S)
	other := encode(t, s)
	return map[string][]byte{
		"null appended":      sequence(t, tbs, algorithm, encode(t, p.Signature), []byte{5, 0}),
		"string appended":    sequence(t, tbs, algorithm, encode(t, p.Signature), encode(t, "x")),
		"unused bits":        sequence(t, tbs, algorithm, encode(t, asn1.BitString{Bytes: shifted, BitLength: 8*len(shifted) - 2})),
		"other half":         sequence(t, tbs, algorithm, encode(t, asn1.BitString{Bytes: other, BitLength: 8 * len(other)})),
		"other half, longer": sequence(t, tbs, algorithm, encode(t, asn1.BitString{Bytes: other, BitLength: 8 * len(other)}), []byte{5, 0}),
	}
}

func mustParse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func reasonOf(tab *Table, chain ...*x509.Certificate) Reason {
	_, _, err := tab.Authenticate(chain, time.Now())
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused.Reason
	}
	return ""
}

// TestRevokedCertificatesInOtherClothes encodes revoked certificates again: only
// a part of a certificate is signed, and an ECDSA signature has two forms.
func TestRevokedCertificatesInOtherClothes(t *testing.T) {
	west := newAuthority(t, "CA")
	below := west.intermediate("below")
	leaf, deep := west.leaf(withURI(westURI)), below.leaf(withURI(westURI))
	without := table(t, peer("west", Identity{URI: westURI}, west))
	listed := func(c *x509.Certificate) *Table {
		p := peer("west", Identity{URI: westURI}, west)
		p.RevokedCertificates = append(p.RevokedCertificates, sha256.Sum256(c.Raw))
		return table(t, p)
	}
	signer := west.cert.PublicKey.(*ecdsa.PublicKey)
	for _, test := range []struct {
		what  string
		of    *x509.Certificate
		chain func(c *x509.Certificate) []*x509.Certificate
	}{
		{"leaf", leaf, func(c *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{c} }},
		{"link", below.cert, func(c *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{deep, c} }},
	} {
		if r := reasonOf(listed(test.of), test.chain(test.of)...); r != Revoked {
			t.Errorf("%s as it was issued: %q", test.what, r)
		}
		if r := reasonOf(listed(west.leaf(withURI(westURI))), test.chain(test.of)...); r != "" {
			t.Errorf("%s while another is revoked: %q", test.what, r)
		}
		for name, der := range reencoded(t, test.of.Raw, signer) {
			c := mustParse(t, der)
			if err := c.CheckSignatureFrom(west.cert); err != nil {
				t.Fatalf("%s, %s: %v", test.what, name, err)
			}
			want, plain := Encoding, Encoding
			if name == "other half" {
				want, plain = Revoked, ""
			}
			if r := reasonOf(listed(test.of), test.chain(c)...); r != want {
				t.Errorf("%s, %s: %q, want %q", test.what, name, r, want)
			}
			if r := reasonOf(without, test.chain(c)...); r != plain {
				t.Errorf("%s, %s, not revoked: %q, want %q", test.what, name, r, plain)
			}
		}
	}
}

// TestRevokedLinkLeavesOtherChains: who has another way to the CA stays.
func TestRevokedLinkLeavesOtherChains(t *testing.T) {
	west := newAuthority(t, "CA")
	below := west.intermediate("below")
	renewed := west.sign(caTemplate("below"), below.key.Public())
	p := peer("west", Identity{URI: westURI}, west)
	p.RevokedCertificates = append(p.RevokedCertificates, sha256.Sum256(below.cert.Raw))
	tab, leaf := table(t, p), below.leaf(withURI(westURI))
	if r := reasonOf(tab, leaf, below.cert); r != Revoked {
		t.Errorf("by the revoked link: %q", r)
	}
	if r := reasonOf(tab, leaf, below.cert, renewed); r != "" {
		t.Errorf("by another link: %q", r)
	}
}

// TestRevokedByOneOfTwoPeersIsStillAmbiguous: revoking a certificate at one of
// those whose it could be does not make it the other's.
func TestRevokedByOneOfTwoPeersIsStillAmbiguous(t *testing.T) {
	ca := newAuthority(t, "CA")
	leaf := ca.leaf(withURI(westURI), withDNS("north.example"))
	west, north := peer("west", Identity{URI: westURI}, ca), peer("north", Identity{DNS: "north.example"}, ca)
	west.SharesCAWith, north.SharesCAWith = []string{"north"}, []string{"west"}
	west.RevokedCertificates = append(west.RevokedCertificates, sha256.Sum256(leaf.Raw))
	if r := reasonOf(table(t, west, north), leaf); r != Ambiguous {
		t.Errorf("%q", r)
	}
}

// FuzzRevoked changes bytes outside of what is signed: whatever is let in when
// nothing is revoked is the revoked certificate once it is.
func FuzzRevoked(f *testing.F) {
	west := newAuthority(f, "CA")
	leaf := west.leaf(withURI(westURI))
	one, two := peer("west", Identity{URI: westURI}, west), peer("west", Identity{URI: westURI}, west)
	two.RevokedCertificates = append(two.RevokedCertificates, sha256.Sum256(leaf.Raw))
	open, errOpen := NewTable(one)
	closed, errClosed := NewTable(two)
	if err := errors.Join(errOpen, errClosed); err != nil {
		f.Fatal(err)
	}
	forms := reencoded(f, leaf.Raw, west.cert.PublicKey.(*ecdsa.PublicKey))
	f.Add(false, uint8(0), uint8(0), []byte{})
	f.Add(true, uint8(0), uint8(0), []byte{})
	f.Add(false, uint8(255), uint8(0), []byte{5, 0})
	f.Add(true, uint8(14), uint8(1), []byte{1})
	f.Fuzz(func(t *testing.T, other bool, at, drop uint8, insert []byte) {
		der := leaf.Raw
		if other {
			der = forms["other half"]
		}
		p := partsOf(t, der)
		tail := append(bytes.Clone(p.Algorithm.FullBytes), encode(t, p.Signature)...)
		from := min(int(at), len(tail))
		to := min(from+int(drop), len(tail))
		c, err := x509.ParseCertificate(sequence(t, p.TBS.FullBytes, tail[:from], insert, tail[to:]))
		if err != nil {
			return
		}
		if reasonOf(open, c) == "" && reasonOf(closed, c) != Revoked {
			t.Fatalf("let in although revoked: %x", c.Raw)
		}
	})
}
