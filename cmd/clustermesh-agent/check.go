package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/agent"
	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// errCheck ends check when something necessary is missing.
var errCheck = errors.New("something that the agent needs is missing")

// Formats of check's output, as those of clustermesh; text is an older name of
// table.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatText  = "text"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

func newCheck(stdout io.Writer) *cobra.Command {
	o := &options{}
	format := formatTable
	c := cli.Prepare(&cobra.Command{
		Use:   "check",
		Short: "Say whether this node has what the agent needs, changing nothing",
		Long: `check tries every feature of the kernel that the agent's programs use, looks at
the file systems and privileges that it needs, and at what else on the node
balances services: other programs on the same hooks and kube-proxy.

A line begins with ok, with note for what costs something but stops nothing (it
says what is used instead, or what to do), or with MISSING for what the agent
cannot run without. With MISSING the exit code is 1.`,
		Example: `  clustermesh-agent check --bpffs /sys/fs/bpf
  clustermesh-agent check -o json`,
		RunE: func(*cobra.Command, []string) error {
			return report(stdout, format, agent.Check(o.Config))
		},
	}, func() error { return checkFormat(format) })
	o.addPlaceFlags(c.Flags())
	c.Flags().StringVarP(&format, "output", "o", formatTable, "output format: table, wide (a table with more columns), json or yaml")
	return c
}

func checkFormat(format string) error {
	switch format {
	case formatTable, formatWide, formatText, formatJSON, formatYAML:
		return nil
	}
	return fmt.Errorf("--output %q: not known; use table, wide, json or yaml", format)
}

// answer is one finding of the JSON output.
type answer struct {
	Check  string `json:"check"`
	State  string `json:"state"` // "ok", "note" or "missing"
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

func state(f bpf.Finding) string {
	switch {
	case f.OK:
		return "ok"
	case f.Fatal:
		return "missing"
	}
	return "note"
}

// report writes the findings and returns errCheck if one of them is fatal.
func report(w io.Writer, format string, findings []bpf.Finding) error {
	out := struct {
		OK       bool     `json:"ok"`
		Findings []answer `json:"findings"`
	}{OK: true}
	for _, f := range findings {
		out.Findings = append(out.Findings, answer{f.Check, state(f), f.Detail, f.Remedy})
		out.OK = out.OK && (f.OK || !f.Fatal)
	}
	if err := write(w, format, out.Findings, out); err != nil {
		return err
	}
	if !out.OK {
		return errCheck
	}
	return nil
}

func write(w io.Writer, format string, findings []answer, all any) error {
	if format == formatJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(all)
	}
	if format == formatYAML {
		text, err := cli.YAML(all)
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	}
	for _, a := range findings {
		if _, err := fmt.Fprintln(w, a.line()); err != nil {
			return err
		}
	}
	return nil
}

func (a answer) line() string {
	mark := a.State
	if mark == "missing" {
		mark = "MISSING"
	}
	text := fmt.Sprintf("%-8s %s: %s", mark, a.Check, a.Detail)
	if a.Remedy != "" {
		text += "; " + a.Remedy
	}
	return text
}
