package bpf

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckPassesWhereLoadDoes(t *testing.T) {
	f := newPlace(t)
	f.allOK(Check(f.opts))
	f.load()
	f.allOK(Check(f.opts))
}

func (f *fixture) allOK(findings []Finding) {
	f.Helper()
	if len(findings) < 10 {
		f.Errorf("only %d findings", len(findings))
	}
	for _, x := range findings {
		if !x.OK || x.Fatal || x.Remedy != "" || x.Detail == "" {
			f.Errorf("got %+v", x)
		}
	}
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	f := newPlace(t)
	f.opts.PinDir = filepath.Join(t.TempDir(), "bpf", "clustermesh")
	f.opts.Cgroup = "/proc"
	f.opts.MaxRecords = 1
	failed := map[string]bool{}
	for _, x := range Check(f.opts) {
		if x.OK {
			continue
		}
		failed[x.Check] = true
		if !x.Fatal || x.Detail == "" || x.Remedy == "" {
			t.Errorf("got %+v", x)
		}
	}
	if len(failed) != 3 || !failed["options"] || !failed["cgroup2"] || !failed["bpffs"] {
		t.Errorf("failed checks: %v", failed)
	}
}

func TestCheckSeesOtherLayout(t *testing.T) {
	f := newFixture(t)
	info := clustermeshCmInfo{Layout: 7}
	if err := f.dp.coll.Maps[clustermeshMapCmInfo].Put(uint32(0), &info); err != nil {
		t.Fatal(err)
	}
	for _, x := range Check(f.opts) {
		if x.OK != (x.Check != "pinned layout") {
			t.Errorf("got %+v", x)
		}
	}
}

func TestMissingCapabilities(t *testing.T) {
	for status, ok := range map[string]bool{
		"CapEff:\t000001ffffffffff\nCapBnd:\t0\n": true,
		"CapEff:\t0000000000200000\n":             true,  // SYS_ADMIN
		"CapEff:\t000000c000001000\n":             true,  // BPF, NET_ADMIN and PERFMON
		"CapEff:\t0000008000001000\n":             false, // no PERFMON
		"CapEff:\t0000008000000000\n":             false, // BPF only
		"CapEff:\t0000000000001000\n":             false, // NET_ADMIN only
		"CapEff:\t0\nCapBnd:\tffffffffffffffff\n": false,
		"": false,
	} {
		if err := missingCapabilities(status); (err == nil) != ok {
			t.Errorf("%q: got %v", status, err)
		}
	}
}

func TestCgroup2Mount(t *testing.T) {
	const (
		tmpfs = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
		root  = "42 32 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
		bind  = "43 32 0:38 /kubepods /host/a\\040b rw - cgroup2 cgroup2 rw\n"
		host  = "45 32 0:38 /../.. /host/cgroup rw - cgroup2 cgroup2 rw\n"
		v1    = "44 32 0:39 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
	)
	for text, want := range map[string]string{
		"":                 "",
		tmpfs + v1:         "",
		tmpfs + v1 + root:  "/sys/fs/cgroup/unified",
		bind + root + bind: "/sys/fs/cgroup/unified",
		v1 + bind:          "/host/a b",
		root + host + bind: "/host/cgroup",
		"garbage\n" + root: "/sys/fs/cgroup/unified",
	} {
		if got := cgroup2Mount(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestCheckSaysHowMuchTheCgroupCovers(t *testing.T) {
	f := newPlace(t)
	covered := func() string { return checkCgroup(f.opts).Detail }
	if got := covered(); got != f.opts.Cgroup+", which is a part of the node's processes" {
		t.Errorf("got %q", got)
	}
	if !wholeNode(t.TempDir()) { // like the root, it has no cgroup.type
		t.Error("the root counts as a part")
	}
}

func TestOptionsValidate(t *testing.T) {
	if err := (Options{PinDir: "/sys/fs/bpf/clustermesh"}).Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	bad := Options{PinDir: "relative", MaxFrontends: 1, MaxRecords: 1 << 30, MaxClusters: 1 << 17, MaxRevNAT: 1}
	err := bad.Validate()
	for _, field := range []string{"PinDir", "MaxFrontends", "MaxRecords", "MaxClusters", "MaxRevNAT"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not named in: %v", field, err)
		}
	}
	for _, dir := range []string{"", "/", "/sys/fs/bpf/mesh.v1"} {
		if (Options{PinDir: dir}).Validate() == nil {
			t.Errorf("PinDir %q passes", dir)
		}
	}
	if _, err := Load(Options{PinDir: "x"}); err == nil {
		t.Error("Load takes bad options")
	}
	if err := Cleanup(Options{PinDir: "/"}); err == nil {
		t.Error("Cleanup takes bad options")
	}
}
