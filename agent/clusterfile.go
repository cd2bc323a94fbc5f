package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// maxClusterFile bounds a cluster file; real ones have a few hundred bytes.
const maxClusterFile = 64 << 10

// clusterFile is one file of the clusters directory: an etcd client
// configuration in the format that Cilium's clustermesh secret holds.
type clusterFile struct {
	Endpoints          []string    `yaml:"endpoints"`
	TrustedCAFile      string      `yaml:"trusted-ca-file"`
	CAFile             string      `yaml:"ca-file"` // the etcd library's older spelling
	CertFile           string      `yaml:"cert-file"`
	KeyFile            string      `yaml:"key-file"`
	InsecureTransport  bool        `yaml:"insecure-transport"`
	InsecureSkipVerify bool        `yaml:"insecure-skip-tls-verify"`
	HostAliases        []hostAlias `yaml:"cilium-host-aliases"`
}

type hostAlias struct {
	Hostname string       `yaml:"hostname"`
	IPs      []netip.Addr `yaml:"ips"`
}

// errNotClusterFile marks a file that is no cluster file at all: one without
// an endpoints member, such as a certificate beside the cluster files.
var errNotClusterFile = errors.New("no endpoints in the file")

// readClusterFile reads and checks one cluster file. The content is returned
// as well, so that the caller can see changes.
func readClusterFile(path string) (clusterFile, []byte, error) {
	raw, err := readBounded(path)
	if err != nil {
		return clusterFile{}, nil, err
	}
	if !bytes.Contains(raw, []byte("endpoints:")) {
		return clusterFile{}, raw, errNotClusterFile
	}
	var f clusterFile
	if err := yaml.Unmarshal(raw, &f); err != nil {
		return clusterFile{}, raw, fmt.Errorf("parse etcd client YAML: %w; compare with the format in README.md", err)
	}
	if f.TrustedCAFile == "" {
		f.TrustedCAFile = f.CAFile
	}
	return f, raw, f.validate(filepath.Dir(path))
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxClusterFile+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxClusterFile {
		return nil, fmt.Errorf("larger than %d bytes; a cluster file holds endpoints and file names only", maxClusterFile)
	}
	return raw, nil
}

// validate checks the members and makes relative certificate paths relative to
// the file's own directory.
func (f *clusterFile) validate(dir string) error {
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

func (f *clusterFile) validateAliases() error {
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

func (f *clusterFile) aliases() map[string][]netip.Addr {
	m := make(map[string][]netip.Addr, len(f.HostAliases))
	for _, a := range f.HostAliases {
		m[a.Hostname] = a.IPs
	}
	return m
}
