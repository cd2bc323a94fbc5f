package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/agent/api"
	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
	"github.com/clustermesh/clustermesh/cmd/internal/cli/clitest"
)

func tree() *cobra.Command { return newRoot(&app{}) }

func TestEveryCommandIsDocumented(t *testing.T) { clitest.Documented(t, tree()) }

func TestEveryExampleWorks(t *testing.T) { clitest.Examples(t, tree) }

// TestExitCodes: each code of the table is how a command ends, and the table is
// what help shows.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	for code, args := range map[int][]string{
		cli.ExitOK:     {"certs", "init", "--dir", dir},
		cli.ExitFailed: {"certs", "inspect", filepath.Join(dir, "missing.crt")},
		cli.ExitUsage:  {"certs", "init"},
	} {
		var out, errs bytes.Buffer
		if got := run(t.Context(), args, nil, &out, &errs); got != code || (code == cli.ExitOK) != (errs.Len() == 0) || code == cli.ExitUsage && out.Len() > 0 {
			t.Errorf("%v: exit code %d, want %d\n%s%s", args, got, code, &out, &errs)
		}
	}
	var help bytes.Buffer
	if code := run(t.Context(), []string{"help", "exit-codes"}, nil, &help, &help); code != cli.ExitOK {
		t.Fatalf("exit code %d\n%s", code, &help)
	}
	for _, c := range exitCodes() {
		if !strings.Contains(help.String(), fmt.Sprintf("  %d  %s\n", c.Code, c.Meaning)) {
			t.Errorf("help exit-codes lacks %d:\n%s", c.Code, &help)
		}
	}
}

// fakeAgent serves the local API with answers of the test's.
type fakeAgent struct {
	api.UnimplementedAgentServer
	services atomic.Pointer[api.ServicesResponse]
	choices  []*api.Choice
}

func (f *fakeAgent) Services(context.Context, *api.ServicesRequest) (*api.ServicesResponse, error) {
	return f.services.Load(), nil
}

func (f *fakeAgent) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	return &api.StatusResponse{Cluster: "east", Node: "n1", Ready: true, Problems: []string{"evil\x1b[2Jtext"}, Clusters: []*api.Cluster{
		{Name: "east", Local: true, State: "synced"}, {Name: "west", State: "stale", LastError: "true: \"quoted\"\nand more"},
	}}, nil
}

func (f *fakeAgent) Explain(_ context.Context, r *api.ExplainRequest) (*api.ExplainResponse, error) {
	return &api.ExplainResponse{Services: []*api.Explanation{{Namespace: r.GetNamespace(), Name: r.GetName(), Global: true}}}, nil
}

func (f *fakeAgent) Monitor(_ *api.MonitorRequest, s grpc.ServerStreamingServer[api.Choice]) error {
	for _, c := range f.choices {
		if err := s.Send(c); err != nil {
			return err
		}
	}
	return nil
}

// serveAgent returns the agent's socket.
func serveAgent(t *testing.T, f *fakeAgent) string {
	t.Helper()
	f.services.CompareAndSwap(nil, &api.ServicesResponse{Services: []*api.Service{{Namespace: "shop", Name: "cart", Affinity: "none"}, {Namespace: "shop", Name: "till", Affinity: "local"}}})
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	api.RegisterAgentServer(server, f)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return socket
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(t.Context(), args, nil, &out, &errs); code != cli.ExitOK {
		t.Fatalf("%v: exit code %d\n%s%s", args, code, &out, &errs)
	}
	return out.String()
}

// TestFormats: json and yaml of every kind of command say the same, and each
// format is accepted everywhere.
func TestFormats(t *testing.T) {
	socket := serveAgent(t, &fakeAgent{})
	dir := t.TempDir()
	if err := certs.InitCA(dir, certs.CAOptions{Name: "yes: # no"}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"certs", "inspect", filepath.Join(dir, "ca.crt")}, {"certs", "inspect", "--dir", dir}, {"invite", "list", "--dir", dir}, {"services", "--api-socket", socket}, {"status", "--api-socket", socket}} {
		var fromJSON, fromYAML any
		text := mustRun(t, append(args, "-o", "json")...)
		if err := json.Unmarshal([]byte(text), &fromJSON); err != nil || fromJSON == nil {
			t.Errorf("%v: %v in %s", args, err, text)
		}
		text = mustRun(t, append(args, "-o", "yaml")...)
		if err := yaml.Unmarshal([]byte(text), &fromYAML); err != nil {
			t.Errorf("%v: %v in %s", args, err, text)
		}
		again, err := json.Marshal(fromYAML)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(fromJSON)
		if !bytes.Equal(normal(t, again), normal(t, want)) {
			t.Errorf("%v: yaml says\n%s\njson says\n%s", args, again, want)
		}
		for _, format := range []string{formatTable, formatWide} {
			if text := mustRun(t, append(args, "-o", format)...); strings.Contains(text, "\x1b") {
				t.Errorf("%v -o %s: control characters in %q", args, format, text)
			}
		}
	}
}

// normal has times in one spelling: YAML reads them as times.
func normal(t *testing.T, text []byte) []byte {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k := range v {
				v[k] = walk(v[k])
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case string:
			if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
				return at.UTC().String()
			}
		}
		return v
	}
	out, err := json.Marshal(walk(v))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWatchAppends: without a terminal each answer follows the other, as a
