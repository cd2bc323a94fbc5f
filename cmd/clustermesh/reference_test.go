package main

import (
	"flag"
	"testing"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/clustermesh/clustermesh/cmd/internal/cli/clitest"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

// TestReference holds docs/cli.md to the commands.
func TestReference(t *testing.T) {
	clitest.Golden(t, "../../docs/cli.md", preamble+"## Exit codes\n\n"+cli.CodeTable(exitCodes())+cli.Reference(tree()), *update)
}

// preamble is what holds for all commands.
const preamble = "# clustermesh: reference\n\nMade from the commands themselves by `make reference-generate`; `clustermesh COMMAND --help` says the same.\n\n" +
	"Every flag is also an environment variable: `--api-socket` is `CLUSTERMESH_API_SOCKET`; the command line wins.\n\n" +
	"## Output\n\nEvery command prints a table, or with `-o` `wide` (more columns), `json` or `yaml`, which have the same members. Members of the JSON are only added: none\nis renamed, removed or left out. Colours are on terminals only, and not with `NO_COLOR`. What takes longer than a second says on\na terminal what it waits for. `--watch` asks again and again: it redraws a terminal, and otherwise adds one answer to the other,\na line of JSON or a YAML document each.\n\n"
