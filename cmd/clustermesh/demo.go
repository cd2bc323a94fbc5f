package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/cmd/clustermesh/demo"
)

func newDemo(a *app) *cobra.Command {
	var binDir, dir string
	var pause bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run two clusters on this machine and show what the mesh does",
		Long: `Run two clusters, east and west, on this machine and show what the mesh does:
requests answered by both clusters, a control plane killed without a request
lost, backends withdrawn and brought back.

It needs Linux and root, and no Kubernetes. Everything happens in network
namespaces, cgroups and a temporary directory of its own and is removed at the
end, also after Ctrl-C. With -o json the story goes to standard error and a
report to standard output.`,
		Example: "  sudo clustermesh demo\n  sudo clustermesh demo --pause",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := usage(positive("timeout", timeout), needDir("examples", dir), needDir("bin-dir", binDir)); err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find own executable: %w", err)
			}
			cfg := demo.Config{Self: self, BinDir: binDir, Examples: exampleFiles(dir), Out: a.storyWriter(), Pause: pause, StepTimeout: timeout}
			report, err := demo.Run(cmd.Context(), cfg)
			return errors.Join(err, a.printReport(report, err))
		},
	}
	cmd.Flags().StringVar(&binDir, "bin-dir", "", "directory of clustermesh-apiserver and clustermesh-agent (default: beside this program, then PATH)")
	cmd.Flags().StringVar(&dir, "examples", "", "directory with manifests in east/ and west/ (default: built in)")
	cmd.Flags().BoolVar(&pause, "pause", false, "leave the mesh running at the end until Ctrl-C")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for any one thing")
	cmd.AddCommand(newDemoBackend(), newDemoGet(a))
	return cmd
}

// exampleFiles is nil for the built-in ones.
func exampleFiles(dir string) fs.FS {
	if dir == "" {
		return nil
	}
	return os.DirFS(dir)
}

func (a *app) storyWriter() io.Writer {
	if a.forMachines() {
		return a.stderr
	}
	return a.stdout
}

func (a *app) printReport(r demo.Report, failed error) error {
	if a.forMachines() {
		return a.print(r, table{})
	}
	if failed == nil {
		fmt.Fprintf(a.stdout, "\nDone in %.1f s; everything is removed.\n", r.Seconds)
	}
	return nil
}

func needDir(flag, dir string) error {
	if dir == "" {
		return nil
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return fmt.Errorf("--%s %q: not a directory", flag, dir)
	}
	return nil
}

func positive(flag string, d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("--%s %s: give a positive duration", flag, d)
	}
	return nil
}

// newDemoBackend is what the pods of the demo run.
func newDemoBackend() *cobra.Command {
	var listen, name string
	cmd := &cobra.Command{
		Use:     "backend --listen ADDR --name NAME",
		Short:   "Answer HTTP requests with a name",
		Example: "  clustermesh demo backend --listen 127.0.0.1:8080 --name a",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := usage(needFlag("listen", listen), needFlag("name", name)); err != nil {
				return err
			}
			return demo.Backend(cmd.Context(), listen, name)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "address to listen on (required)")
	cmd.Flags().StringVar(&name, "name", "", "what to answer (required)")
	return cmd
}

// newDemoGet is what the clients of the demo run.
func newDemoGet(a *app) *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:     "get URL",
		Short:   "Make HTTP requests, each over a new connection, one JSON line each",
		Example: "  clustermesh demo get http://10.96.0.10/ --count 10",
		Hidden:  true,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return demo.Get(cmd.Context(), a.stdout, args[0], count)
		},
	}
	cmd.Flags().IntVar(&count, "count", 1, "number of requests")
	return cmd
}
