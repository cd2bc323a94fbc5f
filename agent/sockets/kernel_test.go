package sockets

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/bpf/bpftest"
)

// until lets time pass for a keeper until nothing of what there is is due.
func (k *keeper) until(t testing.TB, now time.Duration) time.Duration {
	t.Helper()
	for range 4 { // a change is seen, confirmed, carried out, and seen to be
		if err := k.glance(now); err != nil {
			t.Fatal(err)
		}
		now += pause
	}
	if k.complaint != "" {
		t.Errorf("complaint: %s", k.complaint)
	}
	return now
}

// family is one way to a backend.
type family struct{ kind, vip, backend string }

func families(proto string, vip int) []family {
	return []family{
		{"4 " + proto, fmt.Sprintf("10.96.0.%d:80", vip), "127.0.0.2:0"},
		{"6 " + proto, fmt.Sprintf("10.96.1.%d:80", vip), "127.0.0.2:0"}, // v4-mapped
		{"6 " + proto, fmt.Sprintf("[fd00:96::%d]:80", vip), "[::1]:0"},
	}
}

// TestEndsOnlyWhatIsWithdrawn: in the node's namespace and in a pod's, over all
// families, by programs and by netlink, connections to a backend that is withdrawn
// from a service end, as the policy wants for TCP and in any case for UDP; those
// of another service to the same backend, and direct ones, do not.
func TestEndsOnlyWhatIsWithdrawn(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		for _, byNetlink := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s by netlink %v", proto, byNetlink), func(t *testing.T) {
				w := newWorld(t)
				p := newPod(t)
				k := w.keeper(byNetlink, p)
				for where, netns := range map[string]string{"node": "", "pod": p.path} {
					for _, f := range families(proto, len(where)) {
						w.endsOnly(k, proto, netns, f)
					}
				}
			})
		}
	}
}

// overFor is what sending says on a socket that was ended; receiving says
// ECONNABORTED on both kinds.
var overFor = map[lb.Protocol]string{lb.TCP: "ECONNABORTED", lb.UDP: "EDESTADDRREQ"}

func (w *world) endsOnly(k *keeper, proto, netns string, f family) {
	w.Helper()
	protocol := map[string]lb.Protocol{"tcp": lb.TCP, "udp": lb.UDP}[proto]
	at, other := w.echo(netns, protocol, f.backend), w.echo(netns, protocol, f.backend)
	otherVIP := f.vip[:len(f.vip)-2] + "81"
	service := table("a", f.vip, protocol, used(at))
	service.OnWithdraw = lb.WithdrawReset
	w.set(service, table("b", otherVIP, protocol, used(at)))
	c := w.client(netns)
	c.open("a", f.kind, f.vip, 3)
	c.open("b", f.kind, otherVIP, 3)
	c.open("direct", f.kind, at.String(), 3)
	now := k.until(w, bpf.Monotonic())
	c.all("probe", "a", "ok", 3)
	service.Backends = table("", f.vip, protocol, used(other)).Backends
	w.set(service)
	k.until(w, now)
	c.all("probe", "a", overFor[protocol], 3)
	c.all("probe", "b", "ok", 3)
	c.all("probe", "direct", "ok", 3)
	c.open("again", f.kind, f.vip, 1)
	w.leaves(0)
	for _, name := range []string{"a", "b", "direct", "again"} {
		c.do(command{Op: "close", Name: name})
	}
}

// leaves fails the test unless so many withdrawn pairs are remembered.
func (w *world) leaves(want int) {
	w.Helper()
	if n := w.entries("cm_gone"); n != want {
		w.Errorf("%d withdrawn pairs are remembered, want %d", n, want)
	}
}

// entries counts what a pinned map holds.
func (w *world) entries(name string) (n int) {
	w.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.opts.PinDir, name), nil)
	if err != nil {
		w.Fatal(err)
	}
	defer m.Close()
	var key, value []byte
	for all := m.Iterate(); all.Next(&key, &value); {
		n++
	}
	return n
}

