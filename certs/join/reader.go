package join

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// alone refuses a peer whose name another file gives to somebody else already:
// a certificate of the own CA could then be that of either.
func (h Home) alone(p Peer) error {
	cas, err := certs.ParseBundle(p.Trust)
	if err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(escapeGlob(h.Peers), "*.yaml"))
	if err != nil {
		return fmt.Errorf("list peers: %w", err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		if name == p.Cluster || strings.HasPrefix(name, ".") {
			continue
		}
		f, err := readReader(path)
		if err != nil {
			return fmt.Errorf("read peer %q: %s: %w; correct or remove it first", name, path, err)
		}
		if f.trusts(cas) && f.commonName() == "remote-"+p.Cluster {
			return refuse(NameTaken, "cluster %q: the file of another peer has the common name remote-%s and the same CA", p.Cluster, p.Cluster).locally("it is %s; remove one of them", path)
		}
	}
	return nil
}

func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}

// reader is a peer's file, kept as its author wrote it.
type reader struct {
	doc *yaml.Node
	ca  []byte
}

const maxReader = 1 << 20 // as the apiserver takes

func readReader(path string) (*reader, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxReader {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxReader)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := parseReader(raw)
	if err != nil {
		return nil, err
	}
	if at := f.text("ca-file"); at != "" {
		if !filepath.IsAbs(at) {
			at = filepath.Join(filepath.Dir(path), at)
		}
		f.ca, err = os.ReadFile(at)
		return f, err
	}
	f.ca = []byte(f.text("ca"))
	return f, nil
}

func parseReader(raw []byte) (*reader, error) {
	doc, err := yamlfile.Parse(raw)
	if err != nil {
		return nil, err
	}
	if doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("it is not a mapping")
	}
	return &reader{doc: doc}, nil
}

// member returns the value of a member of a mapping, or nil.
func member(n *yaml.Node, name string) *yaml.Node {
	for i := 0; n != nil && n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

func (f *reader) root() *yaml.Node { return f.doc.Content[0] }

func (f *reader) text(name string) string {
	if v := member(f.root(), name); v != nil {
		return v.Value
	}
	return ""
}

func (f *reader) commonName() string {
	if v := member(member(f.root(), "identity"), "common-name"); v != nil {
		return v.Value
	}
	return ""
}

// trusts reports whether one of the CAs, our own, has the key of a CA of the file.
func (f *reader) trusts(cas []*x509.Certificate) bool {
	if string(f.ca) == "own" {
		return true
	}
	theirs, err := certs.ParseBundle(f.ca)
	if err != nil {
		return false // the apiserver does not take it either
	}
	return slices.ContainsFunc(theirs, func(t *x509.Certificate) bool {
		return slices.ContainsFunc(cas, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubjectPublicKeyInfo, t.RawSubjectPublicKeyInfo)
		})
	})
}
