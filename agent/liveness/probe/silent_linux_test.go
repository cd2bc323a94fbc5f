package probe_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// silent is a listener with a short queue that is full.
func silent(t *testing.T) (target netip.AddrPort, full int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	target = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	for slow := 0; full < 16; {
		c, err := net.DialTimeout("tcp", target.String(), 100*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			full, slow = full+1, 0
			continue
		}
		if slow++; slow == 3 { // once may be the machine's
			return target, full
		}
	}
	t.Fatal("the queue does not fill")
	return
}
