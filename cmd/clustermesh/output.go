package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
)

const (
	formatTable = "table"
	formatWide  = "wide" // a table with more columns, where there are more
	formatJSON  = "json"
)

func (a *app) checkFormat() error {
	switch a.format {
	case formatTable, formatWide, formatJSON:
		return nil
	}
	return usage(fmt.Errorf("--output %q: use table, wide or json", a.format))
}

// table is the text form of an answer. An empty table prints its header alone.
type table struct {
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	t.rows = append(t.rows, cells)
}

// print writes value as JSON or t as text, whichever the user asked for.
func (a *app) print(value any, t table) error {
	if a.format == formatJSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(value)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{t.header}, t.rows...) {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}
