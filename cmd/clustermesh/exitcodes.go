package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// exitCode is one way in which a command ends.
type exitCode struct {
	code    int
	meaning string
}

// exitCodes are all there are, for every command.
func exitCodes() []exitCode {
	return []exitCode{
		{cli.ExitOK, "Done. For commands that look for faults (troubleshoot, certs check): there are none."},
		{cli.ExitFailed, "Failed, and standard error says why and what to do; or faults were found and are on standard output."},
		{cli.ExitUsage, "Used wrongly: a flag, an argument or an environment variable. Nothing was done, standard output is empty."},
	}
}

// newExitCodes is a topic of help and not a command that does something.
func newExitCodes() *cobra.Command {
	var text strings.Builder
	text.WriteString("Every command ends with one of these exit codes:\n\n")
	for _, c := range exitCodes() {
		fmt.Fprintf(&text, "  %d  %s\n", c.code, c.meaning)
	}
	text.WriteString("\nStandard output holds the answer alone, in the format of --output; everything else is on standard error.\nA command with --watch, and monitor, end with 0 when they are interrupted.\n")
	return &cobra.Command{
		Use:     "exit-codes",
		Short:   "What the exit codes of all commands mean",
		Long:    text.String(),
		Example: "  clustermesh troubleshoot --clusters /etc/clustermesh/clusters || echo \"exit code $?\"",
	}
}
