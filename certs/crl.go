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
func parseRevoked(data []byte, cas []*x509.Certificate) (revoked, editions, error) {
	lists, err := parseCRLs(data)
	if err != nil {
		return nil, nil, err
	}
	out, newest := revoked{}, editions{}
	for _, list := range lists {
		if ca := crlSigner(list, cas); ca != nil {
			key := string(ca.RawSubjectPublicKeyInfo)
			out.add(key, list)
			newest.add(key, list)
		}
	}
	if len(out) == 0 {
		return nil, nil, errors.New("no list in it is signed by a CA of the bundle")
	}
	return out, newest, nil
}

func (r revoked) add(key string, list *x509.RevocationList) {
	if r[key] == nil {
		r[key] = map[string]bool{}
	}
	for _, e := range list.RevokedCertificateEntries {
		r[key][fmt.Sprintf("%x", e.SerialNumber)] = true
	}
}

// edition tells an older list of a CA from a newer one.
type edition struct {
	number *big.Int // nil: tools of others leave it out
	at     time.Time
}

func (e edition) olderThan(o edition) bool {
	if e.number != nil && o.number != nil && e.number.Cmp(o.number) != 0 {
		return e.number.Cmp(o.number) < 0
	}
	return e.at.Before(o.at)
}

// String describes the edition to an operator.
func (e edition) String() string {
	if e.number == nil {
		return "of " + stamp(e.at)
	}
	return fmt.Sprintf("number %s of %s", e.number, stamp(e.at))
}

// editions are the newest lists of CAs, by the CAs' public keys.
type editions map[string]edition

func (e editions) add(key string, list *x509.RevocationList) {
	if now := (edition{list.Number, list.ThisUpdate}); e[key].olderThan(now) {
		e[key] = now
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
//
// Numbers are of the clock, as long as that goes forward: a list that is made
// anew after the file was lost must not look older than the lost one to whoever
// had that in force.
func signCRL(ca issuer, before *x509.RevocationList, entries []x509.RevocationListEntry, now time.Time) ([]byte, error) {
	number := big.NewInt(now.UnixNano())
	if before != nil && before.Number != nil && before.Number.Cmp(number) >= 0 {
		number.Add(before.Number, big.NewInt(1))
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