// document each, until the command is interrupted.
func TestWatchAppends(t *testing.T) {
	agent := &fakeAgent{}
	socket := serveAgent(t, agent)
	for format, separator := range map[string]string{formatJSON: "\n", formatYAML: "---\n", formatTable: "shop/till"} {
		ctx, cancel := context.WithCancel(t.Context())
		var out watchedBuffer
		var errs bytes.Buffer
		ended := make(chan int, 1)
		go func() {
			ended <- run(ctx, []string{"services", "--watch", "--interval", "1ms", "-o", format, "--api-socket", socket}, nil, &out, &errs)
		}()
		await(t, func() bool { return strings.Count(out.String(), separator) >= 3 })
		cancel()
		if code := <-ended; code != cli.ExitOK || errs.Len() > 0 {
			t.Errorf("%s: exit code %d\n%s", format, code, &errs)
		}
		if n := strings.Count(out.String(), separator); n < 3 || strings.Contains(out.String(), "\x1b") {
			t.Errorf("%s: %d answers in\n%s", format, n, out.String())
		}
		if format == formatJSON {
			for line := range strings.Lines(out.String()) {
				var v servicesView
				if err := json.Unmarshal([]byte(line), &v); err != nil || len(v) != 2 {
					t.Errorf("%v in line %q", err, line)
				}
			}
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"services", "--watch", "--api-socket", socket + "x"}, nil, &out, &errs); code != cli.ExitFailed || !strings.Contains(errs.String(), "check that clustermesh-agent runs") {
		t.Errorf("without an agent: exit code %d, %s", code, &errs)
	}
	if code := run(t.Context(), []string{"services", "--watch", "--interval", "0s", "--api-socket", socket}, nil, &out, &errs); code != cli.ExitUsage {
		t.Errorf("without an interval: exit code %d", code)
	}
}

// watchedBuffer is read while it is written.
type watchedBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *watchedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *watchedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen within 30 s")
		}
	}
}

// TestMonitorInEveryFormat: a choice is a line, or a document.
func TestMonitorInEveryFormat(t *testing.T) {
	choice := &api.Choice{Namespace: "shop", Name: "cart", Frontend: &api.Frontend{Address: "10.96.0.1", Port: 80, Protocol: "TCP"}, Address: "10.1.0.1", Port: 8080, Cluster: "west"}
	socket := serveAgent(t, &fakeAgent{choices: []*api.Choice{choice, choice}})
	for format, want := range map[string]string{formatTable: "-> 10.1.0.1:8080 west\n", formatJSON: `"backend":"10.1.0.1:8080"`, formatYAML: "---\ntime: "} {
		if text := mustRun(t, "monitor", "--api-socket", socket, "-o", format); strings.Count(text, want) != 2 {
			t.Errorf("%s: %q does not hold %q twice", format, text, want)
		}
	}
}

// TestCompletion: scripts of every shell, and names that the agent knows.
func TestCompletion(t *testing.T) {
	for _, shell := range shells() {
		if text := mustRun(t, "completion", shell); !strings.Contains(text, "__complete") {
			t.Errorf("%s: %.200q", shell, text)
		} else if path, err := exec.LookPath(shell); err == nil {
			check := exec.Command(path, "-n")
			check.Stdin = strings.NewReader(text)
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("%s does not understand its script: %v\n%s", shell, err, out)
			}
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"completion", "csh"}, nil, &out, &errs); code != cli.ExitUsage {
		t.Errorf("csh: exit code %d", code)
	}
	socket := serveAgent(t, &fakeAgent{})
	for question, want := range map[string][]string{
		"services --api-socket " + socket + " ":           {"shop/cart", "shop/till"},
		"explain --api-socket " + socket + " ":            {"shop/cart", "shop/till"},
		"release --api-socket " + socket + " ":            {"west"},
		"services --api-socket " + socket + ".no ":        {},
		"services shop/cart --api-socket " + socket + " ": {},
		"status -o ":  formats(),
		"completion ": shells(),
	} {
		var out bytes.Buffer
		run(t.Context(), append([]string{"__complete"}, strings.Split(question, " ")...), nil, &out, &bytes.Buffer{})
		got := strings.Fields(out.String())
		if len(got) == 0 || !strings.HasPrefix(got[len(got)-1], ":") {
			t.Errorf("%q: got %q", question, out.String())
			continue
		}
		if got = got[:len(got)-1]; len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %q, want %q", question, got, want)
		}
	}
}

// TestAnswersOfManyServices are larger than what gRPC takes by itself.
func TestAnswersOfManyServices(t *testing.T) {
	many := &api.ServicesResponse{}
	for i := range 5000 {
		s := &api.Service{Namespace: "shop", Name: fmt.Sprintf("service-%d", i)}
		for range 20 {
			s.Backends = append(s.Backends, &api.Backend{Address: "10.200.100.100", Port: 8080, Protocol: "TCP", Cluster: "a-cluster", State: "active", Reason: "active"})
		}
		many.Services = append(many.Services, s)
	}
	agent := &fakeAgent{}
	agent.services.Store(many)
	if text := mustRun(t, "services", "--api-socket", serveAgent(t, agent)); !strings.Contains(text, "shop/service-4999 ") {
		t.Errorf("%.300s", text)
	}
}
