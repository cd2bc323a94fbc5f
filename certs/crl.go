package certs

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const pemCRL = "X509 CRL"

// parseCRLs reads every revocation list of a PEM file (RFC 5280, section 5), as
// strictly as parseCerts reads certificates. During a rotation there is one list
// per CA.
func parseCRLs(data []byte) ([]*x509.RevocationList, error) {
	var lists []*x509.RevocationList
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		block, tail := pem.Decode(rest)
		if block == nil || block.Type != pemCRL || skipped(rest, tail) {
			return nil, fmt.Errorf("entry %d: no complete PEM block of type %s; the file may be cut off or of another format", len(lists)+1, pemCRL)
		}
		list, err := parseCRL(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", len(lists)+1, err)
		}
		lists, rest = append(lists, list), tail
	}
	if len(lists) == 0 {
		return nil, errors.New("it holds no PEM revocation list")
	}
	return lists, nil
}

func parseCRL(der []byte) (*x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	// A critical extension makes it a partial list, which would be taken for
	// the whole here.
	for _, e := range list.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("critical extension %s is not understood", e.Id)
		}
	}
	return list, nil
}

// parseRevoked reads revocation lists and keeps those that one of the CAs has
// signed. A file in which none is, is the file of somebody else. Lists past
// their next update still count: forgetting who is revoked helps nobody.
func parseRevoked(data []byte, cas []*x509.Certificate) (revoked, error) {
	lists, err := parseCRLs(data)
	if err != nil {
		return nil, err
	}
	out := revoked{}
	for _, list := range lists {
		if ca := crlSigner(list, cas); ca != nil {
			out.add(string(ca.RawSubjectPublicKeyInfo), list)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no list in it is signed by a CA of the bundle")
	}
	return out, nil
}

func (r revoked) add(key string, list *x509.RevocationList) {
	if r[key] == nil {
		r[key] = map[string]bool{}
	}
	for _, e := range list.RevokedCertificateEntries {
		r[key][fmt.Sprintf("%x", e.SerialNumber)] = true
	}
}

func crlSigner(list *x509.RevocationList, cas []*x509.Certificate) *x509.Certificate {
	for _, ca := range cas {
		if list.CheckSignatureFrom(ca) == nil {
			return ca
		}
	}
	return nil
}

// signCRL makes a CA's list of entries, which follows the list before it (nil
// for the first). It is due only when the CA ends: whoever publishes a list here
// does it by replacing the file, and no reader waits for a date.
func signCRL(ca issuer, before *x509.RevocationList, entries []x509.RevocationListEntry, now time.Time) ([]byte, error) {
	number := big.NewInt(1)
	if before != nil && before.Number != nil {
		number.Add(before.Number, number)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number:                    number,
		ThisUpdate:                now.Add(-clockTolerance),
		NextUpdate:                ca.cert.NotAfter,
		RevokedCertificateEntries: entries,
	}, ca.cert, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list of %q: %w", ca.cert.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCRL, Bytes: der}), nil
}
