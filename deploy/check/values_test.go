package check

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// schema is what is used of the JSON schema of one value.
type schema struct {
	Type             any // a name or several
	Enum             []any
	Minimum, Maximum *int
	Pattern          string
	Items            *schema
	Properties       map[string]*schema
	Required         []string
}

// forms are names for what the schema says by patterns.
var forms = map[string]string{
	"^([0-9]+(h|m|s))+$":                  "duration",
	"^/.*[^/]$":                           "absolute path",
	`^[0-9a-fA-F.:]+(/[0-9]{1,3})?$`:      "address range",
	"^(sha256:[0-9a-f]{64})?$":            "digest",
	"^([a-z0-9][-a-z0-9]*)?[a-z0-9]$":     "cluster name",
	"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$": "Kubernetes name",
	"^([1-9][0-9]{1,3}ms|[1-5][0-9]{4}ms|[1-9]s|[1-5][0-9]s|1m|60s)$": "duration, 10ms to 1m",
}

// kind is what a value has to be, in words.
func (s *schema) kind() string {
	switch types, several := s.Type.([]any); {
	case len(s.Enum) > 0:
		return strings.Join(texts(s.Enum, literal), ", ")
	case several:
		return strings.Join(texts(types, func(v any) string { return fmt.Sprint(v) }), " or ")
	case s.Type == "array":
		return "list of " + s.Items.kind() + "s"
	case s.Minimum != nil && s.Maximum != nil:
		return fmt.Sprintf("%v, %d to %d", s.Type, *s.Minimum, *s.Maximum)
	}
	return cmp.Or(forms[s.Pattern], fmt.Sprint(s.Type))
}

func texts(values []any, text func(any) string) (out []string) {
	for _, v := range values {
		out = append(out, text(v))
	}
	return out
}

// literal is a value as it is written in YAML.
func literal(v any) string {
	text, _ := json.Marshal(v) // of what was JSON
	if word := strings.Trim(string(text), `"`); word != "" && word != "true" && word != "false" {
		return "`" + word + "`"
	}
	return "`" + string(text) + "`"
}

// said is a value's comment as one paragraph.
func said(comments ...string) string {
	var out []string
	for _, c := range comments {
		for line := range strings.Lines(c) {
			if text := strings.TrimSpace(strings.TrimLeft(line, "# ")); text != "" {
				out = append(out, text)
			}
		}
	}
	return strings.ReplaceAll(strings.Join(out, " "), "|", `\|`)
}

// page is docs/values.md while it is written.
type page struct {
	strings.Builder
	problems []string
}

func (p *page) problem(path, format string, args ...any) {
	p.problems = append(p.problems, path+": "+fmt.Sprintf(format, args...))
}

// members writes the rows of a mapping's members, in the order of the file.
func (p *page) members(path string, node *yaml.Node, s *schema) {
	var seen []string
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		seen = append(seen, key.Value)
		inner := s.Properties[key.Value]
		if inner == nil {
			p.problem(path+"."+key.Value, "not in the schema")
			continue
		}
		p.value(strings.TrimPrefix(path+"."+key.Value, "."), key, value, inner, slices.Contains(s.Required, key.Value))
	}
	for name := range s.Properties {
		if !slices.Contains(seen, name) && name != "global" { // of Helm's
			p.problem(path+"."+name, "in the schema and not in values.yaml")
		}
	}
}

// value writes the row of one value, or of what a mapping is for and its members'.
func (p *page) value(path string, key, value *yaml.Node, s *schema, required bool) {
	meaning := said(key.HeadComment, value.HeadComment, key.LineComment, value.LineComment)
	if key.FootComment+value.FootComment != "" {
		p.problem(path, "a comment belongs to no value: %q", key.FootComment+value.FootComment)
	}
	top := !strings.Contains(path, ".")
	inner := len(s.Properties) > 0 && len(value.Content) > 0
	if top {
		fmt.Fprintf(p, "\n## %s\n\n", path)
		if inner && meaning != "" {
			p.WriteString(meaning + "\n\n")
		}
		p.WriteString("| Value | Type | Default | Meaning |\n|---|---|---|---|\n")
	}
	if inner {
		if !top && meaning != "" {
			fmt.Fprintf(p, "| `%s` | | | %s |\n", path, meaning)
		}
		p.members(path, value, s)
		return
	}
	if meaning == "" {
		p.problem(path, "say in a comment what it is for")
	}
	fallback := "`" + writtenAs(value) + "`"
	if required {
		fallback = "none, required"
	}
	fmt.Fprintf(p, "| `%s` | %s | %s | %s |\n", path, s.kind(), fallback, meaning)
}

// writtenAs is a default as it is written in values.yaml.
func writtenAs(node *yaml.Node) string {
	bare := strip(node)
	text, _ := yaml.Marshal(&bare) // of what was YAML
	return strings.TrimSpace(string(text))
}

// strip is a node without comments, in one line.
func strip(node *yaml.Node) yaml.Node {
	out := yaml.Node{Kind: node.Kind, Tag: node.Tag, Value: node.Value, Style: node.Style}
	for _, c := range node.Content {
		inner := strip(c)
		out.Content = append(out.Content, &inner)
	}
	if node.Kind != yaml.ScalarNode {
		out.Style = yaml.FlowStyle
	}
	return out
}

// TestValues holds docs/values.md to the chart: values.yaml's comments and
// defaults, and values.schema.json's types. Every value says what it is for, and
// the two files have the same values.
func TestValues(t *testing.T) {
	var document yaml.Node
	must(t, yaml.Unmarshal([]byte(readFile(t, chartDir+"/values.yaml")), &document))
	var s schema
	must(t, json.Unmarshal([]byte(readFile(t, chartDir+"/values.schema.json")), &s))
	p := &page{}
	p.WriteString("# The Helm chart's values\n\nMade from `deploy/helm/clustermesh`, `values.yaml` and `values.schema.json`, by `make deploy-generate`.\n\n")
	p.WriteString(said(document.HeadComment) + "\n")
	p.members("", document.Content[0], &s)
	for _, problem := range p.problems {
		t.Error(problem)
	}
	if n := strings.Count(p.String(), "\n| `"); n < 100 {
		t.Errorf("only %d values", n)
	}
	compare(t, root+"/docs/values.md", p.String())
}

// TestForms: no pattern has a name that the schema does not use.
func TestForms(t *testing.T) {
	text := readFile(t, chartDir+"/values.schema.json")
	for pattern := range forms {
		quoted, err := json.Marshal(pattern)
		must(t, err)
		if _, err := regexp.Compile(pattern); err != nil || !strings.Contains(text, `"pattern": `+string(quoted)) {
			t.Errorf("%s: not in the schema (%v)", pattern, err)
		}
	}
}
