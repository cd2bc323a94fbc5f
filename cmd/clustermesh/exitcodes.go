package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// exitCodes are all there are, for every command.
func exitCodes() []cli.ExitCode {
	return []cli.ExitCode{
		{Code: cli.ExitOK, Meaning: "Done. For commands that look for faults (troubleshoot, certs check): there are none."},
		{Code: cli.ExitFailed, Meaning: "Failed, and standard error says why and what to do; or faults were found and are on standard output."},
		{Code: cli.ExitUsage, Meaning: "Used wrongly: a flag, an argument or an environment variable. Nothing was done, standard output is empty."},
	}
}

// newExitCodes is a topic of help and not a command that does something.
func newExitCodes() *cobra.Command {
	var text strings.Builder
	text.WriteString("Every command ends with one of these exit codes:\n\n")
	for _, c := range exitCodes() {
		fmt.Fprintf(&text, "  %d  %s\n", c.Code, c.Meaning)
	}
	text.WriteString("\nStandard output holds the answer alone, in the format of --output; everything else is on standard error.\nA command with --watch, and monitor, end with 0 when they are interrupted.\n")
	return &cobra.Command{
		Use:     "exit-codes",
		Short:   "What the exit codes of all commands mean",
		Long:    text.String(),
		Example: "  clustermesh troubleshoot --clusters /etc/clustermesh/clusters || echo \"exit code $?\"",
	}
}
