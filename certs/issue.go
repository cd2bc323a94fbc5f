package certs

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"
)

// meshDomain is the DNS domain under which Cilium's clients look for the
// apiserver of a cluster, <cluster>.mesh.cilium.io.
const meshDomain = "mesh.cilium.io"

// IssueRequest describes one leaf certificate.
type IssueRequest struct {
	// Kind is Server, Remote or Local.
	Kind Kind
	// Cluster is the cluster that will use the certificate. It may be empty for
	// Remote only: one client certificate for all clusters.
	Cluster string
	// Hosts are DNS names and IP addresses under which the server is reached,
	// in addition to those every server certificate has. Server only.
	Hosts []string
	// Validity is how long the certificate is valid from now, one year when
	// zero. It never outlives the CA.
	Validity time.Duration
}

// Files are the paths of an issued certificate and its key, and when the
// certificate ends.
type Files struct {
	Cert     string    `json:"cert"`
	Key      string    `json:"key"`
	CA       string    `json:"ca"`
	NotAfter time.Time `json:"notAfter"`
}

// Validate returns all problems of r in one error.
func (r IssueRequest) Validate() error {
	var errs []error
	switch r.Kind {
	case Server, Remote, Local:
	default:
		errs = append(errs, fmt.Errorf("kind %q is not valid: use server, remote or local", r.Kind))
	}
	if r.Cluster != "" || r.Kind != Remote {
		errs = append(errs, CheckCluster(r.Cluster))
	}
	if len(r.Hosts) > 0 && r.Kind != Server {
		errs = append(errs, errors.New("hosts are for server certificates only"))
	}
	for _, h := range r.Hosts {
		errs = append(errs, CheckHost(h))
	}
	if r.Validity < 0 {
		errs = append(errs, fmt.Errorf("validity %s is negative", r.Validity))
	}
	return errors.Join(errs...)
}

// dnsName is a host name of RFC 1123 labels, the first of which may be "*".
var dnsName = regexp.MustCompile(`^(\*\.)?([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

const maxDNSName = 253

// CheckHost returns why h is neither a DNS name nor an IP address, or nil.
func CheckHost(h string) error {
	if net.ParseIP(h) != nil || len(h) <= maxDNSName && dnsName.MatchString(strings.ToLower(h)) {
		return nil
	}
	return fmt.Errorf("host %q is neither a DNS name nor an IP address; write it without scheme, port and brackets", h)
}

// Issue signs a certificate with the CA in dir and writes
// <kind>-<cluster>.crt and .key beside it (remote.crt for a Remote without
// cluster). Existing files are replaced, each in one step, which is how a
// certificate is renewed: processes that use them notice by themselves. What was
// issued is recorded in issued.json. Calls for one directory take turns.
func Issue(dir string, req IssueRequest) (Files, error) {
	if err := req.Validate(); err != nil {
		return Files{}, fmt.Errorf("issue certificate: %w", err)
	}
	var out Files
	err := withAuthority(dir, func(a *authority) (err error) {
		name := Role{Kind: req.Kind, Cluster: req.Cluster}.CommonName()
		out, err = a.issueFiles(name, leafTemplate(req, a.issuer.cert, a.now))
		return err
	})
	return out, err
}

func leafTemplate(req IssueRequest, ca *x509.Certificate, now time.Time) *x509.Certificate {
	life := req.Validity
	if life == 0 {
		life = defaultLife
	}
	tmpl := &x509.Certificate{
		NotBefore:             now.Add(-clockTolerance),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if tmpl.NotAfter.After(ca.NotAfter) {
		tmpl.NotAfter = ca.NotAfter
	}
	if req.Kind == Server {
		asServer(tmpl, req)
		return tmpl
	}
	tmpl.Subject = pkix.Name{CommonName: Role{Kind: req.Kind, Cluster: req.Cluster}.CommonName()}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return tmpl
}

// asServer adds the names under which Cilium's clients reach an apiserver: its
// own mesh name, the wild card that Cilium's charts put in every server
// certificate, and loopback for processes beside it.
func asServer(tmpl *x509.Certificate, req IssueRequest) {
	tmpl.Subject = pkix.Name{CommonName: "clustermesh-apiserver." + req.Cluster}
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	hosts := append([]string{req.Cluster + "." + meshDomain, "localhost", "127.0.0.1", "::1"}, req.Hosts...)
	seen := map[string]bool{}
	for _, h := range hosts {
		addHost(tmpl, h, seen)
	}
}

func addHost(tmpl *x509.Certificate, host string, seen map[string]bool) {
	ip := net.ParseIP(host)
	key := strings.ToLower(host)
	if ip != nil {
		key = ip.String()
	}
	if seen[key] {
		return
	}
	seen[key] = true
	if ip != nil {
		tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		return
	}
	tmpl.DNSNames = append(tmpl.DNSNames, key)
}
