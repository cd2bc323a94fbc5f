package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Surroundings says what else on this node bears on the programs: the kernel, its
// settings, and programs of others on the same hooks. It changes nothing; what it
// finds is never fatal. It returns the same checks in the same order.
func Surroundings(opts Options) []Finding {
	opts = opts.withDefaults()
	release := kernelRelease()
	return []Finding{
		{Check: "kernel", OK: release != "", Detail: "Linux " + release},
		checkUnprivileged(readSetting("/proc/sys/kernel/unprivileged_bpf_disabled")),
		checkHierarchies(readSetting("/proc/self/mountinfo"), release),
		checkOthers(opts),
	}
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

// readSetting is the text of a file, "" if it cannot be read.
func readSetting(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func checkUnprivileged(setting string) Finding {
	f := Finding{Check: "unprivileged bpf", OK: true, Detail: "off: kernel.unprivileged_bpf_disabled is " + setting}
	switch setting {
	case "":
		f.Detail = "off: the kernel has no such switch"
	case "0":
		f.OK, f.Detail = false, "kernel.unprivileged_bpf_disabled is 0, so every user may load programs"
		f.Remedy = "unless something needs it, run `sysctl kernel.unprivileged_bpf_disabled=2`; the agent does not"
	}
	return f
}

// checkHierarchies looks for version 1 controllers that, before Linux 5.15, took
// sockets away from the programs of cgroup2 once they were used (the fix is
// commit 8520e224f547 of the kernel).
func checkHierarchies(mountinfo, release string) Finding {
	f := Finding{Check: "cgroup hierarchies", OK: true, Detail: "cgroup2 alone"}
	var old []string
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup ") && len(fields) >= 5 {
			old = append(old, filepath.Base(unescapeMount(fields[4])))
			for _, controller := range []string{"net_cls", "net_prio"} {
				if strings.Contains(after, controller) && before515(release) {
					f.OK = false
					f.Remedy = "on this kernel a use of " + controller + " takes sockets away from the agent's programs: use Linux 5.15 or newer, or boot with cgroup_no_v1=net_prio,net_cls"
				}
			}
		}
	}
	if len(old) > 0 {
		slices.Sort(old)
		f.Detail = "cgroup2 beside version 1: " + strings.Join(slices.Compact(old), ", ")
	}
	return f
}

// before515 reads releases such as "5.10.0-28-amd64"; others count as newer.
func before515(release string) bool {
	var major, minor int
	_, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return err == nil && (major < 5 || major == 5 && minor < 15)
}

// checkOthers lists programs that are not ours on our hooks, of the cgroup and of
// those above it. The kernel runs all, in the order of the list.
func checkOthers(opts Options) Finding {
	f := Finding{Check: "other programs on the hooks", OK: true, Detail: "none"}
	var d Datapath
	if err := d.findCgroup(opts); err != nil {
		return Finding{Check: f.Check, Detail: "not looked for: " + err.Error(), Remedy: "see cgroup2"}
	}
	own, err := pinnedPrograms(opts.PinDir)
	if err == nil {
		var seen []string
		if seen, err = othersOn(d.cgroup, own); len(seen) > 0 {
			f.OK, f.Detail, f.Remedy = false, strings.Join(seen, ", "), othersRemedy(seen)
		}
	}
	if err != nil {
		return Finding{Check: f.Check, Detail: "not looked for: " + err.Error(), Remedy: "run the check with the agent's privileges"}
	}
	return f
}

// othersRemedy knows the names of Cilium's programs.
func othersRemedy(seen []string) string {
	if strings.Contains(strings.Join(seen, " "), "cil_sock") {
		return "Cilium balances at the socket as well: a service that it translates first never gets remote backends from this agent; " +
			"let one of the two do it, for example with Cilium's socketLB.enabled=false and kubeProxyReplacement=false"
	}
	return "a program that runs before ours and changes the destination hides the address of a service from it; " +
		"look at it with `bpftool prog show`, and if it does, detach it or start it after the agent"
}

func pinnedPrograms(dir string) (map[ebpf.ProgramID]bool, error) {
	own := map[ebpf.ProgramID]bool{}
	for _, h := range hooks() {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, programPrefix+h.name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		id, err := programID(p)
		if err := errors.Join(err, p.Close()); err != nil {
			return nil, err
		}
		own[id] = true
	}
	return own, nil
}

// othersOn returns "program NAME at HOOK before ours" and the like.
func othersOn(cgroup string, own map[ebpf.ProgramID]bool) ([]string, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var seen []string
	for _, h := range hooks() {
		result, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.attach, QueryFlags: queryEffective})
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
			continue // a hook that this kernel does not have
		}
		if err != nil {
			return nil, fmt.Errorf("list programs at %s: %w", h.name, err)
		}
		ours := slices.IndexFunc(result.Programs, func(p link.AttachedProgram) bool { return own[p.ID] })
		for i, p := range result.Programs {
			if !own[p.ID] {
				seen = append(seen, fmt.Sprintf("%s at %s%s", programName(p.ID), h.name, order(i, ours)))
			}
		}
	}
	return seen, nil
}

// queryEffective is BPF_F_QUERY_EFFECTIVE of linux/bpf.h: what runs, in order.
const queryEffective = 1

func order(i, ours int) string {
	switch {
	case ours < 0:
		return ""
	case i < ours:
		return " before ours"
	}
	return " after ours"
}

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Sprintf("program number %d", id)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil || info.Name == "" {
		return fmt.Sprintf("program number %d", id)
	}
	return info.Name
}
