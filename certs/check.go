package certs

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Link is a certificate together with what the other end verifies it with.
// Fields that are not known are empty, and what needs them is not checked.
type Link struct {
	// Name says whose link it is, such as "server-east" or "to cluster east".
	Name string
	// Kind is what the certificate must serve as: Server, Remote or Local (any
	// role of a client), or CA.
	Kind  Kind
	Cert  string   // the certificate that is presented
	Key   string   // its key
	CA    string   // the bundle that it is verified with
	CRL   string   // the revocation list that it is verified with
	Hosts []string // the names that clients ask of a server
}

// Finding says when and why a link breaks, or a CA ends.
type Finding struct {
	At      time.Time `json:"at"`     // when; the time of the check if it is broken already
	Broken  bool      `json:"broken"` // already
	Link    string    `json:"link"`
	File    string    `json:"file"`
	Problem string    `json:"problem"`
	Remedy  string    `json:"remedy,omitempty"`
	// Harmless is what needs no action by itself, such as a CA that ends while
	// another of its file goes on; the links that depend on it have findings of
	// their own.
	Harmless bool `json:"harmless,omitempty"`
}

// Check finds for every link when it breaks and why, soonest first. A link that
// is sound has one finding, the end of a certificate in it; one that is broken
// has a finding for each thing that is wrong. Nothing is written and nobody is
// asked but the files.
func Check(links []Link, now time.Time) []Finding {
	var out []Finding
	bundles := map[string]bool{}
	for _, l := range links {
		out = append(out, l.check(now)...)
		if l.CA != "" && !bundles[l.CA] {
			bundles[l.CA] = true
			out = append(out, checkBundle(l.CA, now)...)
		}
	}
	slices.SortStableFunc(out, func(a, b Finding) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Link, b.Link), cmp.Compare(a.File, b.File))
	})
	return out
}

// DirLinks lists the links of a CA directory: the CA itself, and every
// certificate in it as it is verified with ca.crt.
func DirLinks(dir string) ([]Link, error) {
	ca, crl := filepath.Join(dir, caCertFile), present(filepath.Join(dir, crlFile))
	if _, err := os.Stat(ca); err != nil {
		return nil, fmt.Errorf("check certificates: %w; create a CA with: clustermesh certs init --dir %s", err, dir)
	}
	links := []Link{{Name: "CA", Kind: CA, Cert: ca, Key: present(filepath.Join(dir, caKeyFile))}}
	paths, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.crt"))
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".crt")
		if name == "ca" || name == nextBase || name == oldBase {
			continue
		}
		links = append(links, Link{Name: name, Kind: kindOf(path, name), Cert: path, Key: present(filepath.Join(dir, name+".key")), CA: ca, CRL: crl})
	}
	return links, err
}

func present(path string) string {
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// kindOf is what a file's certificate says it is for; what its name says if it
// cannot be read.
func kindOf(path, name string) Kind {
	kind, _, _ := strings.Cut(name, "-")
	if infos, err := Inspect(path); err == nil {
		return infos[0].Kind
	}
	return Kind(kind)
}

func (l Link) finding(at time.Time, file, problem, remedy string) Finding {
	return Finding{At: at, Link: l.Name, File: file, Problem: problem, Remedy: remedy}
}

func (l Link) broken(now time.Time, file string, err error, remedy string) Finding {
	f := l.finding(now, file, err.Error(), remedy)
	f.Broken = true
	return f
}

func (l Link) check(now time.Time) []Finding {
	if l.Cert == "" {
		return nil
	}
	chain, err := readCerts(l.Cert)
	if err != nil {
		return []Finding{l.broken(now, l.Cert, err, l.remedy())}
	}
	if l.Kind == CA {
		return l.checkCA(now)
	}
	var out []Finding
	for _, check := range []func([]*x509.Certificate) error{l.checkKey, l.checkName, l.checkHosts} {
		if err := check(chain); err != nil {
			out = append(out, l.broken(now, l.Cert, err, l.remedy()))
		}
	}
	end, err := l.checkChain(chain, now)
	switch {
	case err != nil:
		out = append(out, l.broken(now, l.Cert, err, l.remedyFor(err)))
	case len(out) == 0:
		out = append(out, end)
	}
	return out
}

func (l Link) remedy() string {
	if l.Kind != Server && l.Kind != Remote && l.Kind != Local {
		return "replace the file"
	}
	return fmt.Sprintf("clustermesh certs issue --dir DIR --kind %s --cluster NAME", l.Kind)
}

func (l Link) remedyFor(err error) string {
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return "add the ca.crt of the certificate's issuer to " + l.CA + ", or issue it with a CA that is there"
	case errors.Is(err, ErrRevoked):
		return l.remedy()
	}
	return "clustermesh certs renew --dir DIR"
}

