package main

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
)

// floor is the least version of some modules, and the advisories that set it.
type floor struct {
	modules    string // a module path, or the beginning of several that ends in /
	version    [3]int
	advisories string
}

// floors are the advisories of 2026 that concern what is exposed here: a store
// and a gRPC server that other clusters connect to, and the eBPF loader.
func floors() []floor {
	return []floor{
		{"go.etcd.io/etcd/", [3]int{3, 7, 1}, "CVE-2026-33413, CVE-2026-33343, CVE-2026-44283, GHSA-3wh4-j44w-pg92, CVE-2026-73499, CVE-2026-73500"},
		{"google.golang.org/grpc", [3]int{1, 82, 1}, "CVE-2026-33186, GHSA-hrxh-6v49-42gf"},
		{"github.com/cilium/ebpf", [3]int{0, 22, 0}, "CVE-2026-10722"},
	}
}

func (f floor) covers(path string) bool {
	return path == f.modules || strings.HasSuffix(f.modules, "/") && strings.HasPrefix(path, f.modules)
}

// checkFloors joins an error for every module of a binary that is older than
// required, or of which that cannot be told.
func checkFloors(info *debug.BuildInfo) error {
	var errs []error
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		errs = append(errs, checkModule(d.Path, d.Version))
	}
	return errors.Join(errs...)
}

func checkModule(path, version string) error {
	for _, f := range floors() {
		if f.covers(path) && !atLeast(version, f.version) {
			return fmt.Errorf("module %s is %s, at least %d.%d.%d is required (%s); raise it in go.mod",
				path, version, f.version[0], f.version[1], f.version[2], f.advisories)
		}
	}
	return nil
}

// atLeast compares semantic versions (https://semver.org); a pre-release is less
// than its release, and what is no version is less than everything.
func atLeast(version string, least [3]int) bool {
	text, ok := strings.CutPrefix(version, "v")
	text, _, _ = strings.Cut(text, "+")
	text, _, early := strings.Cut(text, "-")
	parts := strings.Split(text, ".")
	if !ok || len(parts) != len(least) {
		return false
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n != least[i] {
			return err == nil && n > least[i]
		}
	}
	return !early
}
