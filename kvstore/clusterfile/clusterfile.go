// Package clusterfile reads the files that say how another cluster is reached:
// etcd client configurations in YAML, in the format of Cilium's clustermesh
// secret, one file per cluster, named like the cluster.
//
// It is strict where a mistake would weaken the connection: plain text and
// unverified servers are refused.
package clusterfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"

	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// MaxBytes bounds a cluster file; real ones have a few hundred bytes.
const MaxBytes = 64 << 10

// File is the content of one cluster file. What [Read] returns without an error
// has at least one https endpoint and the paths of all three certificate files.
type File struct {
	// Endpoints are https://host:port.
	Endpoints []string `yaml:"endpoints"`
	// TrustedCAFile, CertFile and KeyFile are paths of PEM files, made relative
	// to the cluster file's own directory if they are not absolute.
	TrustedCAFile      string `yaml:"trusted-ca-file"`
	CAFile             string `yaml:"ca-file"` // the etcd library's older spelling
	CertFile           string `yaml:"cert-file"`
	KeyFile            string `yaml:"key-file"`
	InsecureTransport  bool   `yaml:"insecure-transport"`
	InsecureSkipVerify bool   `yaml:"insecure-skip-tls-verify"`
	// HostAliases are addresses of hosts that are not looked up in DNS.
	HostAliases []HostAlias `yaml:"cilium-host-aliases"`
}

// HostAlias gives the addresses of one host name.
type HostAlias struct {
	Hostname string       `yaml:"hostname"`
	IPs      []netip.Addr `yaml:"ips"`
}

// ErrNotClusterFile marks a file that is no cluster file at all: one without
// an endpoints member, such as a certificate beside the cluster files.
var ErrNotClusterFile = errors.New("no endpoints in the file")

// Read reads and checks one cluster file. The content is returned as well, so
// that the caller can see changes. The error is [ErrNotClusterFile], one of the
// file system, or joins all problems of the members; it does not name the file.
func Read(path string) (File, []byte, error) {
	raw, err := readBounded(path)
	if err != nil {
		return File{}, nil, err
	}
	f, err := parse(raw, filepath.Dir(path))
	return f, raw, err
}

func parse(raw []byte, dir string) (f File, err error) {
	if !bytes.Contains(raw, []byte("endpoints:")) {
		return File{}, ErrNotClusterFile
	}
	doc, err := yamlfile.Parse(raw)
	if err == nil {
		err = doc.Decode(&f)
	}
	if err != nil {
		return File{}, fmt.Errorf("parse etcd client YAML: %w; compare with the format in docs/install.md (Cluster files)", err)
	}
	if f.TrustedCAFile == "" {
		f.TrustedCAFile = f.CAFile
	}
	return f, f.validate(dir)
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("larger than %d bytes; a cluster file holds endpoints and file names only", MaxBytes)
	}
	return raw, nil
}

// validate checks the members and makes relative certificate paths relative to
// the file's own directory.
func (f *File) validate(dir string) error {
	var errs []error
	if len(f.Endpoints) == 0 {
		errs = append(errs, errors.New("endpoints: empty; give at least one https://host:port"))
	}
	for _, e := range f.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || u.Port() == "" || (u.Scheme != "https" && u.Scheme != "http") {
			errs = append(errs, fmt.Errorf("endpoints %q: not of the form https://host:port", e))
		} else if u.Scheme == "http" {
			errs = append(errs, fmt.Errorf("endpoints %q: plain text is not spoken; use https and certificates", e))
		}
	}
	if f.InsecureTransport || f.InsecureSkipVerify {
		errs = append(errs, errors.New("insecure-transport, insecure-skip-tls-verify: refused; remove the member and give trusted-ca-file, cert-file and key-file"))
	}
	for _, p := range []struct {
		member string
		path   *string
	}{{"trusted-ca-file", &f.TrustedCAFile}, {"cert-file", &f.CertFile}, {"key-file", &f.KeyFile}} {
		if *p.path == "" {
			errs = append(errs, fmt.Errorf("%s: not set; give the file's path", p.member))
		} else if !filepath.IsAbs(*p.path) {
			*p.path = filepath.Join(dir, *p.path)
		}
	}
	return errors.Join(append(errs, f.validateAliases())...)
}

func (f *File) validateAliases() error {
	seen := map[string]bool{}
	for _, a := range f.HostAliases {
		switch {
		case a.Hostname == "":
			return errors.New("cilium-host-aliases: an entry has no hostname; give one")
		case seen[a.Hostname]:
			return fmt.Errorf("cilium-host-aliases: hostname %q occurs twice; join its ips", a.Hostname)
		case len(a.IPs) == 0:
			return fmt.Errorf("cilium-host-aliases: hostname %q has no ips; give at least one", a.Hostname)
		}
		seen[a.Hostname] = true
	}
	return nil
}

// Aliases returns the addresses by host name.
func (f File) Aliases() map[string][]netip.Addr {
	m := make(map[string][]netip.Addr, len(f.HostAliases))
	for _, a := range f.HostAliases {
		m[a.Hostname] = a.IPs
	}
	return m
}
