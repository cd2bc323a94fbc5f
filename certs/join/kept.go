package join

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// accepting is the member of a peer's file that says what agents accept of a
// cluster which joined with an id, nothing without one.
func accepting(id uint32) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("accepts:\n  cluster-id: %d\n", id)
}

// kept returns the members that the peer's operator wrote into its file: when it
// ends, and what is accepted of it, with the id that it has now. Who was shut out
// by his file does not get in by joining again.
func kept(path string, p Peer) (string, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return accepting(p.ID), nil
	}
	f, err := readReader(path)
	if err != nil {
		return "", fmt.Errorf("keep what %s restricts: %w; correct or remove it first", path, err)
	}
	if v := f.text("revoked"); v != "" && v != "false" {
		return "", refuse(NameTaken, "cluster %q: its file %s says revoked: %s; remove that member, or the file, first", p.Cluster, filepath.Base(path), v)
	}
	m := &yaml.Node{Kind: yaml.MappingNode}
	for _, name := range []string{"expires", "accepts"} {
		if v := member(f.root(), name); v != nil {
			set(m, name, v)
		}
	}
	if p.ID != 0 {
		accepts := member(m, "accepts")
		if accepts == nil || accepts.Kind != yaml.MappingNode {
			accepts = &yaml.Node{Kind: yaml.MappingNode}
			set(m, "accepts", accepts)
		}
		set(accepts, "cluster-id", &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(p.ID)})
	}
	if len(m.Content) == 0 {
		return "", nil
	}
	var text strings.Builder
	e := yaml.NewEncoder(&text)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(m), e.Close()); err != nil {
		return "", fmt.Errorf("keep what %s restricts: %w", path, err)
	}
	return text.String(), nil
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
