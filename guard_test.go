// Package clustermesh_test guards the shape of the repository: which package
// may import which, what each binary may link, that every package is
// documented, and how large a file or a function may grow. A new arrow is one
// reviewed line in the tables below.
package clustermesh_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/clustermesh/clustermesh"

// imports says which packages of this module each package may import, besides
// none. The straight line of ARCHITECTURE.md: arrows point from what decides
// later to what is decided earlier, never back.
var imports = map[string][]string{
	"agent":                     {"agent/api", "agent/datapath", "agent/lb", "agent/liveness", "agent/liveness/probe", "agent/mesh", "agent/privilege", "bpf", "bpf/layout", "certs", "kvstore", "kvstore/clusterfile", "kvstore/purse", "kvstore/report", "kvstore/schema", "kvstore/yamlfile"},
	"agent/api":                 {},
	"agent/datapath":            {"agent/lb", "bpf/layout"},
	"agent/devices":             {"bpf"},
	"agent/lb":                  {},
	"agent/liveness":            {},
	"agent/liveness/probe":      {},
	"agent/mesh":                {"agent/lb", "kvstore/schema"},
	"agent/privilege":           {},
	"agent/sockets":             {"bpf", "bpf/layout"},
	"apiserver":                 {"apiserver/api", "apiserver/export", "apiserver/identity", "apiserver/notice", "apiserver/source", "certs", "kvstore", "kvstore/peers", "kvstore/report", "kvstore/schema", "kvstore/server"},
	"apiserver/api":             {"kvstore/report"},
	"apiserver/export":          {"kvstore/schema"},
	"apiserver/identity":        {"kvstore/schema"},
	"apiserver/notice":          {"apiserver/export"},
	"apiserver/source":          {"apiserver/export"},
	"bpf":                       {"bpf/layout"},
	"bpf/bpftest":               {},
	"bpf/layout":                {},
	"certs":                     {"certs/internal/disk"},
	"certs/internal/disk":       {},
	"certs/join":                {"certs", "certs/internal/disk", "kvstore/yamlfile"},
	"cmd/clustermesh":           {"agent", "agent/api", "agent/lb", "apiserver/api", "bpf", "certs", "certs/join", "cmd/clustermesh/demo", "cmd/internal/cli", "kvstore/clusterfile", "kvstore/conformance", "kvstore/peers", "kvstore/report"},
	"cmd/clustermesh-agent":     {"agent", "agent/devices", "agent/sockets", "bpf", "cmd/internal/cli"},
	"cmd/clustermesh-apiserver": {"apiserver", "cmd/internal/cli"},
	"cmd/clustermesh/demo":      {"agent/api", "bpf", "certs", "deploy/examples"},
	"cmd/internal/cli":          {"kvstore/yamlfile"},
	"cmd/internal/cli/clitest":  {"cmd/internal/cli"},
	"deploy/examples":           {},
	"deploy/observe":            {},
	"deploy/release":            {},
	"e2e":                       {},
	"kvstore":                   {},
	"kvstore/clusterfile":       {"kvstore/yamlfile"},
	"kvstore/conformance":       {"certs", "kvstore", "kvstore/schema"},
	"kvstore/cost":              {},
	"kvstore/kvstoretest":       {"kvstore"},
	"kvstore/peers":             {"kvstore/yamlfile"},
	"kvstore/purse":             {},
	"kvstore/report":            {"kvstore/schema"},
	"kvstore/schema":            {},
	"kvstore/schema/schemapb":   {},
	"kvstore/server":            {"certs", "kvstore", "kvstore/peers", "kvstore/purse", "kvstore/report", "kvstore/schema"},
	"kvstore/yamlfile":          {},
}

// pure lists the packages that only compute, and what they must not reach for:
// a clock, a network, a lock or a Kubernetes client in there would end their
// being testable by value.
var pure = []string{"agent/datapath", "agent/lb", "agent/liveness", "agent/mesh", "apiserver/export", "apiserver/identity", "apiserver/notice", "bpf/layout", "kvstore/schema"}

var impure = []string{"context", "time", "os", "net", "log", "log/slog", "sync", "go.etcd.io/", "google.golang.org/grpc", "k8s.io/"}

// pureExceptions are API types without behaviour.
var pureExceptions = map[string][]string{
	"apiserver/export": {"k8s.io/api/", "k8s.io/apimachinery/pkg/apis/meta/v1"},
}

