package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDatabases(t *testing.T) {
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	const fresh, module = `{"modified":"2026-11-01T00:00:00Z"}`, `[{"path":"stdlib","vulns":[]}]`
	for name, c := range map[string]struct{ about, modules, want string }{
		"good":          {fresh, module, ""},
		"empty":         {fresh, `[]`, "names no module"},
		"old":           {`{"modified":"2026-10-01T00:00:00Z"}`, module, "51 days old"},
		"no date":       {`{}`, module, "days old"},
		"no index":      {"", "", "no such file"},
		"half an index": {fresh, `[{"path":`, "modules.json"},
	} {
		dir := writeIndex(t, c.about, c.modules)
		server := httptest.NewTLSServer(http.FileServer(http.Dir(dir)))
		for _, url := range []string{"file://" + dir, server.URL} {
			var out bytes.Buffer
			err := checkDatabase(context.Background(), server.Client(), url, now, maxAge, &out)
			if c.want == "" {
				if err != nil || !strings.Contains(out.String(), "2026-11-01: 1 modules") {
					t.Errorf("%s: %v, %q", name, err, out.String())
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), "GOVULNDB") || url != server.URL && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s at %s: %v, want %q", name, url, err, c.want)
			}
		}
		server.Close()
	}
	for _, url := range []string{"", "http://vuln.go.dev", "https://127.0.0.1:1", "/tmp"} {
		if err := checkDatabase(context.Background(), http.DefaultClient, url, now, maxAge, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "GOVULNDB") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestAgeLimit(t *testing.T) {
	for _, c := range []struct {
		args []string
		want time.Duration
	}{{nil, maxAge}, {[]string{""}, maxAge}, {[]string{"2400h"}, 2400 * time.Hour}} {
		if got, err := ageLimit(c.args); err != nil || got != c.want {
			t.Errorf("%q: %v, %v; want %v", c.args, got, err, c.want)
		}
	}
	for _, bad := range []string{"100", "-1h", "0s", "x"} {
		if _, err := ageLimit([]string{bad}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestOldDatabaseOnRequest(t *testing.T) {
	dir := writeIndex(t, `{"modified":"2026-08-01T00:00:00Z"}`, `[{"path":"stdlib","vulns":[]}]`)
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	if err := checkDatabase(context.Background(), http.DefaultClient, "file://"+dir, now, 2700*time.Hour, &out); err != nil || !strings.Contains(out.String(), "2026-08-01") {
		t.Errorf("%v, %q", err, out.String())
	}
	if err := checkDatabase(context.Background(), http.DefaultClient, "file://"+dir, now, 2600*time.Hour, &out); err == nil {
		t.Error("a database older than the limit is accepted")
	}
}

func writeIndex(t *testing.T, about, modules string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"db.json": about, "modules.json": modules} {
		path := filepath.Join(dir, "index", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestPlantedDatabase: a scanner reads it as any other.
func TestPlantedDatabase(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := run([]string{"planted", dir}, &out); err != nil || out.String() != plantedID+"\n" {
		t.Fatalf("%v, %q", err, out.String())
	}
	if err := run([]string{"database", "file://" + dir}, &out); err != nil {
		t.Error(err)
	}
	if advisory := string(readFile(t, filepath.Join(dir, "ID", plantedID+".json"))); !strings.Contains(advisory, `"introduced":"0"`) {
		t.Error(advisory)
	}
	if err := run([]string{"planted", "main.go"}, &out); err == nil {
		t.Error("a file is taken for a directory")
	}
}