// TestPolicies: keep keeps, drain waits for its time, reset does not, whether the
// backend is gone or known and given up; and a backend that comes back in time
// keeps its connections.
func TestPolicies(t *testing.T) {
	w := newWorld(t)
	k := w.keeper(false)
	at, other := w.echo("", lb.TCP, "127.0.0.2:0"), w.echo("", lb.TCP, "127.0.0.2:0")
	services := map[string]lb.FrontendTable{}
	c := w.client("")
	for i, name := range []string{"keep", "drain", "reset"} {
		s := table(name, fmt.Sprintf("10.96.0.%d:80", i+1), lb.TCP, used(at))
		s.OnWithdraw = lb.OnWithdraw(i)
		if s.OnWithdraw == lb.WithdrawDrain {
			s.Drain = 30
		}
		services[name] = s
		w.set(s)
		c.open(name, "4 tcp", s.Frontend.Addr.String(), 2)
	}
	with := func(backends ...lb.Choice) {
		for name, s := range services {
			s.Backends = table("", "10.96.0.1:80", lb.TCP, backends...).Backends
			services[name] = s
			w.set(s)
		}
	}
	see := func(keep, drain, reset string) { // an error is told once, then EPIPE
		t.Helper()
		c.all("probe", "keep", keep, 2)
		c.all("probe", "drain", drain, 2)
		c.all("probe", "reset", reset, 2)
	}
	now := k.until(t, bpf.Monotonic())
	notSelected := used(at)
	notSelected.Selected, notSelected.Weight, notSelected.Reason = false, 0, lb.ReasonTier
	with(used(other), notSelected)
	now = k.until(t, now+time.Hour)
	see("ok", "ok", "ok")
	with(used(other), givenUp(at))
	now = k.until(t, now)
	see("ok", "ok", "ECONNABORTED")
	with(used(at))
	now = k.until(t, now+29*time.Second)
	see("ok", "ok", "EPIPE")
	w.leaves(0)
	with(used(other))
	withdrawn := now
	now = k.until(t, now)
	w.leaves(1)
	now = k.until(t, now+25*time.Second)
	see("ok", "ok", "EPIPE")
	k.until(t, withdrawn+30*time.Second)
	see("ok", "ECONNABORTED", "EPIPE")
	w.leaves(0)
	if s := w.dp.Sweeps(); s.TCP != 4 || s.UDP != 0 || s.Missed != 0 || bpf.Monotonic()-s.Looked > time.Minute {
		t.Errorf("the agent is told of %+v", s)
	}
}

