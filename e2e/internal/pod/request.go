package pod

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// do makes one request and returns who answered and which peer the client's
// socket showed.
func (l Load) do() (peer, answer string, err error) {
	switch l.Network {
	case TCP:
		return l.overTCP()
	case UDP:
		return l.overUDP()
	case UDPConnected:
		return l.overConnectedUDP()
	}
	return "", "", fmt.Errorf("no network %q", l.Network)
}

func (l Load) overTCP() (peer, answer string, err error) {
	c, err := net.DialTimeout("tcp", l.Target.String(), l.limit())
	if err != nil {
		return "", "", classify(err)
	}
	defer c.Close()
	if err := l.prepare(c); err != nil {
		return "", "", err
	}
	peer, err = getpeername(c.(*net.TCPConn))
	if err != nil {
		return "", "", err
	}
	answer, err = get(c, l.Target)
	return peer, answer, err
}

// prepare makes Close send a reset, so that a tight loop does not use up the
// local ports with sockets in TIME_WAIT.
func (l Load) prepare(c net.Conn) error {
	return errors.Join(c.(*net.TCPConn).SetLinger(0), c.SetDeadline(time.Now().Add(l.limit())))
}

func get(c net.Conn, host netip.AddrPort) (string, error) {
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return "", classify(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", classify(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(body), err
}

// getpeername asks the kernel; the address that package net remembers could be
// the one that was dialled.
func getpeername(c syscall.Conn) (string, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	var name unix.Sockaddr
	var failed error
	err = raw.Control(func(fd uintptr) { name, failed = unix.Getpeername(int(fd)) })
	if err := errors.Join(err, failed); err != nil {
		return "", fmt.Errorf("getpeername: %w", err)
	}
	return sockaddr(name).String(), nil
}

func sockaddr(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr).Unmap(), uint16(s.Port))
	}
	return netip.AddrPort{}
}

// overUDP sends from an unconnected socket; the peer is the source of the
// answer.
func (l Load) overUDP() (peer, answer string, err error) {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if _, err := c.WriteToUDPAddrPort([]byte("who"), l.Target); err != nil {
		return "", "", classify(err)
	}
	if err := c.SetDeadline(time.Now().Add(l.limit())); err != nil {
		return "", "", err
	}
	buffer := make([]byte, answerMaxSize)
	n, from, err := c.ReadFromUDPAddrPort(buffer)
	if err != nil {
		return "", "", classify(err)
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	return from.String(), string(buffer[:n]), nil
}

func (l Load) overConnectedUDP() (peer, answer string, err error) {
	c, err := net.DialTimeout("udp", l.Target.String(), l.limit())
	if err != nil {
		return "", "", classify(err)
	}
	defer c.Close()
	peer, err = getpeername(c.(*net.UDPConn))
	if err != nil {
		return "", "", err
	}
	if _, err := c.Write([]byte("who")); err != nil {
		return "", "", classify(err)
	}
	if err := c.SetDeadline(time.Now().Add(l.limit())); err != nil {
		return "", "", err
	}
	buffer := make([]byte, answerMaxSize)
	n, err := c.Read(buffer)
	if err != nil {
		return "", "", classify(err)
	}
	return peer, string(buffer[:n]), nil
}

// classify strips addresses and ports from an error, so that equal failures
// count together.
func classify(err error) error {
	var number syscall.Errno
	switch {
	case errors.As(err, &number):
		return number
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return os.ErrDeadlineExceeded
	}
	return err
}
