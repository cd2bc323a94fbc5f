package check

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

// inventory are the metrics of both binaries with their labels.
func inventory(t *testing.T) map[string]metric {
	t.Helper()
	all := map[string]metric{
		// What Prometheus, the Go library and the scrape add.
		"up":                            {kind: "gauge"},
		"ALERTS":                        {kind: "gauge", labels: []string{"alertname", "alertstate", "severity"}},
		"process_cpu_seconds_total":     {kind: "counter"},
		"process_resident_memory_bytes": {kind: "gauge"},
	}
	line := regexp.MustCompile(`(?m)^([a-z_]+)\{([a-z_,]*)\} (\w+)$`)
	for _, golden := range []string{"/agent/testdata/metrics.golden", "/apiserver/testdata/metrics.golden"} {
		for _, m := range line.FindAllStringSubmatch(readFile(t, root+golden), -1) {
			found := metric{kind: m[3], labels: strings.Split(m[2], ",")}
			if m[3] != "histogram" {
				all[m[1]] = found
				continue
			}
			found.kind = "counter"
			all[m[1]+"_sum"], all[m[1]+"_count"] = found, found
			found.labels = append(found.labels, "le")
			all[m[1]+"_bucket"] = found
		}
	}
	if len(all) < 60 {
		t.Fatalf("only %d metrics were found", len(all))
	}
	return all
}

type metric struct {
	kind   string
	labels []string
}

// has tells whether series of a metric may have a label; those of the scrape all
// have.
func (m metric) has(label string) bool {
	return slices.Contains([]string{"job", "instance"}, label) || slices.Contains(m.labels, label)
}

// judge says what is wrong with a query.
func judge(all map[string]metric, query string) (problems []string) {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(strings.NewReplacer("$__rate_interval", "5m").Replace(query))
	if err != nil {
		return []string{err.Error()}
	}
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			m, known := all[n.Name]
			if !known {
				wrong("there is no metric %q", n.Name)
			}
			for _, l := range n.LabelMatchers {
				if l.Name != labels.MetricName && !m.has(l.Name) {
					wrong("%s has no label %q", n.Name, l.Name)
				}
			}
		case *parser.AggregateExpr:
			for _, l := range n.Grouping {
				if !anywhere(all, n.Expr, l) {
					wrong("nothing in %s has the label %q", n.Expr, l)
				}
			}
		case *parser.Call:
			counts := slices.Contains([]string{"rate", "irate", "increase"}, n.Func.Name)
			for _, name := range selected(n) {
				if counter := all[name].kind == "counter"; counts && !counter {
					wrong("%s is no counter, and %s is for counters", name, n.Func.Name)
				}
			}
		}
		return nil
	})
	return problems
}

// selected are the metrics in an expression.
func selected(node parser.Node) (names []string) {
	parser.Inspect(node, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok {
			names = append(names, s.Name)
		}
		return nil
	})
	return names
}

func anywhere(all map[string]metric, node parser.Node, label string) bool {
	return slices.ContainsFunc(selected(node), func(name string) bool { return all[name].has(label) })
}

// queries are those of the dashboards and alerts, by where they are.
func queries(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var rules ruleFile
	must(t, yaml.UnmarshalStrict([]byte(readFile(t, "../alerts/clustermesh.yaml")), &rules))
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			out["alert "+r.Alert] = r.Expr
		}
	}
	files, err := filepath.Glob("../dashboards/*.json")
	must(t, err)
	for _, file := range files {
		var page struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		must(t, json.Unmarshal([]byte(readFile(t, file)), &page))
		for _, p := range page.Panels {
			for i, q := range p.Targets {
				out[fmt.Sprintf("%s: %s, query %d", filepath.Base(file), p.Title, i)] = q.Expr
			}
		}
	}
	return out
}

// TestQueries: everything that dashboards and alerts ask for exists, with the
// labels that they ask for it by.
func TestQueries(t *testing.T) {
	all, asked := inventory(t), queries(t)
	if len(asked) < 80 {
		t.Errorf("only %d queries were found", len(asked))
	}
	for where, query := range asked {
		for _, problem := range judge(all, query) {
			t.Errorf("%s: %s\n%s", where, problem, query)
		}
	}
}

// TestQueriesAreJudged: what is wrong in a query is seen.
func TestQueriesAreJudged(t *testing.T) {
	all := inventory(t)
	for _, query := range []string{
		`clustermesh_ready{`, `clustermesh_redy`, `clustermesh_ready{cluster="a"}`, `sum by (peer) (clustermesh_ready)`,
		`rate(clustermesh_ready[5m])`, `sum without (zone) (clustermesh_identities)`,
	} {
		if len(judge(all, query)) == 0 {
			t.Errorf("%s passes", query)
		}
	}
}
