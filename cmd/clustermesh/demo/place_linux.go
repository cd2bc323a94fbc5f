package demo

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// place is an OS thread with a network and a mount namespace of its own.
// Processes started on it are born into both. The namespaces live as long as
// the thread and those processes.
type place struct {
	name string
	net  netns.NsHandle
	link *netlink.Handle
	jobs chan func()
}

// newPlace makes the namespaces, private to the demo, with loopback up.
func newPlace(name string) (*place, error) {
	p := &place{name: name, net: netns.None(), jobs: make(chan func())}
	ready := make(chan error, 1)
	onOwnThread(func() {
		ready <- p.enter()
		for job := range p.jobs {
			job()
		}
	})
	if err := <-ready; err != nil {
		p.close()
		return nil, fmt.Errorf("create namespaces of %s: %w", name, err)
	}
	return p, nil
}

// onOwnThread runs f on a thread that serves nothing else and ends with it. It
// is not the main thread, whose namespaces are those of /proc/self.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			moved := make(chan struct{})
			onOwnThread(func() { close(moved); f() })
			<-moved
			runtime.UnlockOSThread()
			return
		}
		f() // still locked when it returns: the runtime ends the thread
	}()
}

func (p *place) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare network and mount namespace: %w", err)
	}
	// Without this a mount made here would show up on the whole machine.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	var err error
	if p.net, err = netns.Get(); err != nil {
		return err
	}
	if p.link, err = netlink.NewHandleAt(p.net); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	return p.up("lo")
}

// do runs f on the thread and returns what it returned.
func (p *place) do(f func() error) error {
	done := make(chan error, 1)
	p.jobs <- func() { done <- f() }
	return <-done
}

// close ends the thread, and with it every process that was started on it.
func (p *place) close() {
	close(p.jobs)
	if p.link != nil {
		p.link.Close()
	}
	if p.net.IsOpen() {
		p.net.Close()
	}
}

// mountBPF mounts a bpf file system that only this place sees.
func (p *place) mountBPF(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return p.do(func() error {
		if err := unix.Mount("clustermesh-demo", dir, "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount bpf file system at %s: %w", filepath.Base(dir), err)
		}
		return nil
	})
}

// dial connects from inside the network namespace. The address must be
// numeric, so that the socket is made on this thread.
func (p *place) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = p.do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

func (p *place) up(name string) error {
	l, err := p.link.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := p.link.LinkSetUp(l); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}
