package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// heldConnections is what a holder saw of its connections.
type heldConnections struct{ Open, Uses, Broken, Renamed int }

// holders is how many processes hold how many connections each: more than a
// process may have files.
func holders() (processes, connections int) { return campaign(1, 8), campaign(200, 12_500) }

// runHolder opens connections and uses them in turn until its input ends, then
// each once more; then it says how that went.
func runHolder(addr string, in io.Reader, out io.Writer) error {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(ended)
	}()
	_, connections := holders()
	to := netip.MustParseAddrPort(addr)
	var conns []heldConnection
	for range connections {
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

// hold starts the holders, one for each echoing service; the returned function
// ends them and checks their reports.
func (u *upgradeTest) hold() (stop func()) {
	u.Helper()
	var all []*process
	for _, s := range u.job.Services[2:] {
		p := u.process(u.inCgroup(u.opts.Cgroup, "holder", s.Addr))
		p.expect("open")
		all = append(all, p)
	}
	return func() {
		u.Helper()
		var sum heldConnections
		for _, p := range all {
			_ = p.in.Close()
		}
		for _, p := range all {
			var one heldConnections
			if err := errors.Join(json.NewDecoder(p.out).Decode(&one), p.cmd.Wait()); err != nil {
				u.Errorf("hear from holder: %v", err)
			}
			sum = heldConnections{sum.Open + one.Open, sum.Uses + one.Uses, sum.Broken + one.Broken, sum.Renamed + one.Renamed}
		}
		if processes, connections := holders(); sum.Broken > 0 || sum.Renamed > 0 || sum.Open != processes*connections {
			u.Errorf("established connections: %+v", sum)
		}
		u.Logf("%d requests on new sockets, %d on %d established connections", u.connections, sum.Uses, sum.Open)
	}
}

// echoServices are services of three backends each, which a process of its own
// serves.
func (u *upgradeTest) echoServices(first uint32) []upgradeService {
	u.Helper()
	processes, _ := holders()
	services := make([]upgradeService, processes)
	for i := range services {
		cmd := exec.Command("/proc/self/exe", fmt.Sprintf("127.0.%d", i+1))
		cmd.Env = append(os.Environ(), roleVariable+"=echo")
		cmd.Stderr = os.Stderr
		p := u.process(cmd)
		u.Cleanup(p.end) // before it is killed
		s := upgradeService{ID: first + uint32(i), Addr: fmt.Sprintf("10.96.1.%d:7", i+1), Proto: tcp}
		for range 3 {
			var at string
			if _, err := fmt.Fscanln(p.out, &at); err != nil {
				u.Fatal(err)
			}
			s.Backends = append(s.Backends, record(netip.MustParseAddrPort(at)))
		}
		services[i] = s
	}
	return services
}

// runEcho answers every byte of connections to three addresses until its input
// ends.
func runEcho(subnet string, in io.Reader, out io.Writer) error {
	for host := range 3 {
		l, err := net.Listen("tcp", fmt.Sprintf("%s.%d:0", subnet, host+1))
		if err != nil {
			return err
		}
		fmt.Fprintln(out, l.Addr())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				go echo(c)
			}
		}()
	}
	_, err := io.Copy(io.Discard, in)
	return err
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
