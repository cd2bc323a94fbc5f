package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// app is what every command works with: the streams and the output format.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	format         string
	colour         bool // of tables
	stream         bool // of documents, for formats that programs read
	started        bool // a command's own code has begun: flags and arguments were fine
}

// errUsage marks an error of the command line. Commands wrap it with usage.
var errUsage = errors.New("wrong usage")

// usage makes an error of the command line out of all its problems; nil when
// there are none.
func usage(problems ...error) error {
	err := errors.Join(problems...)
	if err == nil {
		return nil
	}
	return usageError{err}
}

type usageError struct{ error }

func (usageError) Is(target error) bool { return target == errUsage }
func (e usageError) Unwrap() error      { return e.error }

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, colour: wantsColour(stdout)}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetContext(ctx)
	cmd, err := cli.Execute(root)
	switch {
	case err == nil:
		return cli.ExitOK
	case errors.Is(err, errUsage) || cli.IsUsage(err) || !a.started:
		fmt.Fprintf(stderr, "error: %s\nSee '%s --help'.\n", indent(err), cmd.CommandPath())
		return cli.ExitUsage
	default:
		fmt.Fprintf(stderr, "error: %s\n", indent(err))
		return cli.ExitFailed
	}
}

// indent puts the lines of a joined error below each other.
func indent(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", "\n       ")
}

// newRoot assembles the commands. A new command is one file with one
// constructor and one line here.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "clustermesh",
		Short: "Look after a mesh of clusters",
		Long: `clustermesh looks after a mesh of clusters: it issues certificates, asks the
agent of a node what it sees and does, and demonstrates a mesh on one machine.

Every flag is also an environment variable: --api-socket is
CLUSTERMESH_API_SOCKET. The command line wins.

Exit codes: 0 done, 1 failed, 2 used wrongly; see "clustermesh help exit-codes".`,
		Example:       "  clustermesh certs init --dir pki\n  clustermesh certs issue --dir pki --kind server --cluster east --host mesh.east.example.com",
		Version:       cli.ThisBuild().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(cli.Settle(cmd.Flags()), a.checkFormat()); err != nil {
				return err
			}
			a.started = true
			return nil
		},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.PersistentFlags().StringVarP(&a.format, "output", "o", formatTable, "output format: table, wide (a table with more columns), json or yaml")
	root.AddCommand(newCerts(a), newDemo(a), newTroubleshoot(a))
	root.AddCommand(newNodeCommands(a)...)
	root.AddCommand(newExplain(a), newRelease(a))
	root.AddCommand(newJoinCommands(a)...)
	root.AddCommand(newSysdump(a), newCompletion(a), newVersion(a), newExitCodes())
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Example = "  clustermesh help explain\n  clustermesh help exit-codes"
	}
	if err := completeFormats(root); err != nil {
		panic(err) // the flag was added above
	}
	return asGroup(root)
}

// asGroup makes a command that only has sub-commands show its help when called
// alone and refuse what it does not know; cobra accepts any word there.
func asGroup(cmd *cobra.Command) *cobra.Command {
	cli.OfCommands(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}
