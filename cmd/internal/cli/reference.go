package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// settings is what a daemon's manual says of all its flags, with flags of its
// own for examples: a text, a switch that is on, and a list of addresses if it
// has one.
func settings(flags *pflag.FlagSet) string {
	var out strings.Builder
	out.WriteString("## Flags, variables and the file\n\n" +
		"Every flag can be given in three ways. The command line wins over the environment, the environment over the file, the file over the default.\n\n" +
		"| | Command line | Environment | YAML file that `--config` or `CLUSTERMESH_CONFIG` names |\n|---|---|---|---|\n" +
		"| a value | `--cluster-name=east` | `CLUSTERMESH_CLUSTER_NAME=east` | `cluster-name: east` |\n")
	if name := firstOf(flags, "bool", "true"); name != "" {
		fmt.Fprintf(&out, "| a switch | `--%s=false` | `%s=false` | `%s: false` |\n", name, variable(name), name)
	}
	if name := firstOf(flags, "stringSlice", "[]"); name != "" {
		fmt.Fprintf(&out, "| a list | `--%s=192.0.2.0/24,2001:db8::/32`, or the flag twice | `%s=192.0.2.0/24,2001:db8::/32` | `%s: [\"192.0.2.0/24\", \"2001:db8::/32\"]` |\n", name, variable(name), name)
	}
	out.WriteString("\nA variable that is empty counts as not set. Commands leave variables of flags alone that they do not have, but a file may only have\n" +
		"members that the command it is given to knows: whatever else is in it, and every value that does not fit, is reported at the start, all\n" +
		"at once, and nothing is done. Flags, variables and the file are read once, at the start. Durations are numbers with units, such as\n" +
		"`200ms`, `10m` or `1h30m`.\n\n")
	return out.String()
}

// firstOf is the first flag of a type with a default; empty when there is none.
func firstOf(flags *pflag.FlagSet, kind, value string) (name string) {
	flags.VisitAll(func(f *pflag.Flag) {
		if name == "" && f.Value.Type() == kind && f.DefValue == value {
			name = f.Name
		}
	})
	return name
}

// Manual is the page of reference of a daemon, in Markdown: how it is set up,
// how it ends, and each of its commands. example is a configuration file, by its
// path from the root of the repository.
func Manual(root *cobra.Command, example string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# %s: reference\n\nMade from the command itself by `make reference-generate`; `%s --help` says the same.\n\n", root.Name(), root.Name())
	fmt.Fprintf(&out, "%s[%s](../%s) is such a file.\n\n", settings(root.Flags()), example, example)
	out.WriteString("## Exit codes\n\n" + CodeTable(ExitCodes()))
	out.WriteString(Reference(root))
	return out.String()
}

// CodeTable is a table of exit codes, in Markdown.
func CodeTable(codes []ExitCode) string {
	var out strings.Builder
	out.WriteString("| Code | Meaning |\n|---|---|\n")
	for _, c := range codes {
		fmt.Fprintf(&out, "| %d | %s |\n", c.Code, c.Meaning)
	}
	return out.String()
}

// Reference is what the commands below root and root itself say in their help,
// in Markdown: a section for each that can be run, in the order of the tree.
// Flags of a command with --config come with their variables and members.
func Reference(root *cobra.Command) string {
	var out strings.Builder
	Walk(root, func(c *cobra.Command) {
		if c.Hidden || !c.Runnable() || c.Name() == "help" {
			return
		}
		section(&out, c)
	})
	return out.String()
}

// Walk calls fn with each command of a tree, hidden ones and topics of help too.
func Walk(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, sub := range c.Commands() {
		Walk(sub, fn)
	}
}

func section(out *strings.Builder, c *cobra.Command) {
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	fmt.Fprintf(out, "\n## %s\n\n```\n%s\n```\n\n%s\n\n```\n%s\n```\n", c.CommandPath(), strings.TrimSuffix(c.UseLine(), " [flags]"), long, unindent(c.Example))
	settled := c.Flags().Lookup("config") != nil
	all := groups(c.LocalFlags())
	for _, g := range all {
		rows := rowsOf(c, g.flags, settled)
		if rows == "" {
			continue
		}
		if len(all) > 1 && settled {
			fmt.Fprintf(out, "\n%s:\n", g.title)
		}
		if settled {
			out.WriteString("\n| Flag | Variable | Member of the file | Default | Meaning |\n|---|---|---|---|---|\n" + rows)
		} else {
			out.WriteString("\n| Flag | Default | Meaning |\n|---|---|---|\n" + rows)
		}
	}
}

// rowsOf leaves out what is said elsewhere: help, and --output of all commands.
func rowsOf(c *cobra.Command, flags *pflag.FlagSet, settled bool) string {
	var rows strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		inherited := f.Name == "output" && c.Parent() != nil && c.Parent().PersistentFlags().Lookup("output") == f
		if !f.Hidden && f.Name != "help" && !inherited {
			rows.WriteString(row(f, settled))
		}
	})
	return rows.String()
}

func row(f *pflag.Flag, settled bool) string {
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
	places := ""
	if settled {
		member := "`" + f.Name + "`"
		if f.Name == "config" {
			member = "-"
		}
		places = fmt.Sprintf(" `%s` | %s |", variable(f.Name), member)
	}
	return fmt.Sprintf("| %s` |%s %s | %s |\n", name, places, value, strings.ReplaceAll(usage, "|", "\\|"))
}

// variable is the environment variable that sets a flag.
func variable(flag string) string {
	return EnvPrefix + "_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func unindent(example string) string {
	lines := strings.Split(example, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
