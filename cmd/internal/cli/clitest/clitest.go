// Package clitest holds the manners of all commands to the same: each is
// documented, its examples are command lines that it takes, and its page of
// reference is what it says of itself.
package clitest

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// Golden demands that the file at path holds text, after writing it if update.
func Golden(t *testing.T, path, text string, update bool) {
	t.Helper()
	if update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != text {
		t.Errorf("%s is not what the commands say (%v); look at the difference after `make reference-generate`", path, err)
	}
}

// Documented demands that each command has a short help and an example, and
// each flag a help, which is no sentence.
func Documented(t *testing.T, root *cobra.Command) {
	t.Helper()
	cli.Walk(root, func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s: give it a short help and an example", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: say what it is for, without a full stop: %q", c.CommandPath(), f.Name, f.Usage)
			}
		})
	})
}

var (
	continuedPattern = regexp.MustCompile(`\\\n *`)
	quotedPattern    = regexp.MustCompile(`'[^']*'|"[^"]*"`)
	shellPattern     = regexp.MustCompile(` (\||\|\||>|<|   #) .*`)
)

// Examples demands that what the help shows is a command that there is, with
// flags that it has. Each example is tried on a tree of its own.
func Examples(t *testing.T, newRoot func() *cobra.Command) {
	t.Helper()
	root := newRoot()
	cli.Walk(root, func(c *cobra.Command) {
		for line := range strings.Lines(continuedPattern.ReplaceAllString(c.Example, "")) {
			text := quotedPattern.ReplaceAllString(shellPattern.ReplaceAllString(strings.TrimSpace(line), ""), "x")
			words := strings.Fields(strings.TrimPrefix(text, "sudo "))
			if len(words) == 0 || words[0] != root.Name() {
				t.Errorf("%s: example %q does not begin with %s", c.CommandPath(), line, root.Name())
				continue
			}
			found, rest, err := newRoot().Find(words[1:])
			if err == nil {
				err = found.ParseFlags(rest)
			}
			if err != nil {
				t.Errorf("%s: example %q: %v", c.CommandPath(), line, err)
			}
		}
	})
}

// Readable demands of --help of each command that it ends well, that no line is
// longer than 100 columns, and that it shows what every reader needs.
func Readable(t *testing.T, newRoot func() *cobra.Command) {
	t.Helper()
	cli.Walk(newRoot(), func(c *cobra.Command) {
		var out, errs bytes.Buffer
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if code := cli.Main(newRoot(), args, &out, &errs); code != cli.ExitOK || errs.Len() > 0 {
			t.Errorf("%q: exit code %d\n%s", args, code, &errs)
		}
		for line := range strings.Lines(out.String()) {
			if strings.Contains(line, "(default [])") || len([]rune(strings.TrimSuffix(line, "\n"))) > 100 {
				t.Errorf("%s --help: line %q", c.CommandPath(), line)
			}
		}
		for _, want := range []string{"\nExamples:\n", "\nGeneral flags:\n", "\nExit codes:\n", "  2  "} {
			if c.Name() != "help" && !strings.Contains(out.String(), want) {
				t.Errorf("%s --help lacks %q:\n%s", c.CommandPath(), want, &out)
			}
		}
	})
}

// Unknown demands that a word which names no command is refused, alone and where
// help is asked for it, with what was perhaps meant.
func Unknown(t *testing.T, newRoot func() *cobra.Command) {
	t.Helper()
	root := newRoot()
	words := map[string]string{"frob": `unknown command "frob" for "` + root.Name() + `"`}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			near := c.Name()
			words[near+"x"] = `unknown command "` + near + `x" for "` + root.Name() + `"; did you mean ` + near + `?`
		}
	}
	for word, want := range words {
		lines := [][]string{{word}, {word, "--help"}, {"-h", word}}
		if root.HasAvailableSubCommands() {
			lines = append(lines, []string{"help", word})
		}
		for _, args := range lines {
			var out, errs bytes.Buffer
			if code := cli.Main(newRoot(), args, &out, &errs); code != cli.ExitUsage || out.Len() > 0 || !strings.Contains(errs.String(), want) || !strings.Contains(errs.String(), "--help'") {
				t.Errorf("%q: exit code %d, want %d and %q\n%s%s", args, code, cli.ExitUsage, want, &out, &errs)
			}
		}
	}
}
