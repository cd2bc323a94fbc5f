package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// ownCAs are the CAs of directories, as far as peers' files are concerned.
type ownCAs struct {
	bundle []*x509.Certificate
	issued map[string]bool // SHA-256 sums, in hex, of the keys of CAs that have issued here
}

// Chains implements [peers.Own]; nobody connects here.
func (ownCAs) Chains([]*x509.Certificate, time.Time) ([][]*x509.Certificate, error) {
	return nil, errors.New("files are only read")
}

func ownCAsOf(dirs []string) (ownCAs, error) {
	own := ownCAs{issued: map[string]bool{}}
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
		if err != nil {
			return own, err
		}
		cas, err := certs.ParseBundle(data)
		if err != nil {
			return own, fmt.Errorf("read CA bundle of %s: %w", dir, err)
		}
		list, err := certs.IssuedBy(dir)
		if err != nil {
			return own, err
		}
		own.bundle = append(own.bundle, cas...)
		for _, i := range list {
			own.issued[i.Issuer] = true
		}
	}
	return own, nil
}

// peerFindings says which peers' files of a directory hold CAs that no rotation
// reaches: copies of an own one, and what was one until it was retired.
func peerFindings(dir string, dirs []string, now time.Time) ([]certs.Finding, error) {
	own, err := ownCAsOf(dirs)
	if err != nil {
		return nil, err
	}
	d := peers.NewDirectory(dir, own, nil)
	if err := d.Load(); err != nil {
		return nil, fmt.Errorf("%w; correct --peers", err)
	}
	var errs []error
	for _, p := range d.Problems() {
		errs = append(errs, errors.New(p))
	}
	var found []certs.Finding
	table, _ := d.Set().Current()
	for _, p := range table.Peers() {
		for _, ca := range p.CAs {
			f := own.finding(ca, now)
			f.Link, f.File = "peer "+p.Name, filepath.Join(dir, p.Name+".yaml")
			found = append(found, f)
		}
	}
	return found, errors.Join(errs...)
}

func (o ownCAs) finding(ca *x509.Certificate, now time.Time) certs.Finding {
	key := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	same := func(c *x509.Certificate) bool {
		return bytes.Equal(c.RawSubjectPublicKeyInfo, ca.RawSubjectPublicKeyInfo)
	}
	f := certs.Finding{At: ca.NotAfter, Harmless: true}
	switch {
	case slices.ContainsFunc(o.bundle, same):
		f.Problem = fmt.Sprintf("its file holds a copy of the own CA %q", ca.Subject.CommonName)
		f.Remedy = "write ca: own in its place, before the CA is replaced"
	case o.issued[hex.EncodeToString(key[:])]:
		f.At, f.Broken, f.Harmless = now, true, false
		f.Problem = fmt.Sprintf("its file trusts the CA %q, which issued certificates here and is not in ca.crt any more", ca.Subject.CommonName)
		f.Remedy = "write ca: own in its place"
	default:
		f.Problem = fmt.Sprintf("its CA %q is not in ca.crt", ca.Subject.CommonName)
		f.Remedy = "none if it is a CA of the peer's own; ca: own if it was retired here"
	}
	return f
}
