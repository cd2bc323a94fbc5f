// Package disk is a disk that completes no write for as long as a test wants, for
// one process and nobody else.
//
// It is seccomp: a filter hands each pwrite64 of the process to the test, which
// lets it go on, sooner or later. bbolt, the database of etcd, writes its pages by
// that call; logs, sockets and other files of the apiserver are not written so. A
// frozen file system would do the same, but who waits for one cannot be killed, and
// a test that is interrupted would leave it behind.
package disk

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/e2e/internal/lab"
)

// childEnv names the socket of the disk that a process gets.
const childEnv = "CLUSTERMESH_E2E_DISK"

// IsChild tells whether this process was started as [Disk.Under] says.
func IsChild() bool { return os.Getenv(childEnv) != "" }

// Main puts this process on its disk and becomes the program that its arguments
// name.
func Main() {
	fmt.Fprintln(os.Stderr, "become a process on a slow disk:", become(os.Getenv(childEnv), os.Args[1:]))
	os.Exit(1)
}

func become(socket string, args []string) error {
	runtime.LockOSThread() // the filter is this thread's, and so that of the program it becomes
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	listener, err := install()
	if err != nil {
		return fmt.Errorf("install the filter: %w", err)
	}
	if _, _, err := conn.WriteMsgUnix([]byte{0}, unix.UnixRights(listener), nil); err != nil {
		return err
	}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, childEnv+"=") })
	return syscall.Exec(args[0], args, env)
}

// install returns the descriptor that tells of each pwrite64 of this thread, and
// of what it becomes and starts.
func install() (listener int, err error) {
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_PWRITE64, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

// Disk is the disk of the processes that are started under it. Its methods are
// safe for concurrent use.
type Disk struct {
	socket *net.UnixListener

	mu   sync.Mutex
	held chan struct{} // closed when writes complete again; nil while they do
}

// New makes a disk whose writes complete. Nothing must be at the path of its
// socket, which is short.
func New(socket string) (*Disk, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	d := &Disk{socket: l}
	go d.serve()
	return d, nil
}

// Under is a process as it is started on the disk.
func (d *Disk) Under(s lab.Spec) lab.Spec {
	s.Args = append([]string{s.Path}, s.Args...)
	s.Env = append(slices.Clone(s.Env), childEnv+"="+d.socket.Addr().String())
	s.Path = "/proc/self/exe"
	return s
}

// Hold has no write complete until Release.
func (d *Disk) Hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held == nil {
		d.held = make(chan struct{})
	}
}

// Release completes the writes that wait, and those to come.
func (d *Disk) Release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held != nil {
		close(d.held)
		d.held = nil
	}
}

// Close releases what waits. A write of a process that still runs is then refused.
func (d *Disk) Close() error {
	d.Release()
	return d.socket.Close()
}

func (d *Disk) await() {
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if held != nil {
		<-held
	}
}

// serve takes on each process that comes.
func (d *Disk) serve() {
	for {
		conn, err := d.socket.AcceptUnix()
		if err != nil {
			return // closed
		}
		if listener, err := receive(conn); err == nil {
			go d.attend(listener)
		}
		_ = conn.Close()
	}
}

func receive(conn *net.UnixConn) (fd int, err error) {
	space := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), space)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(space[:n])
	if err != nil || len(messages) != 1 {
		return 0, errors.Join(errors.New("no descriptor came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// notification and response are struct seccomp_notif and seccomp_notif_resp of
// seccomp_unotify(2).
type notification struct {
	id         uint64
	pid, flags uint32
	data       [64]byte
}

type response struct {
	id           uint64
	value        int64
	errno, flags uint32
}

// attend lets the calls of one process go on, until it has ended.
func (d *Disk) attend(listener int) {
	defer unix.Close(listener) //nolint:errcheck // nothing was written
	for called(listener) {
		var n notification
		if ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)) != 0 {
			continue // interrupted, or the caller was killed
		}
		d.await()
		r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)) // refused only if the caller was killed
	}
}

// called waits for a call; without one to come it returns false.
func called(listener int) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false
		default:
			return fds[0].Revents&unix.POLLIN != 0
		}
	}
}

func ioctl(fd int, request uint, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
	return errno
}
