package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Finding is the outcome of one check. Detail says what was seen; Remedy, unless
// OK, what to do about it. A finding that is not Fatal costs comfort only.
type Finding struct {
	Check  string
	OK     bool
	Fatal  bool
	Detail string
	Remedy string
}

// Check says whether Load can work with these options here, changing nothing. It
// returns one finding per check, always the same checks in the same order.
func Check(opts Options) []Finding {
	findings := []Finding{checkOptions(opts)}
	opts = opts.withDefaults()
	findings = append(findings, checkPrivileges(), checkCgroup(opts), checkPinDir(opts), checkPinned(opts))
	for _, n := range kernelNeeds() {
		findings = append(findings, n.finding())
	}
	return findings
}

// found makes a finding of a check that fails if err is not nil.
func found(check, detail string, err error, remedy string) Finding {
	if err == nil {
		return Finding{Check: check, OK: true, Detail: detail}
	}
	return Finding{Check: check, Fatal: true, Detail: err.Error(), Remedy: remedy}
}

func checkOptions(opts Options) Finding {
	return found("options", "valid", opts.Validate(), "correct the named fields of the configuration")
}

// Bits of capabilities(7) in /proc/self/status.
const (
	capNetAdmin = 12
	capSysAdmin = 21
	capPerfmon  = 38
	capBPF      = 39
)

func checkPrivileges() Finding {
	const remedy = "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (before Linux 5.8: CAP_SYS_ADMIN)"
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return found("privileges", "", err, remedy)
	}
	return found("privileges", "may load programs", missingCapabilities(string(status)), remedy)
}

// missingCapabilities reads the effective set out of proc(5) status.
func missingCapabilities(status string) error {
	_, rest, _ := strings.Cut(status, "CapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	caps, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return fmt.Errorf("read effective capabilities: %w", err)
	}
	has := func(bit int) bool { return caps&(1<<bit) != 0 }
	if has(capSysAdmin) || has(capBPF) && has(capNetAdmin) && has(capPerfmon) {
		return nil
	}
	return fmt.Errorf("effective capabilities %#x have neither CAP_SYS_ADMIN nor CAP_BPF with CAP_NET_ADMIN and CAP_PERFMON", caps)
}

func checkCgroup(opts Options) Finding {
	var d Datapath
	err := d.findCgroup(opts)
	detail := d.cgroup + ", which is a part of the node's processes"
	if wholeNode(d.cgroup) {
		detail = d.cgroup + ", which is every process of the node"
	}
	return found("cgroup2", detail, err, "mount a cgroup2 hierarchy and name a directory of it in Cgroup")
}

func checkPinDir(opts Options) Finding {
	const check = "bpffs"
	mountpoint := filepath.Dir(opts.PinDir)
	on, err := onBPFFS(opts.PinDir)
	if err == nil && !on && !opts.MountBPFFS {
		err = fmt.Errorf("%q is not on a bpffs", opts.PinDir)
	}
	return found(check, opts.PinDir, err, "run `mount -t bpf bpf "+mountpoint+"` or set MountBPFFS")
}

// checkPinned says whether the layout of what is pinned is ours.
func checkPinned(opts Options) Finding {
	const check = "pinned layout"
	m, err := ebpf.LoadPinnedMap(filepath.Join(opts.PinDir, clustermeshMapCmInfo), nil)
	if errors.Is(err, os.ErrNotExist) {
		return Finding{Check: check, OK: true, Detail: "nothing pinned yet"}
	}
	if err == nil {
		err = checkInfo(m, opts.PinDir)
		_ = m.Close() // read only
	}
	return found(check, fmt.Sprintf("version %d", LayoutVersion), err, "run the matching version of the agent, or drain the node and clean up")
}

// need is something the programs use that an old kernel may lack.
type need struct {
	check    string
	probe    func() error
	optional bool
	remedy   string
}

func kernelNeeds() []need {
	helper := func(f asm.BuiltinFunc) func() error {
		return func() error { return features.HaveProgramHelper(ebpf.CGroupSockAddr, f) }
	}
	return []need{
		{check: "socket address programs", probe: func() error { return features.HaveProgramType(ebpf.CGroupSockAddr) }, remedy: "use Linux 5.8 or newer with CONFIG_CGROUP_BPF"},
		{check: "socket release programs", probe: socketRelease, remedy: "use Linux 5.9 or newer with CONFIG_CGROUP_BPF"},
		{check: "socket storage", probe: helper(asm.FnSkStorageGet), remedy: "use Linux 5.8 or newer"},
		{check: "socket cookie", probe: helper(asm.FnGetSocketCookie), remedy: "use Linux 5.8 or newer"},
		{check: "network namespace cookie", probe: helper(asm.FnGetNetnsCookie), remedy: "use Linux 5.8 or newer"},
		{check: "ring buffer", probe: func() error { return features.HaveMapType(ebpf.RingBuf) }, remedy: "use Linux 5.8 or newer"},
		{check: "memory-mapped arrays", probe: func() error { return features.HaveMapFlag(features.BPF_F_MMAPABLE) }, remedy: "use Linux 5.5 or newer"},
		{check: "LRU hash", probe: func() error { return features.HaveMapType(ebpf.LRUHash) }, remedy: "use Linux 5.8 or newer"},
		{check: "bounded loops", probe: features.HaveBoundedLoops, remedy: "use Linux 5.8 or newer"},
		{check: "instruction set v3", probe: features.HaveV3ISA, remedy: "use Linux 5.8 or newer"},
		{check: "error of a refused call", probe: helper(asm.FnSetRetval), optional: true, remedy: "use Linux 5.18 or newer for \"connection refused\" instead of \"operation not permitted\""},
		{check: "exchanges in memory", probe: haveExchange, optional: true, remedy: "use Linux 5.12 or newer for TCP connections that cost a third of a microsecond less"},
		{check: "ending sockets", probe: endingSockets, optional: true, remedy: "use Linux 6.5 or newer, or 5.12 or newer with CONFIG_INET_DIAG_DESTROY, so that connections to withdrawn backends can be ended"},
	}
}

// socketRelease says whether programs can run when a socket is closed: loading one
// is the only way to find out.
func socketRelease() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSock, AttachType: ebpf.AttachCgroupInetSockRelease, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		return err
	}
	return p.Close()
}

func (n need) finding() Finding {
	f := found(n.check, "available", n.probe(), n.remedy)
	f.Fatal = f.Fatal && !n.optional
	return f
}