// TestBothSidesLearn: a client that waits for data wakes up, and the server's end
// is reset.
func TestBothSidesLearn(t *testing.T) {
	w := newWorld(t)
	k := w.keeper(false)
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := table("a", "10.96.0.1:80", lb.TCP, used(l.Addr().(*net.TCPAddr).AddrPort()))
	s.OnWithdraw = lb.WithdrawReset
	w.set(s)
	c := w.client("")
	if got := c.do(command{Op: "open", Name: "a", Kind: "4 tcp", Addr: "10.96.0.1:80"}); got["ok"] != 1 {
		t.Fatal(got)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := c.in.Encode(command{Op: "wait", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	now := k.until(t, bpf.Monotonic())
	s.Backends = nil
	w.set(s)
	k.until(t, now)
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the server reads %v", err)
	}
	var got map[string]int
	if err := c.out.Decode(&got); err != nil || got["ECONNABORTED"] != 1 {
		t.Errorf("the client reads %v, %v", got, err)
	}
}

// TestUDPOfAFrontendThatIsGone: whatever a service wants, connected UDP sockets do
// not go on sending to what is no backend of anything; TCP connections of a
// service that is gone stay, since nobody wants otherwise any more.
func TestUDPOfAFrontendThatIsGone(t *testing.T) {
	w := newWorld(t)
	k := w.keeper(false)
	c := w.client("")
	for name, proto := range map[string]lb.Protocol{"4 tcp": lb.TCP, "4 udp": lb.UDP} {
		s := table(name, "10.96.0.1:80", proto, used(w.echo("", proto, "127.0.0.2:0")))
		s.OnWithdraw = lb.WithdrawReset
		w.set(s)
		c.open(name, name, "10.96.0.1:80", 2)
	}
	now := k.until(t, bpf.Monotonic())
	for _, name := range []string{"4 tcp", "4 udp"} {
		if _, err := w.maps.Set(table(name, "10.96.0.1:80", lb.TCP).Service, nil); err != nil {
			t.Fatal(err)
		}
	}
	k.until(t, now)
	c.all("wait", "4 udp", "ECONNABORTED", 2)
	c.all("probe", "4 udp", "EDESTADDRREQ", 2)
	c.all("probe", "4 tcp", "ok", 2)
}

// TestListIsOfConnectedSockets: neither a socket that names its destination each
// time, and is sent elsewhere by its next datagram, nor one that is closed.
func TestListIsOfConnectedSockets(t *testing.T) {
	w := newWorld(t)
	k := w.keeper(false)
	listed := func(want int) {
		t.Helper()
		bpftest.Eventually(t, "the list", func() error {
			if sockets, err := k.kernel.List(); err != nil || len(sockets) != want {
				return fmt.Errorf("%v, %w; want %d", sockets, err, want)
			}
			return nil
		})
	}
	w.set(table("a", "10.96.0.1:53", lb.UDP, used(w.echo("", lb.UDP, "127.0.0.2:0"))))
	w.set(table("b", "10.96.0.1:80", lb.TCP, used(w.echo("", lb.TCP, "127.0.0.2:0"))))
	c := w.client("")
	c.do(command{Op: "open", Name: "unconnected", Kind: "4 udp"})
	if got := c.do(command{Op: "sendto", Name: "unconnected", Kind: "4 udp", Addr: "10.96.0.1:53"}); got["ok"] != 1 {
		t.Error(got)
	}
	listed(0)
	c.open("a", "4 udp", "10.96.0.1:53", 2)
	c.open("b", "4 tcp", "10.96.0.1:80", 3)
	listed(5)
	c.all("close", "a", "ok", 2)
	listed(3)
	c.all("close", "b", "ok", 3)
	listed(0)
}

// TestRestarts: the time that connections have to drain goes on while the process
// is away, and the agent may be replaced meanwhile.
func TestRestarts(t *testing.T) {
	w := newWorld(t)
	k := w.keeper(false)
	at := w.echo("", lb.TCP, "127.0.0.2:0")
	s := table("a", "10.96.0.1:80", lb.TCP, used(at))
	s.OnWithdraw, s.Drain = lb.WithdrawDrain, 60
	w.set(s)
	c := w.client("")
	c.open("a", "4 tcp", "10.96.0.1:80", 2)
	now := k.until(t, bpf.Monotonic())
	s.Backends = table("", "10.96.0.1:80", lb.TCP, givenUp(at)).Backends
	w.set(s)
	withdrawn := now
	k.until(t, now)
	w.close()
	w.load()
	k = w.keeper(false)
	k.until(t, withdrawn+58*time.Second)
	c.all("probe", "a", "ok", 2)
	w.set(s)
	w.leaves(1)
	k = w.keeper(false)
	k.until(t, withdrawn+60*time.Second)
	c.all("probe", "a", "ECONNABORTED", 2)
	w.leaves(0)
}

// TestOutOfSight: sockets of a namespace that cannot be seen are reported, not
// looked for again and again, and ended once it can be.
func TestOutOfSight(t *testing.T) {
	w := newWorld(t)
	p := newPod(t)
	k := w.keeper(false)
	at := w.echo(p.path, lb.UDP, "127.0.0.2:0")
	w.set(table("a", "10.96.0.1:53", lb.UDP, used(at)))
	c := w.client(p.path)
	c.open("a", "4 udp", "10.96.0.1:53", 2)
	now := k.until(t, bpf.Monotonic())
	w.set(table("a", "10.96.0.1:53", lb.UDP))
	now = k.until(t, now)
	now = k.until(t, now)
	c.all("probe", "a", "ok", 2)
	if s := w.dp.Sweeps(); s.Missed != 2 {
		t.Errorf("the agent is told of %+v, want 2 missed", s)
	}
	k.namespaces = func() []bpf.Namespace { return namespaces("/proc", nil) } // by the client's process
	k.until(t, now+again)
	c.all("wait", "a", "ECONNABORTED", 2)
	w.leaves(0)
}

// runSockets is the process itself, in the place of a test.
func runSockets(pinDir, netnsDir string) error {
	ctx, stop := signalled()
	defer stop()
	return Run(ctx, Config{PinDir: pinDir, NetnsDirs: []string{netnsDir}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// TestProcess runs the process itself: it waits for the maps, ends what is
// withdrawn, is killed in the middle of a drain, goes on where it was, and ends
// when the maps are made anew.
func TestProcess(t *testing.T) {
	w := newWorld(t)
	run := func() (kill func(), done chan error) {
		cmd := w.program("sockets", w.opts.PinDir, t.TempDir())
		cmd.Stderr = io.Discard
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done = make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		return func() { _ = cmd.Process.Kill() }, done
	}
	at := w.echo("", lb.TCP, "127.0.0.2:0")
	s := table("a", "10.96.0.1:80", lb.TCP, used(at))
	s.OnWithdraw, s.Drain = lb.WithdrawDrain, 600
	w.set(s)
	c := w.client("")
	c.open("a", "4 tcp", "10.96.0.1:80", 5)
	kill, done := run()
	bpftest.Eventually(t, "it looks", func() error {
		if w.dp.Sweeps().Looked == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	s.Backends = nil
	w.set(s)
	bpftest.Eventually(t, "it has seen the withdrawal", func() error {
		if w.entries("cm_gone") == 0 {
			return errors.New("nothing is remembered")
		}
		return nil
	})
	kill()
	<-done
	c.all("probe", "a", "ok", 5)
	s.Drain = 3
	w.set(s)
	kill, done = run()
	defer kill()
	c.all("wait", "a", "ECONNABORTED", 5)
	w.close()
	if err := bpf.Cleanup(w.opts); err != nil {
		t.Fatal(err)
	}
	w.load()
	select {
	case err := <-done:
		if err == nil {
			t.Error("it ended as if told to")
		}
	case <-time.After(time.Minute):
		t.Error("it goes on with maps that are gone")
	}
}

// BenchmarkLook is a look at so many sockets none of which is to end, and
// BenchmarkEnd the end of that many.
func BenchmarkLook(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("sockets=%d", n), func(b *testing.B) {
			w := newWorld(b)
			k := w.keeper(false)
			w.crowd(n)
			for b.Loop() {
				if missed, err := k.look(bpf.Monotonic()); err != nil || missed != 0 {
					b.Fatal(missed, err)
				}
			}
		})
	}
}

// crowd connects n UDP sockets to a service and returns it.
func (w *world) crowd(n int) lb.FrontendTable {
	w.Helper()
	s := table("a", "10.96.0.1:53", lb.UDP, used(w.echo("", lb.UDP, "127.0.0.2:0")))
	w.set(s)
	c := w.client("")
	if got := c.do(command{Op: "open", Name: "a", Kind: "4 udp", Addr: "10.96.0.1:53", N: n}); got["ok"] != n {
		w.Fatal(got)
	}
	return s
}

func BenchmarkEnd(b *testing.B) {
	for _, byNetlink := range []bool{false, true} {
		b.Run(fmt.Sprintf("sockets=1000/netlink=%v", byNetlink), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				w := newWorld(b)
				k := w.keeper(byNetlink)
				s := w.crowd(1000)
				s.Backends = nil
				w.set(s)
				now := bpf.Monotonic()
				if _, err := k.look(now); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if missed, err := k.look(now + confirm); err != nil || missed != 0 {
					b.Fatal(missed, err)
				}
				b.StopTimer()
				if n := w.dp.Sweeps().UDP; n != 1000 {
					b.Fatalf("%d were ended", n)
				}
				b.StartTimer()
			}
		})
	}
}
