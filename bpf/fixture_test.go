package bpf

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

const (
	tcp = 6
	udp = 17
)

// fixture is a private bpffs, a cgroup below the cgroup2 mount, and a datapath
// on both. All of it goes away with the test.
type fixture struct {
	testing.TB
	opts   Options
	dp     *Datapath
	client *client
	nextID uint32
	// next is the first slab record that no region of this test covers.
	next uint32
}

// newPlace makes the bpffs and the cgroup, and loads nothing.
func newPlace(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{TB: t, nextID: 1, next: 1}
	f.opts = Options{
		PinDir:       filepath.Join(bpftest.MountBPFFS(t), "clustermesh"),
		Cgroup:       newCgroup(t),
		MaxFrontends: 64, MaxRecords: 4096, MaxClusters: 512, MaxRevNAT: 1024,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	return f
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := newPlace(t)
	f.load()
	return f
}

// load loads the datapath and arranges for its end.
func (f *fixture) load() {
	f.Helper()
	dp, err := Load(f.opts)
	if err != nil {
		f.Fatal(err)
	}
	f.dp = dp
	f.Cleanup(func() {
		if err := dp.Close(); err != nil {
			f.Error(err)
		}
	})
}

func newCgroup(t testing.TB) string {
	t.Helper()
	root, err := FindCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	return bpftest.NewCgroup(t, root, "clustermesh-bpf-test-")
}

type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.Logf("%s", p)
	return len(p), nil
}

// record is a backend record of cluster 1.
func record(addr netip.AddrPort) layout.Backend {
	b := layout.Backend{Addr: addr.Addr().As16(), Cluster: 1}
	binary.BigEndian.PutUint16(b.Port[:], addr.Port())
	return b
}

func key(addr string, proto uint8) layout.FrontendKey {
	a := netip.MustParseAddrPort(addr)
	k := layout.FrontendKey{Addr: a.Addr().As16(), Proto: proto}
	binary.BigEndian.PutUint16(k.Port[:], a.Port())
	return k
}

// service makes a frontend with these backends and returns its number.
func (f *fixture) service(addr string, proto uint8, backends ...layout.Backend) uint32 {
	f.Helper()
	id := f.nextID
	f.nextID++
	f.next = f.publish(id, f.next, backends)
	if err := f.dp.InsertFrontend(key(addr, proto), id); err != nil {
		f.Fatal(err)
	}
	return id
}

// publish writes a region from record at on, switches to it, and returns the
// first record after it.
func (f *fixture) publish(id, at uint32, backends []layout.Backend) uint32 {
	own := make([]layout.Backend, len(backends))
	for i, b := range backends {
		b.Frontend = id
		own[i] = b
	}
	f.dp.StoreBackends(at+1, layout.Region{Total: uint32(len(own)), Frontend: id}, own)
	f.dp.StoreHeader(id, layout.MakeHeader(at+1, uint16(len(own)), 0))
	return at + 1 + uint32(len(own))
}

// backend runs a server that answers everybody with its name, outside the
// cgroup, and returns its record.
func (f *fixture) backend(name, addr string, proto uint8) layout.Backend {
	f.Helper()
	if proto == udp {
		return f.udpBackend(name, addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		f.Fatal(err)
	}
	f.serve(l, func() bool {
		c, err := l.Accept()
		if err != nil {
			return false
		}
		_, _ = c.Write([]byte(name)) // the client may have gone
		_ = c.Close()
		return true
	})
	return record(l.Addr().(*net.TCPAddr).AddrPort())
}

func (f *fixture) udpBackend(name, addr string) layout.Backend {
	f.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		f.Fatal(err)
	}
	f.serve(c, func() bool {
		_, from, err := c.ReadFrom(make([]byte, 64))
		if err != nil {
			return false
		}
		_, _ = c.WriteTo([]byte(name), from) // the client may have gone
		return true
	})
	return record(c.LocalAddr().(*net.UDPAddr).AddrPort())
}

// serve calls one until it returns false, which closing c makes it do.
func (f *fixture) serve(c io.Closer, one func() bool) {
	var done sync.WaitGroup
	done.Go(func() {
		for one() {
		}
	})
	f.Cleanup(func() {
		_ = c.Close()
		done.Wait()
	})
}

// client is a process inside the cgroup.
type client struct {
	in  *json.Encoder
	out *json.Decoder
}

// run does the steps n times on new sockets of the client and returns how often
// they had which outcomes.
func (f *fixture) run(n int, socket string, steps ...string) map[string]int {
	f.Helper()
	return f.ask(request{Socket: socket, Steps: steps, N: n}).Outcomes
}

func (f *fixture) ask(q request) response {
	f.Helper()
	if f.client == nil {
		f.client = f.startClient(f.opts.Cgroup)
	}
	r, err := f.client.ask(q)
	if err != nil {
		f.Fatal(err)
	}
	return r
}

// ask may be called by one goroutine at a time.
func (c *client) ask(q request) (r response, err error) {
	if err := c.in.Encode(q); err != nil {
		return r, fmt.Errorf("ask client: %w", err)
	}
	if err := c.out.Decode(&r); err != nil {
		return r, fmt.Errorf("hear from client: %w", err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("client: %s", r.Error)
	}
	return r, nil
}

func (f *fixture) startClient(cgroup string) *client {
	f.Helper()
	return f.start(f.inCgroup(cgroup, "client"))
}

func (f *fixture) start(cmd *exec.Cmd) *client {
	f.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		_ = in.Close() // ends the client
		if err := cmd.Wait(); err != nil {
			f.Errorf("client: %v", err)
		}
	})
	return &client{in: json.NewEncoder(in), out: json.NewDecoder(out)}
}

// inCgroup prepares a process of this binary that starts inside the cgroup.
func (f *fixture) inCgroup(cgroup, role string, args ...string) *exec.Cmd {
	f.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = dir.Close() })
	cmd := exec.Command("/proc/self/exe", args...)
	// The runtime's preemption signals would interrupt its system calls.
	cmd.Env = append(os.Environ(), roleVariable+"="+role, "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd
}

// only fails the test unless every run had this outcome.
func (f *fixture) only(got map[string]int, want string) {
	f.Helper()
	if len(got) != 1 || got[want] == 0 {
		f.Errorf("outcomes:\n got %v\nwant %q only", got, want)
	}
}