func (l Link) checkKey([]*x509.Certificate) error {
	if l.Key == "" {
		return nil
	}
	if _, err := tls.LoadX509KeyPair(l.Cert, l.Key); err != nil {
		return fmt.Errorf("key %s: %w", l.Key, err)
	}
	return nil
}

func (l Link) checkName(chain []*x509.Certificate) error {
	if l.Kind == Unknown {
		return fmt.Errorf("certificate %q serves neither as server nor as a client with a role", chain[0].Subject.CommonName)
	}
	if err := checkUsage(chain[0], l.Kind); err != nil || l.Kind == Server {
		return err
	}
	_, err := ParseRole(chain[0].Subject.CommonName)
	return err
}

func (l Link) checkHosts(chain []*x509.Certificate) error {
	var errs []error
	for _, h := range l.Hosts {
		errs = append(errs, chain[0].VerifyHostname(h))
	}
	return errors.Join(errs...)
}

// checkChain verifies the certificate as its other end does and tells when that
// will fail.
func (l Link) checkChain(chain []*x509.Certificate, now time.Time) (Finding, error) {
	if err := checkValidNow(chain[0], now); err != nil {
		return Finding{}, err
	}
	ends := Finding{At: chain[0].NotAfter, Link: l.Name, File: l.Cert, Problem: "certificate expires", Remedy: "clustermesh certs renew --dir DIR, at the latest by then"}
	if l.CA == "" {
		return ends, nil
	}
	trust, err := readAnchors(l.CA, l.CRL)
	if err != nil {
		return Finding{}, err
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{Roots: trust.pool, Intermediates: poolOf(chain[1:]), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return Finding{}, fmt.Errorf("certificate of issuer %q does not verify with %s: %w", chain[0].Issuer.CommonName, l.CA, err)
	}
	if err := trust.revoked.check(chains); err != nil {
		return Finding{}, err
	}
	if ca := firstToEnd(chains); ca != nil {
		ends.At, ends.File = ca.NotAfter, l.CA
		ends.Problem = fmt.Sprintf("its CA %q expires", ca.Subject.CommonName)
		ends.Remedy = "clustermesh certs rotate --dir DIR prepare, long before"
	}
	return ends, nil
}

func readAnchors(ca, crl string) (anchors, error) {
	caPEM, err := os.ReadFile(ca)
	if err != nil {
		return anchors{}, err
	}
	var crlPEM []byte
	if crl != "" {
		if crlPEM, err = os.ReadFile(crl); err != nil {
			return anchors{}, err
		}
	}
	return parseAnchors(ca, caPEM, crl, crlPEM)
}

// firstToEnd returns the CA that ends the best of the chains, or nil if that is
// the leaf.
func firstToEnd(chains [][]*x509.Certificate) *x509.Certificate {
	var best *x509.Certificate
	for _, chain := range chains {
		first := slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		if first == chain[0] {
			return nil
		}
		if best == nil || first.NotAfter.After(best.NotAfter) {
			best = first
		}
	}
	return best
}

// checkCA checks that the directory can issue.
func (l Link) checkCA(now time.Time) []Finding {
	if l.Key == "" {
		return nil
	}
	ca, err := pairIssuer(l.Cert, l.Key)
	if err == nil {
		err = checkIssuer(ca.cert, now)
	}
	if err != nil {
		return []Finding{l.broken(now, l.Key, err, "restore ca.key and ca.crt from a backup, or begin anew with: clustermesh certs init")}
	}
	return []Finding{l.finding(ca.cert.NotAfter, l.Cert, "the issuing CA expires", "clustermesh certs rotate --dir DIR prepare, long before")}
}

// checkBundle tells when each CA of a bundle ends.
func checkBundle(path string, now time.Time) []Finding {
	l := Link{Name: "CA bundle"}
	cas, err := readCerts(path)
	if err != nil {
		return []Finding{l.broken(now, path, err, caRemedy)}
	}
	last := slices.MaxFunc(cas, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	var out []Finding
	for _, ca := range cas {
		f := l.finding(ca.NotAfter, path, fmt.Sprintf("CA %q expires", ca.Subject.CommonName), "have the next CA in the file before")
		if err := checkIssuer(ca, now); err != nil {
			f = l.broken(now, path, err, "take it out of the file")
		}
		f.Harmless = ca != last && ca.IsCA
		out = append(out, f)
	}
	return out
}
