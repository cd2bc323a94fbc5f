package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
)

// setMTU narrows a device, on one side.
func setMTU(t testing.TB, ns netns.NsHandle, device string, mtu int) {
	t.Helper()
	inNS(t, ns, func() error {
		dev, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(dev, mtu)
	})
}

// Where backends are that a router stands before.
const farAddr4, farAddr6 = "10.3.0.2", "fd00:3::2"

// moveServer puts the servers behind a router, which is where they were until now.
func (w *packetWorld) moveServer() (router netns.NsHandle) {
	w.Helper()
	node := w.node
	router, w.node, w.server = w.server, w.server, newNS(w.TB)
	w.wire(w.server, "tofar", "10.3.0.1/16", "fd00:3::1/64", farAddr4+"/16", farAddr6+"/64")
	w.node = node
	inNS(w.TB, router, forward)
	inNS(w.TB, w.node, func() error {
		return errors.Join(
			routeVia("10.3.0.0/16", backendAddr4), routeVia("fd00:3::/64", backendAddr6))
	})
	return router
}

func routeVia(to, gateway string) error {
	dst, err := netlink.ParseIPNet(to)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: netip.MustParseAddr(gateway).AsSlice()})
}

// TestPathMTU has a narrow link between the node and a router, which neither client
// nor backend can know: they learn of it from what ICMP says, and large data arrive.
func TestPathMTU(t *testing.T) {
	const mtu = 1300
	onKernels(t, func(t *testing.T, w *packetWorld, _ bool) {
		router := w.moveServer()
		setMTU(t, w.node, "toserver", mtu)
		setMTU(t, router, "eth0", mtu)
		for _, family := range [][2]string{{"10.96.0.1", farAddr4}, {"fd00:96::1", farAddr6}} {
			frontend, backend := net.JoinHostPort(family[0], "80"), net.JoinHostPort(family[1], "0")
			w.service(frontend, udp, w.serveIn(udp, backend))
			w.learns(frontend, mtu)
			frontend = net.JoinHostPort(family[0][:len(family[0])-1]+"2", "80") // of which nothing is known yet
			w.service(frontend, tcp, w.echoIn(backend))
			w.large(frontend, mtu)
		}
	})
}

// TestReplyMTU has a narrow link to the client: what is too big of the backend's
// answers makes it cut them up.
func TestReplyMTU(t *testing.T) {
	const mtu = 1300
	onKernels(t, func(t *testing.T, w *packetWorld, snat bool) {
		setMTU(t, w.node, packetDevice, mtu)
		setMTU(t, w.client, "eth0", mtu)
		long := strings.Repeat("0123456789", 140)
		for _, family := range [][3]string{{"10.96.0.1", backendAddr4, clientAddr4}, {"fd00:96::1", backendAddr6, clientAddr6}} {
			frontend := net.JoinHostPort(family[0], "80")
			w.service(frontend, udp, w.serveIn(udp, net.JoinHostPort(family[1], "0")))
			bpftest.Eventually(t, frontend+": a long answer", func() error {
				if got := w.callFor(time.Second, "udp", frontend, long); !strings.HasSuffix(got, " "+long) {
					return fmt.Errorf("got %.80q", got)
				}
				return nil
			})
		}
	})
}

// large sends much over a connection and wants it back, and then that its socket
// knows the MTU.
func (w *packetWorld) large(addr string, mtu int) {
	w.Helper()
	c := w.dialogue(addr)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	sent := make([]byte, 256<<10)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	written := make(chan error, 1)
	go func() { _, err := c.Write(sent); written <- err }()
	got := make([]byte, len(sent))
	_, err := io.ReadFull(c, got)
	if err := errors.Join(err, <-written); err != nil || !bytes.Equal(got, sent) {
		w.Errorf("%s: %d bytes did not come back as they were: %v", addr, len(sent), err)
		return
	}
	if got, err := pathMTU(c.(*net.TCPConn), addr); err != nil || got != mtu {
		w.Errorf("%s: the connection knows an MTU of %d, error %v; want %d", addr, got, err, mtu)
	}
}

func is6(addr string) bool { return netip.MustParseAddrPort(addr).Addr().Is6() }

// pathMTU is what the kernel knows of a socket's way.
func pathMTU(c syscall.Conn, addr string) (mtu int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if is6(addr) {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	outer := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) })
	return mtu, errors.Join(outer, err)
}

// learns sends datagrams that must not be cut up until the socket knows why they do
// not arrive; the largest that may be then does.
func (w *packetWorld) learns(addr string, mtu int) {
	w.Helper()
	header := 28
	if is6(addr) {
		header = 48
	}
	inNS(w.TB, w.client, func() error {
		c, err := net.Dial("udp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		bpftest.Eventually(w, addr+": the MTU of the way", func() error {
			_, sent := c.Write(make([]byte, 1400))
			got, err := pathMTU(c.(*net.UDPConn), addr)
			if err != nil || got != mtu {
				return fmt.Errorf("is %d, error %v, after sending: %v", got, err, sent)
			}
			return nil
		})
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		for range 2 { // the first may tell of an error that came before
			if _, err = c.Write(make([]byte, mtu-header-60)); err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 2000))
		return err
	})
}
