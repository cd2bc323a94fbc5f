// Command child drops its privileges and then does what it is told on standard
// input, one word a line. It answers each with one line.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/privilege"
)

func main() {
	threads(8) // there before
	kept, err := privilege.Drop(works()[os.Args[1]])
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	threads(8) // made afterwards
	fmt.Println("kept:", kept)
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		fmt.Println(answer(deeds()[input.Text()]))
	}
}

// works are what Drop tries.
func works() map[string]func() error {
	return map[string]func() error{
		"free":   func() error { return nil },
		"broken": func() error { return errors.New("disk on fire") },
		"refused for ever": func() error {
			return fmt.Errorf("update map: %w", unix.EPERM)
		},
		// As a kernel before Linux 5.19: bpf(2) wants CAP_BPF.
		"needs CAP_BPF": func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var sets [2]unix.CapUserData
			if err := unix.Capget(&header, &sets[0]); err != nil {
				return err
			}
			if sets[1].Effective&(1<<(unix.CAP_BPF-32)) == 0 {
				return unix.EPERM
			}
			return nil
		},
	}
}

func answer(deed func() error) string {
	if deed == nil {
		return "unknown"
	}
	err := deed()
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if err != nil {
		return err.Error()
	}
	return "done"
}

// deeds are what an agent does and what an intruder would try.
func deeds() map[string]func() error {
	self := os.Getpid()
	return map[string]func() error{
		"read a file":       func() error { _, err := os.ReadFile("/proc/self/status"); return err },
		"listen and dial":   listenAndDial,
		"start threads":     func() error { threads(8); return nil },
		"signal itself":     func() error { return unix.Tgkill(self, unix.Gettid(), unix.SIGURG) },
		"map memory":        func() error { return mapMemory(unix.PROT_READ | unix.PROT_WRITE) },
		"execute":           func() error { return exec.Command("/proc/self/exe").Run() },
		"execute in place":  func() error { return unix.Exec("/proc/self/exe", []string{"child"}, nil) },
		"fork":              fork,
		"clone3":            func() error { return raw(unix.SYS_CLONE3, 0, 0, 0) },
		"new user ns":       func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"signal parent":     func() error { return unix.Kill(os.Getppid(), 0) },
		"tgkill parent":     func() error { return unix.Tgkill(os.Getppid(), os.Getppid(), 0) },
		"trace parent":      func() error { return unix.PtraceSeize(os.Getppid()) },
		"mount":             func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") },
		"map code":          func() error { return mapMemory(unix.PROT_READ | unix.PROT_EXEC) },
		"raw socket":        func() error { _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); return err },
		"kernel keyring":    func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, true); return err },
		"io_uring":          func() error { return raw(unix.SYS_IO_URING_SETUP, 1, 0, 0) },
		"make a map":        func() error { return raw(unix.SYS_BPF, unix.BPF_MAP_CREATE, 0, 0) },
		"open a pin":        func() error { return raw(unix.SYS_BPF, unix.BPF_OBJ_GET, 0, 0) },
		"load a program":    func() error { return raw(unix.SYS_BPF, unix.BPF_PROG_LOAD, 0, 0) },
		"number of a map":   func() error { return raw(unix.SYS_BPF, unix.BPF_MAP_GET_NEXT_ID, 0, 0) },
		"detach a link":     func() error { return raw(unix.SYS_BPF, unix.BPF_LINK_DETACH, 0, 0) },
		"update a map":      func() error { return bpf(unix.BPF_MAP_UPDATE_ELEM) },
		"look at an object": func() error { return bpf(unix.BPF_OBJ_GET_INFO_BY_FD) },
		"attach again":      func() error { return bpf(unix.BPF_LINK_CREATE) },
		"raise":             raise,
		"raise ambient":     func() error { return unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_BPF, 0, 0) },
		"become root":       func() error { return raw(unix.SYS_SETUID, 0, 0, 0) },
		"undo no_new_privs": func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) },
	}
}

func raw(call, a1, a2, a3 uintptr) error {
	if _, _, errno := unix.RawSyscall(call, a1, a2, a3); errno != 0 {
		return errno
	}
	return nil
}

// fork makes a process, which ends at once.
func fork() error {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	return nil
}

// threads makes n threads that stay.
func threads(n int) {
	var up sync.WaitGroup
	for range n {
		up.Add(1)
		go func() {
			runtime.LockOSThread()
			up.Done()
			select {}
		}()
	}
	up.Wait()
}

func listenAndDial() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	return c.Close()
}

func mapMemory(protection int) error {
	m, err := unix.Mmap(-1, 0, 4096, protection, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	return unix.Munmap(m)
}

// bpf makes a bpf(2) call on a descriptor that is none, which comes first in
// the arguments of the commands used here: EBADF, or EBADFD, says that the call got past
// every check of who makes it.
func bpf(command uintptr) error {
	attr := struct {
		fd   uint32
		rest [60]byte
	}{fd: 1 << 20}
	return raw(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
}

func raise() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	sets := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_ADMIN, Permitted: 1 << unix.CAP_NET_ADMIN}}
	return unix.Capset(&header, &sets[0])
}
