package peers

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// file is a peer's file as it is written.
type file struct {
	CA         string   `yaml:"ca"`
	CAFile     string   `yaml:"ca-file"`
	SharesWith []string `yaml:"shares-ca-with"`
	Identity   identity `yaml:"identity"`
	Sees       sees     `yaml:"sees"`
	Expires    *string  `yaml:"expires"`
	Revoked    bool     `yaml:"revoked"`
	RevokedOne []string `yaml:"revoked-certificates"`
}

type identity struct {
	URI        string `yaml:"uri"`
	DNS        string `yaml:"dns"`
	CommonName string `yaml:"common-name"`
}

// sees is the word all, or a mapping.
type sees struct {
	all bool
	seesMembers
}

type seesMembers struct {
	Namespaces []string `yaml:"namespaces"`
	Services   []string `yaml:"services"`
	Nodes      extent   `yaml:"nodes"`
	Identities extent   `yaml:"identities"`
	Addresses  extent   `yaml:"addresses"`
}

// extent is all or none of a kind.
type extent bool

// UnmarshalYAML implements [yaml.Unmarshaler].
func (e *extent) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode || n.Value != "all" && n.Value != "none" {
		return fmt.Errorf("line %d: %q is neither all nor none", n.Line, n.Value)
	}
	*e = n.Value == "all"
	return nil
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (s *sees) UnmarshalYAML(n *yaml.Node) error {
	switch n.Kind {
	case yaml.ScalarNode:
		if s.all = n.Value == "all"; !s.all {
			return fmt.Errorf("line %d: sees %q: write all, or a list of what the peer may see", n.Line, n.Value)
		}
		return nil
	case yaml.MappingNode:
		if err := yamlfile.Known(n, "sees.", "namespaces", "services", "nodes", "identities", "addresses"); err != nil {
			return err
		}
		return n.Decode(&s.seesMembers)
	}
	return fmt.Errorf("line %d: sees: write all, or members such as namespaces", n.Line)
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (i *identity) UnmarshalYAML(n *yaml.Node) error {
	if err := yamlfile.Known(n, "identity.", "uri", "dns", "common-name"); err != nil {
		return err
	}
	type plain identity
	return n.Decode((*plain)(i))
}

// UnmarshalYAML implements [yaml.Unmarshaler].
func (f *file) UnmarshalYAML(n *yaml.Node) error {
	if err := yamlfile.Known(n, "", "ca", "ca-file", "shares-ca-with", "identity", "sees", "expires", "revoked", "revoked-certificates", "accepts"); err != nil {
		return err
	}
	type plain file
	return n.Decode((*plain)(f))
}

// parseFile reads one YAML document.
func parseFile(raw []byte) (*file, error) {
	f := new(file)
	doc, err := yamlfile.Parse(raw)
	if err == nil {
		err = doc.Decode(f)
	}
	if err != nil {
		return nil, fmt.Errorf("parse YAML: %w; compare with the members that docs/install.md lists", err)
	}
	if (f.CA == "") == (f.CAFile == "") {
		return nil, errors.New("ca, ca-file: set exactly one of them")
	}
	return f, nil
}

// peer makes the peer that a file describes; ca is the content of its CA file,
// if it has one. The error joins all problems.
// own are the cluster's own CAs, nil where there are none.
func (f *file) peer(name string, ca []byte, own Own) (*Peer, error) {
	p := &Peer{
		Name: name, SharesCAWith: f.SharesWith, Identity: Identity(f.Identity), Revoked: f.Revoked,
		View: View{
			All: f.Sees.all, Namespaces: f.Sees.Namespaces,
			Nodes: bool(f.Sees.Nodes), Identities: bool(f.Sees.Identities), Addresses: bool(f.Sees.Addresses),
		},
	}
	for _, s := range f.Sees.Services {
		namespace, service, _ := strings.Cut(s, "/")
		p.View.Services = append(p.View.Services, Service{namespace, service})
	}
	var errSums, errExpires error
	p.RevokedCertificates, errSums = parseSums(f.RevokedOne)
	p.Expires, errExpires = parseTime(f.Expires)
	if err := f.trust(p, ca, own); err != nil {
		return nil, err
	}
	if err := errors.Join(p.Validate(), errSums, errExpires); err != nil {
		return nil, err
	}
	p.prepare()
	return p, nil
}

// ownWord is written as ca for a peer whose certificates our own CA signs.
const ownWord = "own"

// trust sets what the peer's certificates are verified with.
func (f *file) trust(p *Peer, ca []byte, own Own) (err error) {
	switch {
	case f.CA == ownWord && own == nil:
		return errors.New("ca: own: the own CAs are not known here; give clustermesh-apiserver --tls-client-ca, or write the CA's PEM text")
	case f.CA == ownWord:
		p.Own = own
		return nil
	case f.CA != "":
		if p.CAs, err = parseCAs([]byte(f.CA)); err != nil {
			return fmt.Errorf("ca: %w", err)
		}
		return nil
	}
	if p.CAs, err = parseCAs(ca); err != nil {
		return fmt.Errorf("ca-file: %w", err)
	}
	return nil
}

// parseCAs reads every certificate of a PEM bundle. Anything else in it is an
// error: a file caught half written must not pass as a shorter one.
func parseCAs(data []byte) ([]*x509.Certificate, error) {
	var cas []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		block, tail := pem.Decode(rest)
		switch {
		case block == nil:
			return nil, fmt.Errorf("entry %d is no complete PEM block; give PEM certificates only", len(cas)+1)
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("entry %d is a %.40q; give certificates only, and keep private keys out of here", len(cas)+1, block.Type)
		case !bytes.HasPrefix(rest, []byte("-----BEGIN")):
			return nil, fmt.Errorf("text before entry %d; give PEM certificates only", len(cas)+1)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w; export the CA's certificate again", len(cas)+1, err)
		}
		cas, rest = append(cas, c), tail
	}
	if len(cas) == 0 {
		return nil, errors.New("no certificate; give the PEM certificates of the peer's CA")
	}
	return cas, nil
}

func parseSums(list []string) ([][sha256.Size]byte, error) {
	var sums [][sha256.Size]byte
	for _, s := range list {
		b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
		if err != nil || len(b) != sha256.Size {
			return nil, fmt.Errorf("revoked-certificates %q: not a SHA-256 sum in hex; clustermesh certs inspect prints it", s)
		}
		sums = append(sums, [sha256.Size]byte(b))
	}
	return sums, nil
}

func parseTime(s *string) (time.Time, error) {
	if s == nil {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, *s)
	if err != nil {
		return t, fmt.Errorf("expires %q: not a time; write it like 2030-01-31T00:00:00Z", *s)
	}
	return t, nil
}
