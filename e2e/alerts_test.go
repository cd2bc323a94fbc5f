package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	rules "github.com/clustermesh/clustermesh/deploy/observe"
	"github.com/clustermesh/clustermesh/e2e/internal/lab"
	"github.com/clustermesh/clustermesh/e2e/internal/pod"
)

// alertPace makes the alert rules quick enough for a test: an hour is 15 s, and
// what is shorter than 20 minutes is 5 s.
var alertPace = rules.Pace{Divide: 240, Least: 5 * time.Second}

// alertLimit is how long an alert may take to fire or clear, on a busy machine,
// where a scrape that takes a second too long begins the time of an alert anew.
// The slowest by design looks back 15 s, or waits for a heartbeat.
const alertLimit = 5 * time.Minute

const prometheusAddress = "127.0.0.1:9090"

// alerting is a mesh that a real Prometheus scrapes with the product's rules.
type alerting struct {
	*liveness
	w     *world
	tiny  *agent // of a second node of east, with maps that hold little
	south *apiserver
	pki   string     // of south
	mire  *apiserver // on a disk that can be slow
	north *apiserver // with many identities and little room
	spare *agent     // of north, in a binary with cgo at first
	built chan error // tells once that there is one

	mu   sync.Mutex
	seen map[string]string // the furthest that each alert has come: fired, cleared
}

// TestAlerts makes every alert fire and clear by a fault of a running mesh, as a
// real Prometheus sees it.
func TestAlerts(t *testing.T) {
	requireLab(t)
	must(t, lab.Settle())
	w := &world{dir: scratch(t)}
	var err error
	w.lab, err = lab.New(w.dir)
	must(t, err)
	t.Cleanup(func() { w.close(t) })
	a := &alerting{w: w, seen: map[string]string{}}
	a.buildWithCgo(t)
	a.newSouth(t)
	a.liveness = &liveness{east: w.newJoiner(t, "east", 1), west: w.newJoiner(t, "west", 2)}
	a.openNetwork(t)
	a.serve(t, w)
	a.newTiny(t)
	a.newMire(t)
	a.newNorth(t)
	a.startPrometheus(t)
	w.connect(t, "first", a.east, a.west)
	a.awaitPath(t, "ok")
	a.requireInventory(t)
	awaitScrapes(t, 9)
	t.Run("faults", func(t *testing.T) {
		for _, g := range []struct {
			name string
			run  func(*testing.T)
		}{
			{"network", a.network}, {"records", a.records}, {"node", a.node}, {"apiserver", a.apiserver}, {"store", a.store}, {"disk", a.disk}, {"crowd", a.crowd},
		} {
			t.Run(g.name, func(t *testing.T) {
				t.Parallel()
				g.run(t)
			})
		}
	})
	t.Run("brake", a.brake) // it restarts what others need
	for _, alert := range rules.Alerts() {
		if got := a.seen[alert.Name]; got != "cleared" {
			t.Errorf("%s has come to %q; each alert is to fire and to clear here", alert.Name, got)
		}
	}
}

// newSouth starts an apiserver that renews its own certificate, or would, had it
// its CA's key; with the id of another cluster.
func (a *alerting) newSouth(t *testing.T) {
	a.south = a.newSite(t, "south", 3)
	a.pki = a.w.site("south", "pki")
	succeed(t, "certs", "revoke", "--dir", a.pki)
	must(t, os.Rename(filepath.Join(a.pki, "ca.key"), a.w.site("south", "ca.key")))
	a.south.args[3] = "1"
	must(t, os.WriteFile(a.w.site("south", "manifests/home.yaml"), []byte(home+"---\n"+manifest("rebel-south", "10.98.0.20", "10.3.0.11")), 0o600))
	a.south.up(t)
}

// site is the path of what a cluster without agents of [world.newJoiner] has.
func (w *world) site(cluster, name string) string { return filepath.Join(w.dir, cluster, name) }

// newSite prepares the apiserver of another cluster, which east may read and which
// reads manifests; it does not run yet.
func (a *alerting) newSite(t *testing.T, name string, id int, more ...string) *apiserver {
	t.Helper()
	pki := a.w.site(name, "pki")
	must(t, os.MkdirAll(a.w.site(name, "manifests"), 0o700))
	succeed(t, "certs", "init", "--dir", pki, "--name", name+" CA")
	succeed(t, "certs", "issue", "--dir", pki, "--kind", "server", "--cluster", name, "--host", "127.0.0.1")
	succeed(t, "certs", "issue", "--dir", pki, "--kind", "local", "--cluster", name)
	succeed(t, "certs", "issue", "--dir", pki, "--kind", "remote", "--cluster", "east")
	s := &apiserver{
		name: "apiserver-" + name, lab: a.w.lab, dataDir: a.w.site(name, "data"),
		listen: fmt.Sprintf("127.0.0.1:%d", 2000+id), http: fmt.Sprintf("127.0.0.1:%d", 3000+id),
	}
	s.args = append([]string{
		"--cluster-name", name, "--cluster-id", fmt.Sprint(id), "--manifests", a.w.site(name, "manifests"), "--data-dir", s.dataDir,
		"--listen", s.listen, "--http", s.http, "--ca-dir", pki,
	}, more...)
	return s
}

// newTiny starts another agent of east that cannot reach its own cluster yet.
func (a *alerting) newTiny(t *testing.T) {
	n := &node{name: "east-n2", cluster: a.east.cluster}
	var err error
	n.lab, err = a.w.lab.AddNode(n.name, prefixes("192.168.50.12/24"), prefixes("10.1.32.0/20"))
	must(t, err)
	a.tiny = a.w.newAgent(t, n, 12)
	a.tiny.more = []string{"--max-frontends", "8"}
	a.tiny.start(t)
}

