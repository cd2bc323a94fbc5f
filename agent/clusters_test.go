package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
)

const goodFile = `endpoints:
- https://192.0.2.1:2379
trusted-ca-file: ca.crt
cert-file: /pki/remote.crt
key-file: /pki/remote.key
`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func scan(t *testing.T, d *directory, at time.Time) directoryChange {
	t.Helper()
	c, _, err := d.scan(at)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDirectoryFindsClusterFilesOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "east", goodFile)
	write(t, dir, "ca.crt", "-----BEGIN CERTIFICATE-----")
	write(t, dir, ".hidden", goodFile)
	if err := os.Mkdir(filepath.Join(dir, "..data"), 0o700); err != nil {
		t.Fatal(err)
	}
	d := newDirectory(dir)
	c := scan(t, d, time.Now())
	if len(c.set) != 1 || len(c.removed) != 0 || len(d.problemLines()) != 0 {
		t.Fatalf("set %v, removed %v, problems %v; want east alone", c.set, c.removed, d.problemLines())
	}
	if got := c.set["east"].TrustedCAFile; got != filepath.Join(dir, "ca.crt") {
		t.Errorf("trusted-ca-file %q: a relative path is relative to the file", got)
	}
	if c := scan(t, d, time.Now()); len(c.set) != 0 {
		t.Errorf("an unchanged file was reported as changed: %v", c.set)
	}
}

func TestDirectoryKeepsTheLastGoodState(t *testing.T) {
	for name, bad := range map[string]string{
		"not YAML":        "endpoints: [",
		"emptied":         "",
		"plain text":      strings.Replace(goodFile, "https", "http", 1),
		"no endpoints":    "endpoints: []\n",
		"no certificate":  "endpoints: ['https://192.0.2.1:2379']\n",
		"unsafe":          goodFile + "insecure-skip-tls-verify: true\n",
		"duplicate alias": goodFile + "cilium-host-aliases: [{hostname: a, ips: [192.0.2.1]}, {hostname: a, ips: [192.0.2.2]}]\n",
		"no port":         strings.Replace(goodFile, ":2379", "", 1),
		"too large":       goodFile + strings.Repeat("#", clusterfile.MaxBytes),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "east", goodFile)
			write(t, dir, "west", goodFile)
			d := newDirectory(dir)
			scan(t, d, time.Now())
			write(t, dir, "east", bad)
			c := scan(t, d, time.Now().Add(time.Hour))
			if len(c.set) != 0 || len(c.removed) != 0 {
				t.Errorf("a bad file changed something: set %v, removed %v", c.set, c.removed)
			}
			lines := d.problemLines()
			if len(lines) != 1 || !strings.Contains(lines[0], filepath.Join(dir, "east")) {
				t.Errorf("problems %q: want one that names the file", lines)
			}
			write(t, dir, "east", goodFile+"\n")
			if c := scan(t, d, time.Now()); len(c.set) != 1 || len(d.problemLines()) != 0 {
				t.Errorf("the mended file was not taken: set %v, problems %v", c.set, d.problemLines())
			}
		})
	}
}

func TestDirectoryRefusesBadNames(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "East", goodFile)
	d := newDirectory(dir)
	if c := scan(t, d, time.Now()); len(c.set) != 0 || len(d.problemLines()) != 1 {
		t.Errorf("set %v, problems %q", c.set, d.problemLines())
	}
}

func TestDirectoryRemovesAfterTheGraceOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "east", goodFile)
	d := newDirectory(dir)
	d.expect([]string{"gone"})
	start := time.Now()
	scan(t, d, start)
	if err := os.Remove(filepath.Join(dir, "east")); err != nil {
		t.Fatal(err)
	}
	c, recheck, err := d.scan(start.Add(time.Millisecond))
	if err != nil || len(c.removed) != 0 || recheck <= 0 {
		t.Fatalf("removed %v at once, recheck %v, err %v", c.removed, recheck, err)
	}
	write(t, dir, "east", goodFile) // an editor replaced it
	if c := scan(t, d, start.Add(removalGrace)); len(c.removed) != 1 || c.removed[0] != "gone" {
		t.Fatalf("removed %v: want the cluster that only the maps knew", c.removed)
	}
	if err := os.Remove(filepath.Join(dir, "east")); err != nil {
		t.Fatal(err)
	}
	scan(t, d, start.Add(2*removalGrace))
	if c := scan(t, d, start.Add(3*removalGrace)); len(c.removed) != 1 || c.removed[0] != "east" {
		t.Errorf("removed %v, want east", c.removed)
	}
}

func TestDirectoryFollowsChanges(t *testing.T) {
	dir := t.TempDir()
	seen := make(chan directoryChange, 16)
	done := make(chan error, 1)
	go func() {
		done <- newDirectory(dir).follow(t.Context(), func(c directoryChange, _ []string) { seen <- c })
	}()
	await := func(what string, ok func(directoryChange) bool) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case c := <-seen:
				if ok(c) {
					return
				}
			case err := <-done:
				t.Fatalf("follow ended: %v", err)
			case <-deadline:
				t.Fatalf("%s was not seen", what)
			}
		}
	}
	write(t, dir, "east", goodFile)
	await("the new file", func(c directoryChange) bool { return len(c.set) == 1 })
	write(t, dir, "east", goodFile+"#\n")
	await("the changed file", func(c directoryChange) bool { return len(c.set) == 1 })
	if err := os.Remove(filepath.Join(dir, "east")); err != nil {
		t.Fatal(err)
	}
	await("the removal", func(c directoryChange) bool { return len(c.removed) == 1 })

	// Another directory takes the place of this one.
	if err := errors.Join(os.Rename(dir, dir+".before"), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "west", goodFile)
	await("a file of the new directory", func(c directoryChange) bool { return len(c.set) == 1 })
	write(t, dir, "west", goodFile+"#\n")
	await("its change", func(c directoryChange) bool { return len(c.set) == 1 })
}

// TestEmptyDirectoryInPlaceOfAnother: what is left where something was unmounted
// does not mean that all is to go.
func TestEmptyDirectoryInPlaceOfAnother(t *testing.T) {
	dir := t.TempDir()
	d, start := newDirectory(dir), time.Now()
	write(t, dir, "east", goodFile)
	scan(t, d, start)
	if err := errors.Join(os.Rename(dir, dir+".before"), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if c, _, err := d.scan(start.Add(time.Duration(i) * removalGrace)); err == nil || !strings.Contains(err.Error(), "has taken its place") || len(c.removed) > 0 {
			t.Errorf("removed %v, %v", c.removed, err)
		}
	}
	write(t, dir, "west", goodFile)
	if c := scan(t, d, start.Add(4*removalGrace)); len(c.set) != 1 {
		t.Errorf("set %v", c.set)
	}
	if c := scan(t, d, start.Add(6*removalGrace)); len(c.removed) != 1 || c.removed[0] != "east" {
		t.Errorf("removed %v, want east", c.removed)
	}
}
