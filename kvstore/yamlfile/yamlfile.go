// Package yamlfile reads the YAML files that configure the programs, such as
// those of clusters and peers, and bounds what reading one may cost: a YAML
// parser by itself takes hundreds of bytes for a bracket, and memory in the
// square of the size for a name that is written over and over.
package yamlfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Overhead is what reading a file may take, in bytes of memory, besides 100 for
// each of its own.
const Overhead = 8 << 20

const (
	// smallMarks, bytesPerMark and mostMarks bound how many marks a file may have,
	// so that reading it takes less than said at Overhead, since a mark may stand
	// for three nodes, 1.3 kB in all, and not long: the parser compares nested
	// collections with comments, each with each.
	smallMarks   = 4096
	bytesPerMark = 20
	mostMarks    = 8192
	// maxMembers bounds a mapping: the parser compares each name with each.
	maxMembers = 1000
)

// ErrEmpty says that a file holds nothing, or comments alone.
var ErrEmpty = errors.New("it is empty")

// Parse reads one document, and returns its node for [yaml.Node.Decode], or for
// writing it again as its author wrote it. It refuses what would cost more than
// a file of settings needs: more than 4,096 structural characters and one in
// twenty bytes, 8,192 in all, mappings of more than 1,000 members, aliases
// and directives; besides members that occur twice, and a second document, which
// nobody would read. The error names the remedy, and the line if there is one;
// it is [ErrEmpty] if there is nothing.
func Parse(raw []byte) (*yaml.Node, error) {
	if err := affordable(raw); err != nil {
		return nil, err
	}
	d := yaml.NewDecoder(bytes.NewReader(raw))
	doc := new(yaml.Node)
	if err := d.Decode(doc); errors.Is(err, io.EOF) {
		return nil, ErrEmpty
	} else if err != nil {
		return nil, err
	}
	if err := noMore(d); err != nil {
		return nil, err
	}
	return doc, check(doc)
}

// affordable looks at the bytes alone.
func affordable(raw []byte) error {
	if bytes.HasPrefix(raw, []byte{0xfe, 0xff}) || bytes.HasPrefix(raw, []byte{0xff, 0xfe}) {
		return errors.New("it is UTF-16; write it as UTF-8")
	}
	for i, c := range raw {
		if c == '%' && beginsLine(raw, i) {
			return fmt.Errorf("line %d: a directive; remove it", bytes.Count(raw[:i], []byte("\n"))+1)
		}
	}
	if n, most := marks(raw), min(smallMarks+len(raw)/bytesPerMark, mostMarks); n > most {
		return fmt.Errorf("%d brackets, commas, list items, names and comments in %d bytes, at most %d are read; write less into it", n, len(raw), most)
	}
	return nil
}

// beginsLine reports whether a YAML parser may take byte i for a line's first.
func beginsLine(raw []byte, i int) bool {
	for _, before := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029", "\ufeff"} {
		if bytes.HasSuffix(raw[:i], []byte(before)) {
			return true
		}
	}
	return i == 0
}

// noMore refuses whatever else there is behind a document.
func noMore(d *yaml.Decoder) error {
	for {
		more := new(yaml.Node)
		if err := d.Decode(more); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("behind the document: %w; write one per file", err)
		}
		if n := more.Content[0]; n.Kind != yaml.ScalarNode || n.Tag != "!!null" || n.Value != "" {
			return fmt.Errorf("line %d: another document; write one per file", n.Line)
		}
	}
}

// marks counts what can begin a node, end one, or be a comment. It may count
// more, inside of texts, but never less.
func marks(raw []byte) (n int) {
	for i, c := range raw {
		switch c {
		case ',', '[', ']', '{', '}':
			n++
		case '-', '?', ':':
			if i+1 == len(raw) || isBreak(raw[i+1]) || c != '-' && (i == 0 || isBreak(raw[i-1]) || strings.IndexByte(`:'"`, raw[i-1]) >= 0) {
				n++
			}
		case '#':
			if i == 0 || raw[i-1] != '#' {
				n++
			}
		}
	}
	return n
}

// isBreak reports whether a dash, question mark or colon beside c may be more
// than part of a word.
func isBreak(c byte) bool {
	return c <= ' ' || c >= 0x80 || strings.IndexByte(",?[]{}", c) >= 0
}

func check(n *yaml.Node) error {
	switch n.Kind {
	case yaml.AliasNode:
		return fmt.Errorf("line %d: *%s is an alias; write out what it stands for", n.Line, n.Value)
	case yaml.MappingNode:
		if err := checkNames(n); err != nil {
			return err
		}
	}
	for _, c := range n.Content {
		if err := check(c); err != nil {
			return err
		}
	}
	return nil
}

func checkNames(n *yaml.Node) error {
	if len(n.Content)/2 > maxMembers {
		return fmt.Errorf("line %d: a mapping of %d members; at most %d are read; remove some", n.Line, len(n.Content)/2, maxMembers)
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind == yaml.AliasNode {
			return check(k)
		} else if k.Kind != yaml.ScalarNode {
			return fmt.Errorf("line %d: the name of a member is a list or a mapping; write a word", k.Line)
		}
		if first, twice := seen[k.Value]; twice {
			return fmt.Errorf("line %d: member %q is already set in line %d; remove one of them", k.Line, k.Value, first)
		}
		seen[k.Value] = k.Line
	}
	return nil
}

// Known refuses members of the mapping n that are not among names, and those
// without a value: a restriction that is misspelt, or whose items are commented
// out, must not be ignored. path goes before the members' names in errors, such
// as "sees.".
func Known(n *yaml.Node, path string, names ...string) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: %q: write the members %s", n.Line, strings.TrimSuffix(path, "."), strings.Join(names, ", "))
	}
	for i := 0; i < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if !slices.Contains(names, k.Value) {
			return fmt.Errorf("line %d: member %q is not known; the members are %s", k.Line, path+k.Value, strings.Join(names, ", "))
		}
		if v.Kind == yaml.ScalarNode && v.ShortTag() == "!!null" {
			return fmt.Errorf("line %d: member %q has no value; write one, or remove the member", k.Line, path+k.Value)
		}
	}
	return nil
}
