package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// heldConnections is what a holder saw of its connections.
type heldConnections struct{ Open, Uses, Broken, Renamed int }

// holderConnections is how many connections a holder has.
func holderConnections() int { return campaign(200, 100_000) }

// makeRoom lets this process have that many files besides those of others, and
// this network namespace that many connections to each place.
func makeRoom(files int) error {
	limit := unix.Rlimit{Cur: uint64(files) + 4096, Max: uint64(files) + 4096}
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_NOFILE, &limit),
		os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("2048 65535"), 0))
}

// runHolder opens connections and uses them in turn until its input ends, then
// each once more; then it says how that went.
func runHolder(addr string, in io.Reader, out io.Writer) error {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(ended)
	}()
	if err := makeRoom(holderConnections()); err != nil {
		return err
	}
	to := netip.MustParseAddrPort(addr)
	var conns []heldConnection
	for range holderConnections() {
		c, err := openHeld(to)
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(conns), err)
		}
		conns = append(conns, c)
	}
	fmt.Fprintln(out, "open")
	sum := heldConnections{Open: len(conns)}
	for i := 0; !isClosed(ended); i++ {
		conns[i%len(conns)].use(&sum)
	}
	for _, c := range conns {
		c.use(&sum)
		c.checkPeer(to, &sum)
	}
	return json.NewEncoder(out).Encode(sum)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// heldConnection is a blocking TCP socket.
type heldConnection int

func openHeld(to netip.AddrPort) (heldConnection, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	return heldConnection(fd), errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}),
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}))
}

// use sends a byte and waits for its echo.
func (c heldConnection) use(sum *heldConnections) {
	sum.Uses++
	b := []byte{'?'}
	_, err := unix.Write(int(c), b)
	for n := 0; err == nil && n == 0; {
		if n, err = unix.Read(int(c), b); errors.Is(err, unix.EINTR) {
			err = nil
		} else if n == 0 && err == nil {
			err = io.EOF
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		sum.Broken++
	}
}

// checkPeer counts the connection if it is not shown as one to the service.
func (c heldConnection) checkPeer(want netip.AddrPort, sum *heldConnections) {
	sa, err := unix.Getpeername(int(c))
	if in4, ok := sa.(*unix.SockaddrInet4); err != nil || !ok || netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port)) != want {
		sum.Renamed++
	}
}

// hold starts a holder; the returned function ends it and checks its report.
func (u *upgradeTest) hold() (stop func()) {
	u.Helper()
	cmd := u.inCgroup(u.opts.Cgroup, "holder", u.job.Services[2].Addr)
	p := u.process(cmd)
	p.expect("open")
	return func() {
		u.Helper()
		_ = p.in.Close()
		var sum heldConnections
		if err := json.NewDecoder(p.out).Decode(&sum); err != nil {
			u.Errorf("hear from holder: %v", err)
		}
		if err := cmd.Wait(); err != nil {
			u.Error(err)
		}
		if sum.Broken > 0 || sum.Renamed > 0 || sum.Open != holderConnections() {
			u.Errorf("established connections: %+v", sum)
		}
		u.Logf("%d requests on new sockets, %d on %d established connections", u.connections, sum.Uses, sum.Open)
	}
}

// echoServer answers every byte until its connection ends.
func (f *fixture) echoServer(addr string) layout.Backend {
	f.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		f.Fatal(err)
	}
	var conns sync.WaitGroup
	f.Cleanup(conns.Wait) // their clients have ended by then
	f.serve(l, func() bool {
		c, err := l.Accept()
		if err == nil {
			conns.Go(func() { echo(c) })
		}
		return err == nil
	})
	return record(l.Addr().(*net.TCPAddr).AddrPort())
}

// echo does without io.Copy, which takes two more files for each connection.
func echo(c net.Conn) {
	defer func() { _ = c.Close() }()
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}
