package join

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// accepting hands what a limited listener accepts to a channel.
func accepting(t *testing.T, by limits) (address string, accepted chan net.Conn) {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ln := limit(raw, by)
	accepted = make(chan net.Conn, 16)
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		for c := range accepted {
			c.Close()
		}
	})
	return raw.Addr().String(), accepted
}

func dialFrom(t *testing.T, from, to string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", to)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skipf("no address %s here: %v", from, err)
	}
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// requireClosed waits until the other side has closed c.
func requireClosed(t *testing.T, c net.Conn) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection stays open")
	}
}

// TestConnectionsHaveAnEnd: who keeps one busy does not keep it for ever, and its
// place is free again.
func TestConnectionsHaveAnEnd(t *testing.T) {
	address, accepted := accepting(t, limits{total: 1, each: 1, life: 20 * time.Millisecond})
	for range 3 {
		c := dialFrom(t, "127.0.0.1", address)
		<-accepted
		requireClosed(t, c)
	}
}

// TestShareOfAnAddress: one client cannot take the places of all others.
func TestShareOfAnAddress(t *testing.T) {
	address, accepted := accepting(t, limits{total: 8, each: 2, life: time.Hour})
	first := dialFrom(t, "127.0.0.1", address)
	one := <-accepted
	dialFrom(t, "127.0.0.1", address)
	<-accepted
	requireClosed(t, dialFrom(t, "127.0.0.1", address))
	dialFrom(t, "127.0.0.2", address)
	if c := <-accepted; addressOf(c).Addr().String() != "127.0.0.2" {
		t.Errorf("accepted %s", c.RemoteAddr())
	}
	must(t, one.Close())
	requireClosed(t, first)
	dialFrom(t, "127.0.0.1", address)
	if c := <-accepted; addressOf(c).Addr().String() != "127.0.0.1" {
		t.Errorf("accepted %s", c.RemoteAddr())
	}
}
