package bpf

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// attachForeign attaches a program of this name, that lets everything pass, at
// connect4.
func attachForeign(t *testing.T, cgroup, name string) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupInet4Connect, Program: p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Close()
		_ = l.Close()
	})
}

func TestOtherProgramsAreSeen(t *testing.T) {
	f := newPlace(t)
	wantOthers := func(detail, remedy string) {
		t.Helper()
		got := checkOthers(f.opts)
		if got.OK != (remedy == "") || got.Fatal || got.Detail != detail || !strings.Contains(got.Remedy, remedy) {
			t.Errorf("got %+v", got)
		}
	}
	wantOthers("none", "")
	attachForeign(t, f.opts.Cgroup, "guard")
	wantOthers("guard at connect4", "bpftool prog show")
	f.load()
	wantOthers("guard at connect4 before ours", "bpftool prog show")
	attachForeign(t, f.opts.Cgroup, "cil_sock4_conn")
	wantOthers("guard at connect4 before ours, cil_sock4_conn at connect4 after ours", "socketLB.enabled=false")
	f.opts.Cgroup = "/no/such/cgroup"
	if got := checkOthers(f.opts); got.OK || got.Fatal || got.Remedy == "" {
		t.Errorf("got %+v", got)
	}
}

func TestSurroundings(t *testing.T) {
	f := newFixture(t)
	all := Surroundings(f.opts)
	if len(all) != 4 {
		t.Errorf("got %d findings", len(all))
	}
	for _, x := range all {
		if x.Fatal || x.Detail == "" || x.OK != (x.Remedy == "") {
			t.Errorf("got %+v", x)
		}
	}
	if got := all[0].Detail; got == "Linux " {
		t.Errorf("kernel is %q", got)
	}
}

func TestUnprivilegedSetting(t *testing.T) {
	for setting, ok := range map[string]bool{"": true, "0": false, "1": true, "2": true} {
		if got := checkUnprivileged(setting); got.OK != ok || got.Fatal || got.Detail == "" || ok != (got.Remedy == "") {
			t.Errorf("%q: got %+v", setting, got)
		}
	}
}

func TestHierarchies(t *testing.T) {
	const (
		two   = "42 32 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		cpu   = "44 32 0:39 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
		class = "45 32 0:40 / /sys/fs/cgroup/net_cls,net_prio rw - cgroup cgroup rw,net_cls,net_prio\n"
	)
	for _, c := range []struct {
		mounts, release, detail string
		ok                      bool
	}{
		{two, "5.10.0-28-amd64", "cgroup2 alone", true},
		{two + cpu, "5.10.0", "cgroup2 beside version 1: cpu", true},
		{two + class + cpu, "5.10.0", "cgroup2 beside version 1: cpu, net_cls,net_prio", false},
		{two + class, "4.19", "cgroup2 beside version 1: net_cls,net_prio", false},
		{two + class, "5.15.0", "cgroup2 beside version 1: net_cls,net_prio", true},
		{two + class, "6.1", "cgroup2 beside version 1: net_cls,net_prio", true},
		{two + class, "strange", "cgroup2 beside version 1: net_cls,net_prio", true},
	} {
		got := checkHierarchies(c.mounts, c.release)
		if got.OK != c.ok || got.Detail != c.detail || got.OK != (got.Remedy == "") {
			t.Errorf("%q: got %+v", c.release, got)
		}
	}
}
