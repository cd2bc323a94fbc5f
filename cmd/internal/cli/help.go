package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is how many columns the flags of --help take.
const helpWidth = 100

// groupKey annotates a flag with the title under which help shows it.
const groupKey = "clustermesh_group"

// Titles of the flags that no group has, and of those that every command has.
const (
	ownFlags     = "Flags"
	generalFlags = "General flags"
)

// ExitCode is one way in which a command ends.
type ExitCode struct {
	Code    int
	Meaning string // a sentence
}

// ExitCodes are those of the daemons and their sub-commands.
func ExitCodes() []ExitCode {
	return []ExitCode{
		{ExitOK, "Ended when told to, by SIGTERM or SIGINT; or done."},
		{ExitFailed, "Failed, and standard error says why and what to do."},
		{ExitUsage, "Used wrongly: a flag, a variable or a member of the file, all named on standard error."},
	}
}

// Group adds to flags what add adds, under a title of their own in help and
// reference. Groups and flags are shown in the order in which they are added.
func Group(flags *pflag.FlagSet, title string, add func(*pflag.FlagSet)) {
	set := pflag.NewFlagSet(title, pflag.ContinueOnError)
	set.SortFlags = false
	add(set)
	set.VisitAll(func(f *pflag.Flag) {
		annotate(f, title)
		flags.AddFlag(f)
	})
}

func annotate(f *pflag.Flag, title string) {
	if f.Annotations == nil {
		f.Annotations = map[string][]string{}
	}
	f.Annotations[groupKey] = []string{title}
}

// titleOf is the title under which a flag is shown.
func titleOf(f *pflag.Flag) string {
	switch title := f.Annotations[groupKey]; {
	case len(title) > 0:
		return title[0]
	case f.Name == "help" || f.Name == "version":
		return generalFlags
	}
	return ownFlags
}

// group is some of a command's flags under their title.
type group struct {
	title string
	flags *pflag.FlagSet
}

// groups are a command's flags: those without a group, the groups, and at last
// what every command has.
func groups(flags *pflag.FlagSet) (out []group) {
	general := group{title: generalFlags}
	flags.VisitAll(func(f *pflag.Flag) {
		title := titleOf(f)
		if title == generalFlags {
			general.add(f)
			return
		}
		for i := range out {
			if out[i].title == title {
				out[i].add(f)
				return
			}
		}
		g := group{title: title}
		g.add(f)
		out = append(out, g)
	})
	if general.flags != nil {
		out = append(out, general)
	}
	return out
}

func (g *group) add(f *pflag.Flag) {
	if g.flags == nil {
		g.flags = pflag.NewFlagSet(g.title, pflag.ContinueOnError)
		g.flags.SortFlags = false
	}
	g.flags.AddFlag(f)
}

// usage writes what --help shows below a daemon's description: flags in groups,
// and how the command ends.
func usage(c *cobra.Command) error {
	var out strings.Builder
	fmt.Fprintf(&out, "Usage:\n  %s\n", c.UseLine())
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&out, "  %s COMMAND [flags]\n", c.CommandPath())
	}
	if c.HasExample() {
		fmt.Fprintf(&out, "\nExamples:\n%s\n", c.Example)
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&out, "\nCommands, of which %s COMMAND --help says more:\n", c.CommandPath())
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&out, "  %-10s %s\n", sub.Name(), sub.Short)
			}
		}
	}
	for _, g := range groups(c.LocalFlags()) {
		fmt.Fprintf(&out, "\n%s:\n%s", g.title, g.flags.FlagUsagesWrapped(helpWidth))
	}
	out.WriteString("\nExit codes:\n")
	for _, code := range ExitCodes() {
		fmt.Fprintf(&out, "  %d  %s\n", code.Code, code.Meaning)
	}
	_, err := io.WriteString(c.OutOrStderr(), out.String())
	return err
}

// Completed ends the making of a tree of commands: cobra's own commands, which
// it would add at the start, have their manners too.
func Completed(root *cobra.Command) *cobra.Command {
	root.CompletionOptions.HiddenDefaultCmd = true
	OfCommands(root)
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil && help != root {
		help.Example = "  " + root.Name() + " help " + root.Commands()[0].Name()
	}
	return root
}
