package observe

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Metric is a metric of one of the binaries.
type Metric struct {
	Name   string
	Type   string // counter, gauge or histogram
	Labels []string
	Help   string
	Binary string
}

// ParseInventory reads what the test of a binary has found in a registry: a
// line NAME{LABEL,LABEL} TYPE and, indented, its help.
func ParseInventory(binary, text string) ([]Metric, error) {
	var all []Metric
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		name, rest, ok := strings.Cut(lines[i], "{")
		inside, kind, ok2 := strings.Cut(rest, "} ")
		if !ok || !ok2 {
			return nil, fmt.Errorf("read inventory of %s: %q is not NAME{LABELS} TYPE", binary, lines[i])
		}
		m := Metric{Name: name, Type: kind, Help: strings.TrimSpace(lines[i+1]), Binary: binary}
		if inside != "" {
			m.Labels = strings.Split(inside, ",")
		}
		all = append(all, m)
	}
	return all, nil
}

// bounds says what each label's values are: few, whatever the cluster holds.
func bounds() map[string]string {
	return map[string]string{
		"action":         "`write`",
		"arch":           "the processor's architecture",
		"certificate":    "`server` or `client-ca`",
		"cluster":        "configured clusters, the own one included, at most 511",
		"component":      "`agent` or `apiserver`",
		"from":           "the own cluster's name",
		"go_version":     "that of the build",
		"kind":           "kinds of records, objects, requests or repairs; a fixed list",
		"map":            "names of pinned maps; a fixed list",
		"protocol":       "`tcp` or `udp`",
		"op":             "`put` or `delete`",
		"peer":           "configured peers, at most 512, and `local` and `other`",
		"reason":         "a fixed list of reasons",
		"result":         "a fixed list of outcomes",
		"revision":       "the commit of the build, empty for one outside a checkout",
		"scope":          "kinds of records",
		"source":         "`own` or `cilium`",
		"source_cluster": "the own cluster's name",
		"state":          "a fixed list of states",
		"target":         "`backend` or `node`",
		"version":        "that of the build",
	}
}

// Check joins everything that is wrong with an inventory: names, help texts, and
// labels that are not known to be bounded.
func Check(all []Metric) error {
	var errs []error
	for _, m := range all {
		errs = append(errs, m.check())
	}
	return errors.Join(errs...)
}

func (m Metric) check() error {
	var errs []error
	wrong := func(why string) { errs = append(errs, fmt.Errorf("metric %s: %s", m.Name, why)) }
	if !strings.HasPrefix(m.Name, "clustermesh_") && !strings.HasPrefix(m.Name, "cilium_clustermesh_apiserver_") {
		wrong("its name does not begin with clustermesh_")
	}
	if total := strings.HasSuffix(m.Name, "_total"); total != (m.Type == "counter") {
		wrong("counters and only they end in _total")
	}
	if m.Type == "histogram" && !strings.HasSuffix(m.Name, "_seconds") && !strings.HasSuffix(m.Name, "_bytes") {
		wrong("a histogram's name ends in its base unit, seconds or bytes")
	}
	for _, unit := range []string{"_ms", "_milliseconds", "_us", "_nanoseconds", "_minutes", "_kib", "_mib", "_kb", "_mb", "_percent"} {
		if strings.Contains(m.Name+"_", unit+"_") {
			wrong("its unit is not a base unit; use seconds, bytes or a ratio")
		}
	}
	if len(m.Help) < 10 || !strings.HasSuffix(m.Help, ".") {
		wrong("its help text is not a sentence")
	}
	for _, l := range m.Labels {
		if bounds()[l] == "" {
			wrong("label " + l + " is not known to be bounded; labels never name a service, address, key or pod")
		}
	}
	return errors.Join(errs...)
}

// Document is docs/metrics.md.
func Document(all []Metric) string {
	all = slices.SortedFunc(slices.Values(all), func(a, b Metric) int {
		return cmp.Or(cmp.Compare(a.Binary, b.Binary), cmp.Compare(a.Name, b.Name))
	})
	var b strings.Builder
	b.WriteString(documentHead)
	for _, binary := range []string{"clustermesh-agent", "clustermesh-apiserver"} {
		fmt.Fprintf(&b, "\n## %s\n\n| Metric | Type | Labels | Help |\n|---|---|---|---|\n", binary)
		for _, m := range all {
			if m.Binary == binary {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, strings.Join(m.Labels, ", "), strings.ReplaceAll(m.Help, "|", `\|`))
			}
		}
	}
	b.WriteString("\n## Labels\n\n| Label | Values |\n|---|---|\n")
	for _, l := range usedLabels(all) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", l, bounds()[l])
	}
	return b.String()
}

const documentHead = `# Metrics

Generated from the registries of running parts by ` + "`make observe-generate`" + `; do not edit. Both binaries serve ` + "`/metrics`" + ` at ` + "`--http`" + `, with
those of the Go runtime and the process (` + "`go_`, `process_`" + `) besides. Units are seconds, bytes and ratios. No label names a service, an
address, a key or a pod, so the number of series depends on how many clusters and peers are configured and on nothing else.

Metrics of single features are there only with their flags: ` + "`clustermesh_peers`, `clustermesh_peer_file_problems`" + ` with ` + "`--peers`" + `,
` + "`cilium_clustermesh_apiserver_*`" + ` with ` + "`--cilium-compat`, `clustermesh_agent_cluster_alive`, `clustermesh_agent_cluster_data_path`" + `,
` + "`clustermesh_agent_probe_rtt_seconds`" + ` and ` + "`clustermesh_agent_probes_total`" + ` with ` + "`--probe`" + `; some appear with the first event.

[Alert rules](../deploy/alerts/clustermesh.yaml) with [runbooks](runbooks.md) and [dashboards](../deploy/dashboards) use them.
`

func usedLabels(all []Metric) []string {
	var used []string
	for _, m := range all {
		used = append(used, m.Labels...)
	}
	slices.Sort(used)
	return slices.Compact(used)
}
