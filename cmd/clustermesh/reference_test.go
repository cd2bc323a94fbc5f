package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

const referenceFile = "../../docs/cli.md"

// TestReference holds docs/cli.md to the commands.
func TestReference(t *testing.T) {
	want := reference()
	if *update {
		if err := os.WriteFile(referenceFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referenceFile)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("docs/cli.md is not what the commands say (%v); run: go test ./cmd/clustermesh -run TestReference -update", err)
	}
}

// reference is the text of all commands' help, in the order of the tree.
func reference() []byte {
	var out bytes.Buffer
	out.WriteString("# clustermesh: reference\n\nMade from the commands themselves by `go test ./cmd/clustermesh -run TestReference -update`; `clustermesh COMMAND --help` says the same.\n\n")
	out.WriteString("Every flag is also an environment variable: `--api-socket` is `CLUSTERMESH_API_SOCKET`; the command line wins.\n\n")
	out.WriteString("## Output\n\nEvery command prints a table, or with `-o` `wide` (more columns), `json` or `yaml`, which have the same members. Members of the JSON are only added: none\nis renamed, removed or left out. Colours are on terminals only, and not with `NO_COLOR`. What takes longer than a second says on\na terminal what it waits for. `--watch` asks again and again: it redraws a terminal, and otherwise adds one answer to the other,\na line of JSON or a YAML document each.\n\n")
	out.WriteString("## Exit codes\n\n| Code | Meaning |\n|---|---|\n")
	for _, c := range exitCodes() {
		fmt.Fprintf(&out, "| %d | %s |\n", c.code, c.meaning)
	}
	everyCommand(func(c *cobra.Command) {
		if c.Hidden || !c.Runnable() || c.Name() == "help" {
			return
		}
		section(&out, c)
	})
	return append(bytes.TrimSpace(out.Bytes()), '\n')
}

func section(out *bytes.Buffer, c *cobra.Command) {
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	fmt.Fprintf(out, "\n## %s\n\n```\n%s\n```\n\n%s\n\n```\n%s\n```\n", c.CommandPath(), strings.TrimSuffix(c.UseLine(), " [flags]"), long, unindent(c.Example))
	var rows []string
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "output" && c.Parent() != nil && c.Parent().PersistentFlags().Lookup("output") == f {
			return
		}
		rows = append(rows, flagRow(f))
	})
	if len(rows) > 0 {
		fmt.Fprintf(out, "\n| Flag | Default | Meaning |\n|---|---|---|\n%s", strings.Join(rows, ""))
	}
}

func flagRow(f *pflag.Flag) string {
	name := "`--" + f.Name
	if f.Shorthand != "" {
		name = "`-" + f.Shorthand + ", --" + f.Name
	}
	kind, usage := pflag.UnquoteUsage(f)
	if kind != "" {
		name += " " + kind
	}
	value := f.DefValue
	if value == "" || value == "false" || value == "[]" || value == "0" && !strings.Contains(usage, "0 ") {
		value = "-"
	}
	return fmt.Sprintf("| %s` | %s | %s |\n", name, value, strings.ReplaceAll(usage, "|", "\\|"))
}

func unindent(example string) string {
	lines := strings.Split(example, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
