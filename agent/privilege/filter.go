package privilege

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denied lists what a running agent never does and what would help whoever took
// it over: to run a program, to look into or signal other processes, to change
// who it is, to enter or make namespaces (a new user namespace comes with all
// capabilities), to mount, and to use large or rarely guarded parts of the
// kernel.
func denied() []uint32 {
	return append([]uint32{
		unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_CHROOT, unix.SYS_PIVOT_ROOT,
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
		unix.SYS_KILL, unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
		unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_PERSONALITY,
		unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
		unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
		unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR, unix.SYS_MKNODAT,
		unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
		unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
		unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
		unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX,
	}, deniedHere()...)
}

// limit is a system call that is allowed with certain arguments only. Only the
// lower half of an argument is looked at: the kernel takes these as 32-bit
// numbers, or gives the upper half no meaning.
type limit struct {
	call   uint32
	arg    uint32
	values []uint32
	// bits makes a value match if one of its bits is set, instead of by equality.
	bits bool
	// forbid makes a match the refusal, instead of its absence.
	forbid bool
}

// limits holds the calls that an agent does make, to what it makes them for:
// threads but no processes, signals to itself, elements of eBPF maps that are
// open, the repair of their pins and links, ordinary sockets, and memory without
// new code in it.
func limits() []limit {
	code := func(call uint32) limit {
		return limit{call: call, arg: 2, values: []uint32{unix.PROT_EXEC}, bits: true, forbid: true}
	}
	return []limit{
		{call: unix.SYS_BPF, arg: 0, values: []uint32{
			unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_MAP_GET_NEXT_KEY,
			unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_MAP_UPDATE_BATCH, unix.BPF_MAP_DELETE_BATCH,
			// Repairs, of objects that are open: no other can be opened.
			unix.BPF_OBJ_PIN, unix.BPF_OBJ_GET_INFO_BY_FD, unix.BPF_LINK_CREATE, unix.BPF_LINK_UPDATE,
		}},
		{call: unix.SYS_CLONE, arg: 0, values: []uint32{unix.CLONE_THREAD}, bits: true},
		{call: unix.SYS_TGKILL, arg: 0, values: []uint32{uint32(os.Getpid())}},
		{call: unix.SYS_SOCKET, arg: 0, values: []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}},
		code(unix.SYS_MMAP), code(unix.SYS_MPROTECT), code(unix.SYS_PKEY_MPROTECT),
	}
}

// Offsets in struct seccomp_data of seccomp(2), on little-endian machines.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

// x32Calls is where the numbers of a second table of system calls begin on
// amd64; the other architecture has none that high.
const x32Calls = 0x40000000

// Instructions of the filter, in the classic form that seccomp takes.
const (
	opLoad   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opBits   = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	opAbove  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opReturn = unix.BPF_RET | unix.BPF_K
)

// Verdicts of the filter.
const (
	allow  = unix.SECCOMP_RET_ALLOW
	refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	kill   = unix.SECCOMP_RET_KILL_PROCESS
)

func do(op uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: op, K: k} }

// unless makes an instruction that skips the next n if its test fails.
func unless(op uint16, k uint32, n int) unix.SockFilter {
	return unix.SockFilter{Code: op, K: k, Jf: uint8(n)}
}

// filter is the program that the kernel runs at each system call. What it does
// not know it allows.
func filter() []unix.SockFilter {
	p := []unix.SockFilter{
		do(opLoad, offsetArch),
		{Code: opEqual, K: auditArch, Jt: 1},
		do(opReturn, kill),
		do(opLoad, offsetCall),
		unless(opAbove, x32Calls, 1), do(opReturn, refuse),
		unless(opEqual, unix.SYS_CLONE3, 1), do(opReturn, absent), // callers then use clone
	}
	for _, l := range limits() { // first, since these are made often
		p = append(p, l.code()...)
	}
	for _, call := range denied() {
		p = append(p, unless(opEqual, call, 1), do(opReturn, refuse))
	}
	return append(p, do(opReturn, allow))
}

func (l limit) code() []unix.SockFilter {
	test, match, other := uint16(opEqual), uint32(allow), uint32(refuse)
	if l.bits {
		test = opBits
	}
	if l.forbid {
		match, other = other, match
	}
	body := []unix.SockFilter{do(opLoad, offsetArgs+8*l.arg)}
	for _, v := range l.values {
		body = append(body, unless(test, v, 1), do(opReturn, match))
	}
	body = append(body, do(opReturn, other))
	return append([]unix.SockFilter{unless(opEqual, l.call, len(body))}, body...)
}

// installFilter puts the filter in force on all threads at once. The kernel's
// audit log shows what it refuses.
func installFilter(Set) error {
	p := filter()
	program := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_LOG
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(p)
	if errno != 0 {
		return fmt.Errorf("install the seccomp filter: %w; the agent needs a kernel with CONFIG_SECCOMP_FILTER", errno)
	}
	if thread != 0 {
		return fmt.Errorf("install the seccomp filter: thread %d has another one", thread)
	}
	return nil
}
