package join

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/internal/disk"
	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// share looks for the peers' files that trust the CA of a new peer too, and adds
// its name to them. It returns their names, which the new peer's file must have.
func (h Home) share(p Peer) ([]string, error) {
	cas, err := certs.ParseBundle(p.Trust)
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(escapeGlob(h.Peers), "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	var shares []string
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		if name == p.Cluster || strings.HasPrefix(name, ".") {
			continue
		}
		f, err := readReader(path)
		if err != nil {
			return nil, fmt.Errorf("read peer %q: %s: %w; correct or remove it first", name, path, err)
		}
		if !f.trusts(cas) {
			continue
		}
		if f.commonName() == "remote-"+p.Cluster {
			return nil, refuse(NameTaken, "cluster %q: the file of another peer has the common name remote-%s and the same CA", p.Cluster, p.Cluster).locally("it is %s; remove one of them", path)
		}
		shares = append(shares, name)
		if err := f.shareWith(p.Cluster); err != nil {
			return nil, err
		}
	}
	return shares, nil
}

func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}

// reader is a peer's file, kept as its author wrote it.
type reader struct {
	path string
	mode fs.FileMode
	doc  *yaml.Node
	ca   []byte
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
	f.path, f.mode = path, info.Mode().Perm()
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

// trusts reports whether one of the CAs has the key of a CA of the file.
func (f *reader) trusts(cas []*x509.Certificate) bool {
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

// shareWith adds a name to the file's list, if it is not there.
func (f *reader) shareWith(name string) error {
	list := member(f.root(), "shares-ca-with")
	if list == nil {
		list = &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		f.root().Content = append(f.root().Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "shares-ca-with"}, list)
	}
	if slices.ContainsFunc(list.Content, func(n *yaml.Node) bool { return n.Value == name }) {
		return nil
	}
	list.Kind, list.Tag, list.Value = yaml.SequenceNode, "", ""
	list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: name})
	text, err := yaml.Marshal(f.doc)
	if err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	return disk.Replace(f.path, f.mode, text)
}
