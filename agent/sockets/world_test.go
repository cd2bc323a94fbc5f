package sockets

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/datapath"
	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/bpf/bpftest"
)

// world is a node: a bpffs, a cgroup, the agent's programs and maps on both, and
// echo servers that know nothing of them. It goes away with the test.
type world struct {
	testing.TB
	opts   bpf.Options
	dp     *bpf.Datapath
	maps   *datapath.Reconciler
	cgroup string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, cgroup: newCgroup(t)}
	w.opts = bpf.Options{
		PinDir: filepath.Join(bpftest.MountBPFFS(t), "clustermesh"), Cgroup: w.cgroup,
		MaxFrontends: 64, MaxRecords: 4096, MaxPeers: 4096, Log: slog.New(slog.DiscardHandler),
	}
	w.load()
	t.Cleanup(func() { w.close() })
	return w
}

func (w *world) load() {
	w.Helper()
	dp, err := bpf.Load(w.opts)
	if err != nil {
		w.Fatal(err)
	}
	w.dp, w.maps = dp, datapath.New(dp)
	if _, err := w.maps.Load(); err != nil {
		w.Fatal(err)
	}
}

func (w *world) close() {
	w.Helper()
	if err := w.dp.Close(); err != nil {
		w.Error(err)
	}
}

func newCgroup(t testing.TB) string {
	t.Helper()
	root, err := bpf.FindCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	return bpftest.NewCgroup(t, root, "clustermesh-sockets-test-")
}

// pod is a network namespace with its loopback up, mounted as container runtimes
// do.
type pod struct{ dir, path string }

func newPod(t testing.TB) pod {
	t.Helper()
	dir := t.TempDir()
	p := pod{dir: dir, path: filepath.Join(dir, "pod")}
	if err := os.WriteFile(p.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := apart(func() error {
		return errors.Join(unix.Unshare(unix.CLONE_NEWNET), bpftest.RaiseLoopback(),
			unix.Mount("/proc/thread-self/ns/net", p.path, "", unix.MS_BIND, ""))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(p.path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return p
}

// within runs f in a network namespace, the test's own if path is empty.
func within(t testing.TB, path string, f func() error) {
	t.Helper()
	if path == "" {
		path = "/proc/self/ns/net"
	}
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = apart(func() error { return errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), f()) })
	if err != nil {
		t.Fatal(err)
	}
}

// apart runs f on a thread of its own and puts it back into its namespace.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			err = errors.Join(f(), unix.Setns(int(own.Fd()), unix.CLONE_NEWNET), own.Close())
		}
		if err == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// echo serves at an address of a network namespace and returns where.
func (w *world) echo(netns string, proto lb.Protocol, addr string) (at netip.AddrPort) {
	w.Helper()
	within(w.TB, netns, func() error {
		if proto == lb.UDP {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			at = c.LocalAddr().(*net.UDPAddr).AddrPort()
			w.serve(c, func() bool { return answer(c) })
			return nil
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		at = l.Addr().(*net.TCPAddr).AddrPort()
		w.serve(l, func() bool {
			c, err := l.Accept()
			if err == nil {
				w.serve(c, func() bool { _, _ = io.Copy(c, c); return false }) // until the client has gone
			}
			return err == nil
		})
		return nil
	})
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

func answer(c net.PacketConn) bool {
	buf := make([]byte, 16)
	n, from, err := c.ReadFrom(buf)
	if err == nil {
		_, _ = c.WriteTo(buf[:n], from) // the client may have gone
	}
	return err == nil
}

// serve calls one until it returns false, which closing c makes it do.
func (w *world) serve(c io.Closer, one func() bool) {
	var done sync.WaitGroup
	done.Go(func() {
		for one() {
		}
	})
	w.Cleanup(func() {
		_ = c.Close()
		done.Wait()
	})
}

// client is a process inside the cgroup.
type client struct {
	testing.TB
	in  *json.Encoder
	out *json.Decoder
	pid int
}

// client starts a client in a network namespace.
func (w *world) client(netns string) *client {
	w.Helper()
	cmd := w.program("client")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		w.Fatal(err)
	}
	within(w.TB, netns, cmd.Start)
	w.Cleanup(func() {
		_ = in.Close() // ends it
		if err := cmd.Wait(); err != nil {
			w.Errorf("client: %v", err)
		}
	})
	return &client{TB: w.TB, in: json.NewEncoder(in), out: json.NewDecoder(out), pid: cmd.Process.Pid}
}

// program is a process of this binary that will be inside the cgroup.
func (w *world) program(role string, args ...string) *exec.Cmd {
	w.Helper()
	dir, err := os.Open(w.cgroup)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = dir.Close() })
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd
}

