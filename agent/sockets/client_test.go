package sockets

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// command asks a client process for something about N of its sockets, which have
// one name: "open" makes them and connects them to Addr if there is one, "probe" sends a
// byte and waits for the echo, "sendto" does so to Addr, "wait" waits for data that
// does not come, "close" closes them. Kind is "4 tcp",
// "6 udp" and so on; an IPv4 address given to an IPv6 socket is a v4-mapped one.
type command struct {
	Op, Name, Kind, Addr string
	N                    int
}

// serveClient answers with how many had which outcome. It is the main program of a
// process that a test started inside its cgroup, because a socket belongs to the
// cgroup that its process was in when it was made.
func serveClient(in io.Reader, out io.Writer) error {
	decoder, encoder := json.NewDecoder(in), json.NewEncoder(out)
	open := map[string][]int{}
	for {
		var c command
		err := decoder.Decode(&c)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		outcomes := map[string]int{}
		if c.Op == "open" {
			for range max(c.N, 1) {
				fd, err := connect(c.Kind, c.Addr)
				outcomes[result(err)]++
				open[c.Name] = append(open[c.Name], fd)
			}
		}
		for _, fd := range open[c.Name] {
			switch c.Op {
			case "probe":
				outcomes[result(probe(fd))]++
			case "sendto":
				outcomes[result(errors.Join(unix.Sendto(fd, []byte("?"), 0, sockaddr(unix.AF_INET, c.Addr)), receive(fd)))]++
			case "wait":
				outcomes[result(receive(fd))]++
			case "close":
				outcomes[result(unix.Close(fd))]++
			}
		}
		if c.Op == "close" {
			delete(open, c.Name)
		}
		if err := encoder.Encode(outcomes); err != nil {
			return err
		}
	}
}

func connect(kind, addr string) (int, error) {
	family, typ := unix.AF_INET, unix.SOCK_DGRAM
	if kind[0] == '6' {
		family = unix.AF_INET6
	}
	if strings.HasSuffix(kind, "tcp") {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	if addr != "" {
		err = errors.Join(err, unix.Connect(fd, sockaddr(family, addr)))
	}
	return fd, err
}

func sockaddr(family int, text string) unix.Sockaddr {
	a := netip.MustParseAddrPort(text)
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func probe(fd int) error {
	if _, err := unix.Write(fd, []byte("?")); err != nil {
		return err
	}
	return receive(fd)
}

func receive(fd int) error {
	n, err := unix.Read(fd, make([]byte, 16))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, make([]byte, 16))
	}
	if err == nil && n == 0 {
		return errors.New("EOF")
	}
	return err
}

func result(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return fmt.Sprint(err)
}