// links says what a binary must not contain, and why.
var links = []struct{ binary, prefix, why string }{
	{"cmd/clustermesh-agent", "k8s.io/", "the agent has one kind of input, etcd watches"},
	{"cmd/clustermesh-agent", "go.etcd.io/etcd/server", "the agent stores nothing"},
	{"cmd/clustermesh-apiserver", "github.com/cilium/ebpf", "the apiserver has no business in the kernel"},
	{"cmd/clustermesh", "k8s.io/", "the command talks to agents and files"},
	{"cmd/clustermesh", "go.etcd.io/etcd/server", "the command stores nothing"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	var packages []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p goPackage
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	return packages
}

func TestImportGraph(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range goList(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if strings.HasPrefix(name, "e2e") || name == module {
			continue
		}
		seen[name] = true
		allowed, known := imports[name]
		if !known {
			t.Errorf("package %s is not in the table of imports: add it with what it may import", name)
		}
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, module+"/"); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s: not in its row of the table", name, ours)
			}
		}
	}
	for name := range imports {
		if !seen[name] && name != "e2e" {
			t.Errorf("the table of imports names %s, which does not exist", name)
		}
	}
}

func TestPurePackages(t *testing.T) {
	for _, name := range pure {
		for _, p := range goList(t, "./"+name) {
			for _, i := range p.Imports {
				if isImpure(name, i) {
					t.Errorf("%s is pure and imports %s", name, i)
				}
			}
		}
	}
}

func isImpure(pkg, imported string) bool {
	for _, ok := range pureExceptions[pkg] {
		if strings.HasPrefix(imported, ok) {
			return false
		}
	}
	return slices.ContainsFunc(impure, func(bad string) bool {
		return imported == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(imported, bad) || strings.HasPrefix(imported, bad+"/") && bad != "net"
	})
}

func TestBinariesLinkOnlyTheirOwn(t *testing.T) {
	for _, l := range links {
		for _, p := range goList(t, "./"+l.binary) {
			for _, d := range p.Deps {
				if strings.HasPrefix(d, l.prefix) {
					t.Errorf("%s links %s: %s", l.binary, d, l.why)
				}
			}
		}
	}
}

// goFiles calls fn with every Go file of the module that people wrote.
func goFiles(t *testing.T, fn func(path string, src []byte)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != "." && (strings.HasPrefix(e.Name(), ".") || slices.Contains([]string{"testdata", "bin"}, e.Name())) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err == nil && !generated(src) {
			fn(path, src)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func generated(src []byte) bool {
	head, _, _ := strings.Cut(string(src), "\npackage ")
	return strings.Contains(head, "// Code generated ")
}

func TestSizes(t *testing.T) {
	const maxFile = 500
	goFiles(t, func(path string, src []byte) {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		maxFunc := 60
		if strings.HasSuffix(path, "_test.go") {
			maxFunc = 100 // a table of cases is one thing
		}
		if n := fset.Position(file.End()).Line; n > maxFile {
			t.Errorf("%s has %d lines; split it, %d is the limit", path, n, maxFile)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line; n > maxFunc {
				t.Errorf("%s: %s has %d lines; split it, %d is the limit", path, f.Name.Name, n, maxFunc)
			}
		}
	})
}

func TestEveryPackageIsDocumented(t *testing.T) {
	documented, packages := map[string]bool{}, map[string]bool{}
	goFiles(t, func(path string, src []byte) {
		file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(path)
		packages[dir] = true
		if file.Doc != nil && len(file.Doc.Text()) > 40 {
			documented[dir] = true
		}
	})
	for dir := range packages {
		if !documented[dir] {
			t.Errorf("package in %s has no package comment: say what it promises", dir)
		}
	}
}

func TestNoInitFunctions(t *testing.T) {
	goFiles(t, func(path string, src []byte) {
		file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function; construct what it makes where it is used", path)
			}
		}
	})
}

// TestEveryAttackHasItsTests holds the table of SECURITY.md against the tests.
func TestEveryAttackHasItsTests(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	for series, n := range map[string]int{"A": 11, "R": 14} {
		for i := range n {
			missing[fmt.Sprintf("%s-%02d", series, i+1)] = true
		}
	}
	row := regexp.MustCompile("(?m)^\\| ([AR]-[0-9]{2}) \\|[^|]+\\| `([a-z/]+)` \\| (.+) \\|$")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		delete(missing, m[1])
		written := testsOf(t, m[2])
		for _, name := range strings.Split(m[3], ", ") {
			name = strings.Trim(name, "`")
			if !strings.HasPrefix(name, "Test"+strings.Replace(m[1], "-", "", 1)+"_") || !written[name] {
				t.Errorf("row %s of SECURITY.md names %s: no such test in %s, or not named after the row", m[1], name, m[2])
			}
		}
	}
	for row := range missing {
		t.Errorf("SECURITY.md has no row %s", row)
	}
}

// testsOf lists the tests of a package.
func testsOf(t *testing.T, dir string) map[string]bool {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				found[f.Name.Name] = true
			}
		}
	}
	return found
}
