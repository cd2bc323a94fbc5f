package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"

	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// The output formats. JSON is the stable one; YAML has the same members in the
// same order.
const (
	formatTable = "table"
	formatWide  = "wide" // a table with more columns, where there are more
	formatJSON  = "json"
	formatYAML  = "yaml"
)

func formats() []string { return []string{formatTable, formatWide, formatJSON, formatYAML} }

func (a *app) checkFormat() error {
	for _, known := range formats() {
		if a.format == known {
			return nil
		}
	}
	return usage(fmt.Errorf("--output %q: use table, wide, json or yaml", a.format))
}

// forMachines tells the formats that programs read from the tables.
func (a *app) forMachines() bool { return a.format == formatJSON || a.format == formatYAML }

// table is aligned text for people.
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

func (t *table) draw(w io.Writer) {
	for _, row := range append([][]string{t.header}, t.rows...) {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
}

// print writes value in the format for machines that was asked for, or the
// table.
func (a *app) print(value any, t table) error { return a.show(value, t.draw) }

// show is print for tables that draw themselves: draw gets a writer that aligns
// columns separated by tabs.
func (a *app) show(value any, draw func(w io.Writer)) error {
	if a.forMachines() {
		return a.encode(value)
	}
	p := a.painter()
	w := tabwriter.NewWriter(p, 0, 0, 2, ' ', 0)
	draw(w)
	return errors.Join(w.Flush(), p.Close())
}

// line writes one line of text for people.
func (a *app) line(text string) error {
	p := a.painter()
	_, err := fmt.Fprintln(p, text)
	return errors.Join(err, p.Close())
}

// encode writes value for machines: one document, or one of a stream, which is
// a line of JSON or a YAML document that begins with "---".
func (a *app) encode(value any) error {
	if a.format == formatYAML {
		return a.encodeYAML(value)
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	if !a.stream {
		enc.SetIndent("", "  ")
	}
	return enc.Encode(notNull(value))
}

// notNull makes an empty list of a nil one: lists are always there.
func notNull(value any) any {
	if v := reflect.ValueOf(value); v.Kind() == reflect.Slice && v.IsNil() {
		return []struct{}{}
	}
	return value
}

func (a *app) encodeYAML(value any) error {
	text, err := cli.YAML(notNull(value))
	if err != nil {
		return err
	}
	if a.stream {
		text = append([]byte("---\n"), text...)
	}
	_, err = a.stdout.Write(text)
	return err
}
