package main

import (
	"flag"
	"os"
	"testing"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/clustermesh/clustermesh/cmd/internal/cli/clitest"
)

var update = flag.Bool("update", false, "write docs/agent.md anew")

func tree() *cobra.Command { return newCommand(os.Stdout, os.Stderr) }

// TestReference holds docs/agent.md to the commands.
func TestReference(t *testing.T) {
	clitest.Golden(t, "../../docs/agent.md", cli.Manual(tree(), "deploy/systemd/agent.yaml"), *update)
}

func TestEveryCommandIsDocumented(t *testing.T) { clitest.Documented(t, tree()) }

func TestEveryExampleWorks(t *testing.T) { clitest.Examples(t, tree) }

// TestHelpIsReadable: every line fits, and no list without elements is a default.
func TestHelpIsReadable(t *testing.T) { clitest.Readable(t, tree) }

func TestUnknownCommandsAreRefused(t *testing.T) { clitest.Unknown(t, tree) }
