//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/apiserver"
	"github.com/clustermesh/clustermesh/certs"
)

// children are further commands of this test's binary.
func children() map[string]func() {
	return map[string]func(){"withoutbpf": runWithoutBPF, "apiserver": runApiserver}
}

// runWithoutBPF runs a command as on a kernel that was built without bpf(2).
func runWithoutBPF() {
	runtime.LockOSThread()
	if err := forbidBPF(); err != nil {
		fmt.Fprintln(os.Stderr, "withoutbpf:", err)
		os.Exit(3)
	}
	path, err := exec.LookPath(os.Args[1])
	if err == nil {
		err = unix.Exec(path, os.Args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "withoutbpf:", err)
	os.Exit(3)
}

// forbidBPF has the kernel answer bpf(2) with ENOSYS, for this thread and what it
// executes.
func forbidBPF() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const number = 0 // offset of the call's number in struct seccomp_data
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_BPF, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return errno
	}
	return nil
}

// runApiserver is a clustermesh-apiserver in a process of its own, for faults
// that would hang the test's.
func runApiserver() {
	err := apiserver.Run(context.Background(), apiserver.Config{
		ClusterName: "west", ClusterID: 2, MaxConnectedClusters: 255, DataDir: os.Args[1], Manifests: os.Args[2], Listen: "127.0.0.1:0",
		TLS: certs.ServerFiles{Cert: os.Args[3], Key: os.Args[4], ClientCA: os.Args[5]},
	})
	fmt.Fprintln(os.Stderr, err)
	if err != nil {
		os.Exit(1)
	}
}