func (c *client) do(q command) map[string]int {
	c.Helper()
	var outcomes map[string]int
	if err := errors.Join(c.in.Encode(q), c.out.Decode(&outcomes)); err != nil {
		c.Fatal(err)
	}
	return outcomes
}

// open makes n sockets that can be probed under a name.
func (c *client) open(name, kind, addr string, n int) {
	c.Helper()
	if got := c.do(command{Op: "open", Name: name, Kind: kind, Addr: addr, N: n}); got["ok"] != n {
		c.Fatalf("open %s to %s: %v", name, addr, got)
	}
	c.all("probe", name, "ok", n)
}

// all fails the test unless all n sockets of a name have one outcome.
func (c *client) all(op, name, want string, n int) {
	c.Helper()
	if got := c.do(command{Op: op, Name: name}); got[want] != n || len(got) != 1 {
		c.Errorf("%s of %s: got %v, want %q of %d", op, name, got, want, n)
	}
}

// table is a frontend of a service with its backends.
func table(service, vip string, proto lb.Protocol, backends ...lb.Choice) lb.FrontendTable {
	t := lb.FrontendTable{
		Service:  lb.ServiceName{Namespace: "shop", Name: service},
		Frontend: lb.Frontend{Addr: netip.MustParseAddrPort(vip), Protocol: proto}, Backends: backends,
	}
	for i := range t.Backends {
		t.Backends[i].Protocol = proto
	}
	return t
}

// used and givenUp are backends of cluster east.
func used(at netip.AddrPort) lb.Choice {
	return lb.Choice{Selected: true, Weight: 1, Reason: lb.ReasonActive, Backend: lb.Backend{Addr: netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), Cluster: "east", ClusterID: 2}}
}

func givenUp(at netip.AddrPort) lb.Choice {
	c := used(at)
	c.Selected, c.Withdrawn, c.Weight, c.Reason = false, true, 0, lb.ReasonStale
	return c
}

func (w *world) set(tables ...lb.FrontendTable) {
	w.Helper()
	for _, t := range tables {
		if _, err := w.maps.Set(t.Service, []lb.FrontendTable{t}); err != nil {
			w.Fatal(fmt.Errorf("set %s: %w", t.Service, err))
		}
	}
	if ticket, any := w.maps.Quarantined(); any {
		if err := w.dp.WaitRCU(); err != nil {
			w.Fatal(err)
		}
		w.maps.Release(ticket)
	}
}

// keeper loads what ends sockets in these pods and in the test's own namespace.
func (w *world) keeper(byNetlink bool, pods ...pod) *keeper {
	w.Helper()
	s, err := bpf.LoadSockets(bpf.SocketsOptions{PinDir: w.opts.PinDir, ByNetlink: byNetlink})
	if err != nil {
		w.Fatalf("%+v", err) // with the verifier's log
	}
	w.Cleanup(func() {
		if err := s.Close(); err != nil {
			w.Error(err)
		}
	})
	remembered, err := s.Remembered()
	if err != nil {
		w.Fatal(err)
	}
	proc, dirs := w.TempDir(), []string(nil)
	for _, p := range pods {
		dirs = append(dirs, p.dir)
	}
	if err := os.Symlink("/proc/self", filepath.Join(proc, "self")); err != nil {
		w.Fatal(err)
	}
	return &keeper{
		kernel: s, log: slog.New(slog.DiscardHandler), memory: remembered, missing: map[uint64]time.Duration{},
		namespaces: func() []bpf.Namespace { return namespaces(proc, dirs) },
	}
}
