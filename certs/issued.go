package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

const issuedFile = "issued.json"

// maxExpired bounds how many expired certificates are remembered.
const maxExpired = 4096

// Issued is a certificate that a CA directory has issued.
type Issued struct {
	Name     string    `json:"name"` // server-<cluster>, remote-<cluster>, local-<cluster> or remote
	Serial   string    `json:"serial"`
	Issuer   string    `json:"issuer"` // SHA-256 of the issuing CA's public key, in hex
	Issued   time.Time `json:"issued"`
	NotAfter time.Time `json:"notAfter"`
	Revoked  bool      `json:"revoked,omitempty"`
}

// keyID names a CA by its key: two CAs of a rotation share their subject.
func keyID(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func serialOf(c *x509.Certificate) string { return fmt.Sprintf("%x", c.SerialNumber) }

// record adds a certificate to issued.json and drops what is of no more use.
func (a *authority) record(name string, c *x509.Certificate) error {
	list, err := readIssued(a.dir)
	if err != nil {
		return err
	}
	cas, err := readCerts(a.path(caCertFile))
	if err != nil {
		return err
	}
	list = append(pruned(list, cas, a.now), Issued{Name: name, Serial: serialOf(c), Issuer: keyID(a.issuer.cert), Issued: a.now.UTC(), NotAfter: c.NotAfter})
	return writeIssued(a.dir, list)
}

func writeIssued(dir string, list []Issued) error {
	data, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return fmt.Errorf("record issued certificates: %w", err)
	}
	return disk.Replace(filepath.Join(dir, issuedFile), disk.KeyMode, append(data, '\n'))
}

// pruned leaves out expired certificates, but only those that no CA of the bundle
// stands for and, beyond a number of them, those that ended first: a clock that
// is ahead for once takes all for expired, and what is forgotten then can never
// be revoked.
func pruned(list []Issued, cas []*x509.Certificate, now time.Time) []Issued {
	live := map[string]bool{}
	for _, ca := range cas {
		live[keyID(ca)] = true
	}
	list = slices.DeleteFunc(list, func(i Issued) bool { return now.After(i.NotAfter) && !live[i.Issuer] })
	var ends []time.Time
	for _, i := range list {
		if now.After(i.NotAfter) {
			ends = append(ends, i.NotAfter)
		}
	}
	if len(ends) <= maxExpired {
		return list
	}
	slices.SortFunc(ends, time.Time.Compare)
	first := ends[len(ends)-maxExpired]
	return slices.DeleteFunc(list, func(i Issued) bool { return i.NotAfter.Before(first) })
}

// readIssued returns the recorded certificates, expired ones too.
func readIssued(dir string) ([]Issued, error) {
	path := filepath.Join(dir, issuedFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []Issued
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of issued certificates %s: %w; restore it from a backup, or move it away if you know what is in use", path, err)
	}
	return list, nil
}

// IssuedBy lists what the CAs in dir have issued and is valid now, the newest
// last, with what was revoked of it: what is recorded, and certificates in dir
// itself that are older than the record.
func IssuedBy(dir string) ([]Issued, error) {
	return issuedBy(dir, time.Now())
}

func issuedBy(dir string, now time.Time) ([]Issued, error) {
	list, err := readIssued(dir)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, i := range list {
		known[i.Serial] = true
	}
	list = slices.DeleteFunc(list, func(i Issued) bool { return now.After(i.NotAfter) })
	cas, err := readCerts(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, err
	}
	var older []Issued
	for _, l := range leavesIn(dir) {
		ca := signerOf(l.cert, cas)
		if ca != nil && !known[serialOf(l.cert)] && !now.After(l.cert.NotAfter) {
			older = append(older, Issued{Name: l.name, Serial: serialOf(l.cert), Issuer: keyID(ca), Issued: l.cert.NotBefore, NotAfter: l.cert.NotAfter})
		}
	}
	list = append(older, list...)
	return list, markRevoked(dir, list, cas)
}

// markRevoked marks what the CAs have taken back, beside what is recorded so.
func markRevoked(dir string, list []Issued, cas []*x509.Certificate) error {
	lists, err := readCRLs(filepath.Join(dir, crlFile))
	if err != nil {
		return err
	}
	gone := revoked{}
	for _, l := range lists {
		if ca := crlSigner(l, cas); ca != nil {
			gone.add(keyID(ca), l)
		}
	}
	for i := range list {
		list[i].Revoked = list[i].Revoked || gone[list[i].Issuer][list[i].Serial]
	}
	return nil
}

// leaf is a certificate file of a CA directory.
type leaf struct {
	name string // of the file, without extension
	cert *x509.Certificate
}

// leavesIn returns the readable leaf certificates of a directory, sorted by
// name. What is not a certificate is somebody else's.
func leavesIn(dir string) []leaf {
	paths, _ := filepath.Glob(filepath.Join(escapeGlob(dir), "*.crt"))
	var out []leaf
	for _, path := range paths {
		found, err := readCerts(path)
		if err == nil && !found[0].IsCA {
			out = append(out, leaf{name: strings.TrimSuffix(filepath.Base(path), ".crt"), cert: found[0]})
		}
	}
	return out
}

func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}

// signerOf returns the CA that signed c, or nil.
func signerOf(c *x509.Certificate, cas []*x509.Certificate) *x509.Certificate {
	for _, ca := range cas {
		if ca.IsCA && c.CheckSignatureFrom(ca) == nil {
			return ca
		}
	}
	return nil
}
