package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// IsUsage reports whether err was marked by [Usage].
func IsUsage(err error) bool {
	var marked usageError
	return errors.As(err, &marked)
}

// OnlyCommands checks the arguments of a command that takes none but the names
// of its sub-commands: what is left as an argument is no such name.
func OnlyCommands(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath())
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return Usage(errors.New(text))
}

// suggestAt is how many letters a word may differ from a command that is meant.
const suggestAt = 2

// OfCommands makes c a command that only knows its sub-commands' names.
func OfCommands(c *cobra.Command) {
	c.Args = OnlyCommands
	c.SuggestionsMinimumDistance = suggestAt
}

// Execute runs a tree of commands like [cobra.Command.ExecuteC], but help asked for
// a command that is not there, by --help or the help command, is a mistake of usage
// and not the help of something else.
func Execute(root *cobra.Command) (*cobra.Command, error) {
	var unknown error
	show := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		if unknown = helpless(c, c.Flags().Args()); unknown == nil {
			show(c, args)
		}
	})
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil && help != root {
		help.Args = func(_ *cobra.Command, args []string) error {
			return helpless(root, args)
		}
	}
	c, err := root.ExecuteC()
	return c, errors.Join(err, unknown)
}

// helpless is the error that words name no command below c. A command without any
// takes arguments, which its help need not look at.
func helpless(c *cobra.Command, words []string) error {
	found, rest, err := c.Find(words)
	switch {
	case err != nil:
		return Usage(err)
	case found.HasParent() && !found.HasAvailableSubCommands():
		return nil
	}
	return OnlyCommands(found, rest)
}
