package agent

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/agent/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestMetricsInventory holds names, labels and help texts against a golden
// file, because dashboards and alerts depend on them.
func TestMetricsInventory(t *testing.T) {
	s := newProbing(t)
	s.say("east", "s1", "127.0.0.1:80") // refused: makes the rejections appear
	s.clusters["east"].mark(false)      // makes age and lag appear
	s.awaitCluster("east", "refused something", func(c *api.Cluster) bool {
		return c.GetState() == "synced" && len(c.GetRejections()) > 0 && c.GetRank() > 0 && c.GetAcknowledged() != ""
	})
	showCapabilities(s.agent.cfg.Registry)
	got := inventory(t, s.agent.cfg.Registry)
	path := filepath.Join("testdata", "metrics.golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("inventory changed; run with -update if that is meant:\n%s", got)
	}
}

func inventory(t *testing.T, registry *prometheus.Registry) string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		lines = append(lines, fmt.Sprintf("%s{%s} %s\n    %s\n", f.GetName(), strings.Join(labels, ","), strings.ToLower(f.GetType().String()), f.GetHelp()))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
