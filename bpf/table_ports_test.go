package bpf

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPortSharedByFrontends: a client may use one port towards two frontends at a
// time, which is two connections; behind both is the same backend, for which they
// must not become one.
func TestPortSharedByFrontends(t *testing.T) {
	for _, host := range []string{backendAddr4, backendAddr6} {
		w := newPacketWorld(t, false)
		bound, frontends := netip.MustParseAddr(clientAddr4), []string{"10.96.0.1:80", "10.96.0.2:80"}
		if host == backendAddr6 {
			bound, frontends = netip.MustParseAddr(clientAddr6), []string{"[fd00:96::1]:80", "[fd00:96::2]:80"}
		}
		b := w.echoIn(net.JoinHostPort(host, "0"))
		for _, frontend := range frontends {
			w.service(frontend, tcp, b)
		}
		first, second := w.dialogueFrom(bound, 20_000, frontends[0]), w.dialogueFrom(bound, 20_000, frontends[1])
		for range 3 {
			w.speak(first)
			w.speak(second)
		}
		again := w.dialogueFrom(bound, 20_001, frontends[1]) // which is free
		w.speak(again)
	}
}

// dialogueFrom is a dialogue from a port that others may have too.
func (w *packetWorld) dialogueFrom(host netip.Addr, port uint16, addr string) (c net.Conn) {
	w.Helper()
	d := net.Dialer{
		Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(host, port)),
		Control: shareAddress,
	}
	inNS(w.TB, w.client, func() (err error) {
		c, err = d.Dial("tcp", addr)
		return err
	})
	w.Cleanup(func() { _ = c.Close() })
	return c
}

// shareAddress lets several sockets of a client have one port.
func shareAddress(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}), err)
}