// startPrometheus runs Prometheus on all parts, with all rules at the test's pace.
func (a *alerting) startPrometheus(t *testing.T) {
	dir := filepath.Join(a.w.dir, "prometheus")
	must(t, os.MkdirAll(dir, 0o700))
	text, err := rules.Rules(alertPace)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "rules.yaml"), text, 0o600))
	config := fmt.Sprintf(`global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [rules.yaml]
scrape_configs:
- job_name: clustermesh-apiserver-metrics
  static_configs: [{targets: [%q, %q, %q, %q, %q]}]
- job_name: clustermesh-agent-metrics
  static_configs: [{targets: [%q, %q, %q, %q]}]
`, a.east.export.http, a.west.export.http, a.south.http, a.mire.http, a.north.http,
		a.east.agent.http, a.west.agent.http, a.tiny.http, a.spare.http)
	must(t, os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(config), 0o600))
	p, err := a.w.lab.Start(lab.Spec{Name: "prometheus", Path: "/usr/bin/prometheus", Args: []string{
		"--config.file", filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", prometheusAddress, "--query.lookback-delta", "5s",
	}})
	must(t, err)
	await(t, p, prometheusAddress, "/-/ready")
}

// awaitScrapes waits until Prometheus has looked at every part: what happens
// before would be no change to it.
func awaitScrapes(t *testing.T, parts int) {
	t.Helper()
	deadline := time.Now().Add(alertLimit)
	for {
		n, err := seriesOf("up")
		must(t, err)
		if n == parts {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Prometheus has scraped %d parts of %d", n, parts)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// firing tells whether an alert with these labels fires.
func firing(alert, labels string) (bool, error) {
	n, err := seriesOf(fmt.Sprintf("ALERTS{alertname=%q, alertstate=\"firing\", %s}", alert, labels))
	return n > 0, err
}

// seriesOf returns how many series a query has.
func seriesOf(query string) (int, error) {
	response, err := http.Get("http://" + prometheusAddress + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return 0, err
	}
	defer response.Body.Close() //nolint:errcheck // read only
	var answer struct {
		Status string
		Error  string
		Data   struct{ Result []any }
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return 0, err
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("query %s: %s", query, answer.Error)
	}
	return len(answer.Data.Result), nil
}

var instance = regexp.MustCompile(`instance="[^"]*"`)

// awaitAlert waits until an alert fires or does not.
func (a *alerting) awaitAlert(t *testing.T, alert, labels string, want bool) {
	t.Helper()
	begin := time.Now()
	for {
		now, err := firing(alert, labels)
		must(t, err)
		seen, err := seriesOf("up{" + instance.FindString(labels) + "} == 1")
		must(t, err)
		// Of a part that was not scraped nothing fires.
		if now == want && (want || seen > 0) {
			break
		}
		if time.Since(begin) > alertLimit {
			t.Fatalf("%s{%s} fires: %v, for %v", alert, labels, now, alertLimit)
		}
		time.Sleep(200 * time.Millisecond)
	}
	step := map[bool]string{true: "fired", false: "cleared"}[want]
	t.Logf("%s %s after %v", alert, step, time.Since(begin).Round(100*time.Millisecond))
	a.mu.Lock()
	defer a.mu.Unlock()
	if want || a.seen[alert] == "fired" {
		a.seen[alert] = step
	}
}

func (a *alerting) fires(t *testing.T, alert, labels string) {
	t.Helper()
	a.awaitAlert(t, alert, labels, true)
}

func (a *alerting) clears(t *testing.T, alert, labels string) {
	t.Helper()
	a.awaitAlert(t, alert, labels, false)
}

// at is the label of a part's page.
func at(address string) string { return fmt.Sprintf("instance=%q", address) }

// requireInventory: what running parts say is what docs/metrics.md says they do.
func (a *alerting) requireInventory(t *testing.T) {
	document := readFile(filepath.Join("..", "docs", "metrics.md"))
	for _, address := range []string{a.east.export.http, a.south.http, a.east.agent.http} {
		page, err := fetch(address, "/metrics")
		must(t, err)
		help := regexp.MustCompile(`(?m)^# HELP (clustermesh_\S+) (.*)$`).FindAllStringSubmatch(page, -1)
		if len(help) < 20 {
			t.Errorf("%s has %d metrics", address, len(help))
		}
		for _, m := range help {
			if line := regexp.MustCompile("(?m)^\\| `" + m[1] + "` .*$").FindString(document); !strings.Contains(line, m[2]) {
				t.Errorf("%s has %s with help %q, docs/metrics.md %q", address, m[1], m[2], line)
			}
		}
	}
}

// put writes one of a cluster's manifests; it goes with remove.
func put(t *testing.T, dir, text string) (remove func()) {
	t.Helper()
	replace(t, filepath.Join(dir, "more.yaml"), text)
	return func() { must(t, os.Remove(filepath.Join(dir, "more.yaml"))) }
}

// callInVain has a pod of east call a service without backends until stop.
func (a *alerting) callInVain(t *testing.T) (stop func()) {
	ended, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-ended:
				return
			default:
			}
			_, err := a.east.nodes[0].pods.Burst(pod.Load{Network: pod.TCP, Target: netip.MustParseAddrPort("10.96.0.90:80")}, 5)
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return func() { close(ended); <-over }
}
