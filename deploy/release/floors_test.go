package main

import (
	"encoding/json"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
)

// TestRequiredModulesAreAtLeast asserts the floors for the modules of go.mod, so
// that a downgrade fails before anything is released.
func TestRequiredModulesAreAtLeast(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json", "../../go.mod").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []debug.Module
		Replace []struct{ Old, New debug.Module }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	for _, f := range floors() {
		covered := 0
		for _, m := range mod.Require {
			if f.covers(m.Path) {
				covered++
			}
			if err := checkModule(m.Path, m.Version); err != nil {
				t.Error(err)
			}
		}
		if covered == 0 {
			t.Errorf("no module is covered by %s: remove the floor if it is no longer used", f.modules)
		}
	}
	for _, r := range mod.Replace {
		t.Errorf("%s is replaced, so its version says nothing", r.Old.Path)
	}
}

func TestFloors(t *testing.T) {
	for version, ok := range map[string]bool{
		"v3.7.1": true, "v3.7.3": true, "v3.8.0": true, "v4.0.0": true, "v3.10.0": true, "v3.7.1+incompatible": true, "v3.7.2-rc.1": true,
		"v3.7.0": false, "v3.6.99": false, "v2.9.9": false, "v3.7.1-rc.0": false, "v3.7": false, "": false, "(devel)": false, "3.7.1": false, "v3.7.x": false,
	} {
		for _, path := range []string{"go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/api/v3"} {
			if err := checkModule(path, version); (err == nil) != ok {
				t.Errorf("%s %q: %v", path, version, err)
			}
		}
	}
	if err := checkModule("go.etcd.io/bbolt", "v1.0.0"); err != nil {
		t.Error(err)
	}
	old := []*debug.Module{
		{Path: "google.golang.org/grpc", Version: "v1.82.0"},
		{Path: "github.com/cilium/ebpf", Version: "v0.30.0", Replace: &debug.Module{Path: "github.com/cilium/ebpf", Version: "v0.21.0"}},
		{Path: "google.golang.org/grpc/cmd/protoc-gen-go-grpc", Version: "v1.6.2"},
	}
	err := checkFloors(&debug.BuildInfo{Deps: old})
	if err == nil || strings.Count(err.Error(), "\n") != 1 || !strings.Contains(err.Error(), "GHSA-hrxh-6v49-42gf") || !strings.Contains(err.Error(), "CVE-2026-10722") {
		t.Errorf("old modules: %v", err)
	}
}
