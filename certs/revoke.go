package certs

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

const crlFile = "ca.crl"

// RevokeRequest selects certificates of a CA directory. All selections add up;
// an empty request revokes nothing and writes the list as it stands.
type RevokeRequest struct {
	Names   []string // every valid certificate issued under this name, such as remote-west
	Serials []string // in hex, as Inspect shows them
	Files   []string // certificate files
}

// Revoke adds certificates to ca.crl in dir, which it creates when missing, and
// returns those that it selected. The list is signed by the CAs in dir and
// replaced in one step; servers and clients that were given the file refuse
// these certificates from the next handshake on.
func Revoke(dir string, req RevokeRequest) ([]Issued, error) {
	var out []Issued
	err := withDir(dir, func(now time.Time) error {
		r, err := readRotation(dir)
		if err != nil {
			return err
		}
		known, err := issuedBy(dir, now)
		if err != nil {
			return err
		}
		if out, err = r.selected(req, known); err != nil {
			return err
		}
		for i := range out {
			out[i].Revoked = true
		}
		if err := r.writeCRL(out, now); err != nil {
			return err
		}
		before := slices.DeleteFunc(known, func(i Issued) bool { return !i.Revoked }) // some perhaps from when it was not recorded
		return remember(dir, append(before, out...))
	})
	if err != nil {
		return nil, fmt.Errorf("revoke certificates: %w", err)
	}
	return out, nil
}

// remember marks certificates as revoked in issued.json, from which a list that
// got lost is made again.
func remember(dir string, gone []Issued) error {
	if len(gone) == 0 {
		return nil
	}
	list, err := readIssued(dir)
	if err != nil {
		return err
	}
	for _, g := range gone {
		i := slices.IndexFunc(list, func(i Issued) bool { return i.Serial == g.Serial && i.Issuer == g.Issuer })
		if i < 0 {
			i, list = len(list), append(list, g)
		}
		list[i].Revoked = true
	}
	return writeIssued(dir, list)
}

func (r rotation) selected(req RevokeRequest, known []Issued) ([]Issued, error) {
	var out []Issued
	var errs []error
	pick := func(what, value string, match func(Issued) bool) {
		before := len(out)
		for _, i := range known {
			if match(i) {
				out = append(out, i)
			}
		}
		if len(out) == before {
			errs = append(errs, fmt.Errorf("no valid certificate with %s %q was issued in %s; clustermesh certs inspect --dir %s lists them", what, value, r.dir, r.dir))
		}
	}
	for _, name := range req.Names {
		pick("name", name, func(i Issued) bool { return i.Name == name })
	}
	for _, serial := range req.Serials {
		pick("serial", serial, func(i Issued) bool { return i.Serial == serial })
	}
	for _, file := range req.Files {
		i, err := r.ofFile(file)
		out, errs = append(out, i), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func (r rotation) ofFile(file string) (Issued, error) {
	found, err := readCerts(file)
	if err != nil {
		return Issued{}, err
	}
	ca := signerOf(found[0], r.bundle)
	if ca == nil || found[0].IsCA {
		return Issued{}, fmt.Errorf("%s was not issued by the CA in %s", file, r.dir)
	}
	c := found[0]
	return Issued{Name: c.Subject.CommonName, Serial: serialOf(c), Issuer: keyID(ca), Issued: c.NotBefore, NotAfter: c.NotAfter}, nil
}

// refreshCRL gives every CA of the directory its list, if there is a list at all.
func (r rotation) refreshCRL(now time.Time) error {
	if _, err := os.Stat(r.path(crlFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return r.writeCRL(nil, now)
}

func (r rotation) writeCRL(more []Issued, now time.Time) error {
	before, err := r.knownCRLs()
	if err != nil {
		return err
	}
	known, err := readIssued(r.dir)
	if err != nil {
		return err
	}
	known = slices.DeleteFunc(known, func(i Issued) bool { return !i.Revoked })
	var out []byte
	written := map[string]bool{}
	for _, ca := range r.issuers() {
		list, err := nextCRL(ca, before, append(known, more...), now)
		if err != nil {
			return err
		}
		out, written[keyID(ca.cert)] = append(out, list...), true
	}
	for _, i := range more {
		if !written[i.Issuer] {
			return fmt.Errorf("the key of the CA that issued %s (serial %s) is not in %s", i.Name, i.Serial, r.dir)
		}
	}
	for _, list := range before {
		// Lists of other CAs in the bundle are theirs to change.
		if ca := crlSigner(list, r.bundle); ca != nil && !written[keyID(ca)] {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCRL, Bytes: list.Raw})...)
		}
	}
	return disk.Replace(r.path(crlFile), disk.CertMode, out)
}

// knownCRLs reads ca.crl. A list in it that no CA here has signed was changed by
// somebody: to write on without it would be to forget what it revoked.
func (r rotation) knownCRLs() ([]*x509.RevocationList, error) {
	lists, err := readCRLs(r.path(crlFile))
	if err != nil {
		return nil, err
	}
	cas := r.bundle
	if r.old.cert != nil {
		cas = append(slices.Clone(cas), r.old.cert)
	}
	for i, list := range lists {
		if crlSigner(list, cas) == nil {
			return nil, fmt.Errorf("read revocation list %s: entry %d is not signed by a CA in %s; %s", r.path(crlFile), i+1, r.path(caCertFile), crlRemedy)
		}
	}
	return lists, nil
}

const crlRemedy = "restore it from a backup, for it says what must not be believed"

func readCRLs(path string) ([]*x509.RevocationList, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lists, err := parseCRLs(data)
	if err != nil {
		return nil, fmt.Errorf("read revocation list %s: %w; %s", path, err, crlRemedy)
	}
	return lists, nil
}

// nextCRL is the list of one CA with what is to be added to it; the list as it
// was when nothing is.
func nextCRL(ca issuer, before []*x509.RevocationList, more []Issued, now time.Time) ([]byte, error) {
	last := latest(ca, before)
	var entries []x509.RevocationListEntry
	if last != nil {
		entries = last.RevokedCertificateEntries
	}
	added := false
	for _, i := range more {
		serial, ok := new(big.Int).SetString(i.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("serial %q is not a hexadecimal number", i.Serial)
		}
		has := slices.ContainsFunc(entries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(serial) == 0 })
		if i.Issuer == keyID(ca.cert) && !has {
			entries, added = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now}), true
		}
	}
	if last != nil && !added {
		return pem.EncodeToMemory(&pem.Block{Type: pemCRL, Bytes: last.Raw}), nil
	}
	return signCRL(ca, last, entries, now)
}

// latest is the list of this CA with the highest number.
func latest(ca issuer, lists []*x509.RevocationList) *x509.RevocationList {
	var out *x509.RevocationList
	for _, l := range lists {
		newer := out == nil || l.Number != nil && out.Number != nil && l.Number.Cmp(out.Number) > 0
		if l.CheckSignatureFrom(ca.cert) == nil && newer {
			out = l
		}
	}
	return out
}
