package join

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// plain are the members of a peer's file that joining does not decide, as long as
// nobody has written others.
func plain(k Known) string {
	text := k.View.sees() + fmt.Sprintf("revoked-certificates: %s\n", flow(k.Revoked))
	if k.ID != 0 {
		text += fmt.Sprintf("accepts:\n  cluster-id: %d\n", k.ID)
	}
	return text
}

// kept returns these members with what the peer's operator wrote into its file:
// when it ends, what is accepted of it, which certificates are not, and what it
// sees if nothing else was chosen. Who was shut out by his file does not get in
// by joining again, and what agents rely on does not go with a file.
func kept(path string, p Peer) (string, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return plain(p.known()), nil
	}
	f, err := readReader(path)
	if err != nil {
		return "", fmt.Errorf("keep what %s restricts: %w; correct or remove it first", path, err)
	}
	return f.kept(filepath.Base(path), p)
}

func (f *reader) kept(name string, p Peer) (string, error) {
	if v := f.text("revoked"); v != "" && v != "false" {
		return "", refuse(NameTaken, "cluster %q: its file %s says revoked: %s; remove that member, or the file, first", p.Cluster, name, v)
	}
	if lost := f.lost(p); !p.Reads && len(lost) > 0 {
		return "", refuse(NameTaken, "cluster %q: it may not read any more, and with its file %s would go what that restricts; remove the member %s first", p.Cluster, name, strings.Join(lost, ", "))
	}
	return merged(f.root(), p.known(), func(name string) bool {
		return name == "expires" || name == "accepts" || name == "sees" && p.Again
	})
}

// lost are the members in which the file restricts its peer and that nobody else
// remembers: if the file went, the peer would come back without them.
func (f *reader) lost(p Peer) (out []string) {
	if v := member(f.root(), "accepts"); v != nil && len(v.Content) > 2 {
		out = append(out, "accepts")
	}
	if member(f.root(), "expires") != nil {
		out = append(out, "expires")
	}
	if v := member(f.root(), "sees"); p.Again && v != nil && v.Value != "all" && !sameText(v, p.View.sees()) {
		out = append(out, "sees")
	}
	if v := member(f.root(), "revoked-certificates"); v != nil && slices.ContainsFunc(v.Content, func(n *yaml.Node) bool { return !slices.Contains(p.Revoked, n.Value) }) {
		out = append(out, "revoked-certificates")
	}
	return out
}

// sameText reports whether a node says what a text with one member does.
func sameText(n *yaml.Node, text string) bool {
	var a any
	var b map[string]any
	err := errors.Join(n.Decode(&a), yaml.Unmarshal([]byte(text), &b))
	return err == nil && len(b) == 1 && reflect.DeepEqual(a, b[strings.SplitN(text, ":", 2)[0]])
}

// merged is plain with the members of a file that take selects, and all
// certificates that are revoked in either.
func merged(was *yaml.Node, k Known, take func(member string) bool) (string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(plain(k)), &doc); err != nil {
		return "", err
	}
	m := doc.Content[0]
	for i := 0; i+1 < len(was.Content); i += 2 {
		if name := was.Content[i].Value; take(name) {
			set(m, name, was.Content[i+1])
		}
	}
	if accepts := member(m, "accepts"); accepts != nil && accepts.Kind == yaml.MappingNode && k.ID != 0 {
		set(accepts, "cluster-id", &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(k.ID)})
	}
	if gone := member(was, "revoked-certificates"); gone != nil {
		list := member(m, "revoked-certificates")
		for _, sum := range gone.Content {
			if !slices.ContainsFunc(list.Content, func(n *yaml.Node) bool { return n.Value == sum.Value }) {
				list.Content = append(list.Content, sum)
			}
		}
	}
	var text strings.Builder
	e := yaml.NewEncoder(&text)
	e.SetIndent(2)
	err := errors.Join(e.Encode(m), e.Close())
	return text.String(), err
}

// set gives a member of a mapping a value, at its end if it is new.
func set(m *yaml.Node, name string, value *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == name {
			m.Content[i+1] = value
			return
		}
	}
	m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, value)
}
