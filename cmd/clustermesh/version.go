package main

import (
	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// newVersion shows what --version does, for programs too.
func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show version, commit and date of this command",
		Long: `Show the version of this command, the commit that it was built from and that
commit's date, as --version does. Those of agents and apiservers are in
clustermesh status -o json and in the metric clustermesh_build_info.`,
		Example: "  clustermesh version\n  clustermesh version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := cli.ThisBuild()
			t := table{header: []string{"VERSION", "COMMIT", "DATE", "GO"}}
			t.add(b.Version, b.Commit, b.Date, b.Go)
			return a.print(b, t)
		},
	}
}
