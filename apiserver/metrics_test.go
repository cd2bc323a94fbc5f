package apiserver

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// TestMetricsInventory holds the page of a running apiserver with every option
// against a golden file, because dashboards and alerts depend on it.
func TestMetricsInventory(t *testing.T) {
	w := newWorld(t)
	w.config.TLS, w.config.CADir = certs.ServerFiles{}, w.pki
	w.issue(certs.IssueRequest{Kind: certs.Server, Cluster: "east"})
	w.config.CiliumCompat, w.config.HealthListen = true, "127.0.0.1:0"
	w.config.Peers = t.TempDir()
	theirs := filepath.Join(t.TempDir(), "west")
	w.must(certs.InitCA(theirs, certs.CAOptions{Name: "west"}))
	west, err := certs.Issue(theirs, certs.IssueRequest{Kind: certs.Remote, Cluster: "west"})
	w.must(err)
	text := fmt.Sprintf("ca-file: %s\nidentity:\n  common-name: remote-west\nsees: all\n", west.CA)
	w.must(os.WriteFile(filepath.Join(w.config.Peers, "west.yaml"), []byte(text), 0o600))
	w.write("shop.yaml", shop)
	w.start()
	if _, err := w.dial(west).Range(t.Context(), "cilium/secret", "", 1, 0); err == nil { // makes the refusals appear
		t.Error("a peer reads what it must not")
	}
	_, page := w.get("/metrics")
	got := inventory(t, page+eventsPage())
	path := filepath.Join("testdata", "metrics.golden")
	if *update {
		w.must(os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	w.must(err)
	if got != string(want) {
		t.Errorf("inventory changed; run with -update if that is meant:\n%s", got)
	}
}

// eventsPage is what an apiserver says besides where it has a Kubernetes API
// server to tell.
func eventsPage() string {
	registry := prometheus.NewRegistry()
	makeEvents(Config{}, registry, &eventSink{}, func() int { return 0 })
	page := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest("GET", "/metrics", nil))
	return page.Body.String()
}

// inventory lists names, labels, types and help texts of what a page says, but
// for what the libraries add.
func inventory(t *testing.T, page string) string {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for name, f := range families {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		lines = append(lines, fmt.Sprintf("%s{%s} %s\n    %s\n", name, strings.Join(labels, ","), strings.ToLower(f.GetType().String()), f.GetHelp()))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
