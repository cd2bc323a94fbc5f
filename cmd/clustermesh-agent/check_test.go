package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

var findings = []bpf.Finding{
	{Check: "kernel", OK: true, Detail: "Linux 6.18"},
	{Check: "error of a refused call", Detail: "not supported", Remedy: "use Linux 5.18"},
}

func TestReport(t *testing.T) {
	var out bytes.Buffer
	if err := report(&out, formatText, findings); err != nil {
		t.Error(err)
	}
	fatal := append(findings[:2:2], bpf.Finding{Check: "cgroup2", Fatal: true, Detail: "none", Remedy: "mount it"})
	if err := report(&out, formatText, fatal[2:]); !errors.Is(err, errCheck) {
		t.Errorf("got %v", err)
	}
	const want = "ok       kernel: Linux 6.18\n" +
		"note     error of a refused call: not supported; use Linux 5.18\n" +
		"MISSING  cgroup2: none; mount it\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	out.Reset()
	if err := report(&out, formatJSON, fatal); !errors.Is(err, errCheck) {
		t.Errorf("got %v", err)
	}
	var back struct {
		OK       bool
		Findings []answer
	}
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.OK || len(back.Findings) != 3 ||
		back.Findings[0].State != "ok" || back.Findings[1].State != "note" || back.Findings[2] != (answer{"cgroup2", "missing", "none", "mount it"}) {
		t.Errorf("got %+v, %v", back, err)
	}
}

// TestCheckHere runs the command on this machine, whatever it has: it says
// something of every check, and 2 is left for wrong usage.
func TestCheckHere(t *testing.T) {
	var out bytes.Buffer
	run := func(args ...string) int {
		out.Reset()
		return cli.Main(newCommand(&out, io.Discard), append([]string{"check"}, args...), &out, io.Discard)
	}
	if code := run("-o", "xml"); code != cli.ExitUsage {
		t.Errorf("exit code %d", code)
	}
	if code := run("-o", "yaml", "--bpffs", t.TempDir()); code != cli.ExitFailed || !strings.Contains(out.String(), "ok: false\nfindings:\n  - check: options\n    state: ok\n") {
		t.Errorf("exit code %d:\n%s", code, &out)
	}
	code := run("-o", "json", "--bpffs", t.TempDir())
	var back struct {
		OK       bool
		Findings []answer
	}
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || len(back.Findings) < 15 || back.OK || code != cli.ExitFailed {
		t.Errorf("exit code %d, %v:\n%s", code, err, &out)
	}
	for _, a := range back.Findings {
		if a.Check == "" || a.Detail == "" || (a.State == "ok") != (a.Remedy == "") {
			t.Errorf("got %+v", a)
		}
	}
}
