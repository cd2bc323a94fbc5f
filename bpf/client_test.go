package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// request asks a client process to make a socket ("4 tcp", "6 udp", ...), do the
// steps on it and close it, N times. With Keep the last one stays open, and is the
// socket "kept" of the next request.
type request struct {
	Socket string
	Steps  []string
	N      int
	Keep   bool
	// Targets, if given, replace the steps by a connect to each of them in turn,
	// and nothing is recorded but the time of one.
	Targets []string
}

// response counts how often the steps had which outcomes, joined by "; ".
type response struct {
	Outcomes map[string]int
	Elapsed  time.Duration
	Error    string
}

// serveClient answers requests until the input ends. It is the main program of
// a process that a test started inside its cgroup, because a socket belongs to
// the cgroup that its process was in when it was made.
func serveClient(in io.Reader, out io.Writer) error {
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	var kept clientSocket
	for {
		var q request
		err := decoder.Decode(&q)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := encoder.Encode(answer(q, &kept)); err != nil {
			return err
		}
	}
}

func answer(q request, kept *clientSocket) response {
	if len(q.Targets) > 0 {
		return timeConnects(q)
	}
	r := response{Outcomes: map[string]int{}}
	begin := time.Now()
	for range q.N {
		outcome := strings.Join(runScript(q, kept), "; ")
		r.Outcomes[outcome]++
		if strings.HasSuffix(outcome, timedOut) {
			break // the test has failed; do not make it wait for every run
		}
	}
	r.Elapsed = time.Since(begin)
	return r
}

// timedOut is the outcome of waiting in vain for an answer.
const timedOut = "EAGAIN"

// clientSocket is a socket made for a script.
type clientSocket struct {
	fd     int
	family int
}

func openSocket(kind string) (clientSocket, error) {
	family, typ := unix.AF_INET, unix.SOCK_DGRAM
	if kind[0] == '6' {
		family = unix.AF_INET6
	}
	proto := map[string]int{
		"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "udplite": unix.IPPROTO_UDPLITE, "icmp": unix.IPPROTO_ICMP,
	}[kind[2:]]
	if proto == unix.IPPROTO_TCP {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return clientSocket{}, err
	}
	s := clientSocket{fd, family}
	return s, errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
	)
}

func runScript(q request, kept *clientSocket) []string {
	s, err := *kept, error(nil)
	if q.Socket != "kept" {
		s, err = openSocket(q.Socket)
	}
	if err != nil {
		return []string{outcome(err)}
	}
	if q.Keep {
		*kept = s
	} else {
		defer unix.Close(s.fd)
	}
	var results []string
	for _, step := range q.Steps {
		verb, arg, _ := strings.Cut(step, " ")
		results = append(results, s.do(verb, arg))
		if results[len(results)-1] == timedOut {
			break
		}
	}
	return results
}

func (s clientSocket) do(verb, arg string) string {
	switch verb {
	case "bind":
		return outcome(unix.Bind(s.fd, s.sockaddr(arg)))
	case "connect":
		return outcome(unix.Connect(s.fd, s.sockaddr(arg)))
	case "disconnect":
		return outcome(disconnect(s.fd))
	case "send":
		_, err := unix.Write(s.fd, []byte("?"))
		return outcome(err)
	case "sendto":
		return outcome(unix.Sendto(s.fd, []byte("?"), 0, s.sockaddr(arg)))
	case "recv":
		return s.receive()
	case "peer":
		name, err := unix.Getpeername(s.fd)
		if err != nil {
			return outcome(err)
		}
		return show(name)
	}
	return "unknown step " + verb
}

// receive returns what came and, for datagrams, from where.
func (s clientSocket) receive() string {
	buf := make([]byte, 64)
	n, from, err := unix.Recvfrom(s.fd, buf, 0)
	for errors.Is(err, unix.EINTR) {
		n, from, err = unix.Recvfrom(s.fd, buf, 0)
	}
	if err != nil {
		return outcome(err)
	}
	if from == nil {
		return string(buf[:n])
	}
	return string(buf[:n]) + " from " + show(from)
}

func disconnect(fd int) error {
	var unspecified unix.RawSockaddrInet6 // family 0
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspecified)), unsafe.Sizeof(unspecified))
	if errno != 0 {
		return errno
	}
	return nil
}

// sockaddr makes an address for this socket; on an IPv6 socket, IPv4 addresses
// become v4-mapped.
func (s clientSocket) sockaddr(text string) unix.Sockaddr {
	a := netip.MustParseAddrPort(text)
	if s.family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func show(sa unix.Sockaddr) string {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	}
	return fmt.Sprintf("%T", sa)
}

func outcome(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// timeConnects measures connect() alone. TCP connections are accepted and closed
// between the measurements, by the same thread, so that no queue fills up.
func timeConnects(q request) response {
	listener, err := listenHere()
	if err != nil {
		return response{Error: err.Error()}
	}
	defer unix.Close(listener)
	run := timeUDP
	if strings.HasSuffix(q.Socket, "tcp") {
		run = timeTCP
	}
	elapsed, err := run(q, listener)
	if err != nil {
		return response{Error: err.Error()}
	}
	return response{Elapsed: elapsed}
}

// serverPort is where benchmark clients listen themselves, on 127.0.0.2.
const serverPort = 8080

func listenHere() (int, error) {
	s, err := openSocket("4 tcp")
	if err != nil {
		return 0, err
	}
	return s.fd, errors.Join(
		unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(s.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2}, Port: serverPort}),
		unix.Listen(s.fd, 128),
	)
}

// timeUDP connects one socket to the targets in turn and returns the mean of the
// fastest batch: one connect is too short to time, and the machine is shared.
func timeUDP(q request, _ int) (time.Duration, error) {
	s, err := openSocket(q.Socket)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s.fd)
	targets := make([]unix.Sockaddr, len(q.Targets))
	for i, t := range q.Targets {
		targets[i] = s.sockaddr(t)
	}
	const batch = 1000
	best := time.Duration(math.MaxInt64)
	for done := 0; done < q.N; done += batch {
		begin := time.Now()
		for i := range batch {
			if err := unix.Connect(s.fd, targets[(done+i)%len(targets)]); err != nil {
				return 0, fmt.Errorf("connect %s: %w", q.Targets[(done+i)%len(targets)], err)
			}
		}
		best = min(best, time.Since(begin)/batch)
	}
	return best, nil
}

// timeTCP connects a new socket to each target in turn and returns the tenth percentile:
// the machine is shared.
func timeTCP(q request, listener int) (time.Duration, error) {
	times := make([]time.Duration, q.N)
	for i := range times {
		var err error
		if times[i], err = timeOne(q.Socket, q.Targets[i%len(q.Targets)], listener); err != nil {
			return 0, err
		}
	}
	slices.Sort(times)
	return times[len(times)/10], nil
}

func timeOne(kind, target string, listener int) (time.Duration, error) {
	s, err := openSocket(kind)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s.fd)
	to := s.sockaddr(target)
	begin := time.Now()
	if err := unix.Connect(s.fd, to); err != nil {
		return 0, fmt.Errorf("connect %s: %w", target, err)
	}
	elapsed := time.Since(begin)
	fd, _, err := unix.Accept(listener)
	if err != nil {
		return 0, err
	}
	return elapsed, unix.Close(fd)
}
