package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// buildClustermesh builds one of the binaries.
func buildClustermesh(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clustermesh")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", path, "../../cmd/clustermesh")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// TestEveryModuleIsInTheBill compares the description of a real binary with what
// the Go tool says of it.
func TestEveryModuleIsInTheBill(t *testing.T) {
	binary := buildClustermesh(t)
	var out bytes.Buffer
	if err := run([]string{"sbom", binary}, &out); err != nil {
		t.Fatal(err)
	}
	first := readFile(t, binary+sbomSuffix)
	if err := run([]string{"sbom", binary}, &out); err != nil || !bytes.Equal(first, readFile(t, binary+sbomSuffix)) {
		t.Errorf("the same binary is described in two ways (%v)", err)
	}
	var b bom
	if err := json.Unmarshal(first, &b); err != nil {
		t.Fatal(err)
	}
	lines, err := exec.Command("go", "version", "-m", binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := 0
	for line := range strings.Lines(string(lines)) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "dep" {
			checkListed(t, &b, f[1], f[2], f[3])
			modules++
		}
	}
	if modules < 20 || len(b.Components) != modules+1 || len(b.Dependencies) != 1 || len(b.Dependencies[0].DependsOn) != modules+1 {
		t.Errorf("the binary has %d modules, the bill %d, of which it depends on %v", modules, len(b.Components), b.Dependencies)
	}
	checkRoot(t, &b, sha256.Sum256(readFile(t, binary)))
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func checkListed(t *testing.T, b *bom, path, version, sum string) {
	t.Helper()
	for _, c := range b.Components {
		if c.Name != path {
			continue
		}
		raw, err := hex.DecodeString(c.Hashes[0].Content)
		if c.Version != version || c.PURL != "pkg:golang/"+path+"@"+strings.ReplaceAll(version, "+", "%2B") || c.Ref != c.PURL ||
			err != nil || "h1:"+base64.StdEncoding.EncodeToString(raw) != sum || c.Hashes[0].Algorithm != "SHA-256" {
			t.Errorf("%s %s %s is listed as %+v", path, version, sum, c)
		}
		return
	}
	t.Errorf("%s is not listed", path)
}

func checkRoot(t *testing.T, b *bom, sum [sha256.Size]byte) {
	t.Helper()
	root := b.Metadata.Component
	if b.Format != "CycloneDX" || b.SpecVersion != "1.6" || b.Version != 1 || root.Type != "application" || root.Name != "clustermesh" ||
		root.Hashes[0].Content != hex.EncodeToString(sum[:]) || !strings.HasSuffix(root.PURL, "#cmd/clustermesh") || b.Dependencies[0].Ref != root.Ref {
		t.Errorf("%+v", b)
	}
	if len(b.SerialNumber) != len("urn:uuid:00000000-0000-8000-8000-000000000000") || b.SerialNumber[23] != '8' {
		t.Errorf("serial number %q", b.SerialNumber)
	}
	if b.Components[0].Name != "std" || !strings.HasPrefix(b.Components[0].PURL, "pkg:golang/std@1.") {
		t.Errorf("the standard library is %+v", b.Components[0])
	}
}

// TestModulesWithoutASumAreRefused: nobody could tell what is in them.
func TestModulesWithoutASumAreRefused(t *testing.T) {
	for _, m := range []*debug.Module{
		{Path: "a.b/c", Version: "v1.0.0"},
		{Path: "a.b/c", Version: "v1.0.0", Sum: "h1:AAAA"},
		{Path: "a.b/c", Version: "v1.0.0", Sum: "h1:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=", Replace: &debug.Module{Path: "../c"}},
	} {
		if _, err := newBOM("x", [32]byte{}, &debug.BuildInfo{Deps: []*debug.Module{m}}); err == nil || !strings.Contains(err.Error(), "go.sum") {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

func TestWrongUse(t *testing.T) {
	for _, args := range [][]string{nil, {"sbom"}, {"other", "x"}, {"sbom", "main.go"}, {"sbom", "no such file"}} {
		if err := run(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%q passes", args)
		}
	}
}
