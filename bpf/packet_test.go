package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// packetWorld is a node between a client and a backend, each in a network
// namespace of its own, connected by pairs of veth devices. The client's end of
// the node carries the programs.
type packetWorld struct {
	*fixture
	client, node, server netns.NsHandle
	packet               *Packet
	packetOpts           PacketOptions
}

const (
	clientAddr4, clientAddr6   = "10.1.0.2", "fd00:1::2"
	backendAddr4, backendAddr6 = "10.2.0.2", "fd00:2::2"
	nodeAddr4, nodeAddr6       = "10.2.0.1", "fd00:2::1"
	packetDevice               = "toclient"
)

func newPacketWorld(t *testing.T, snat bool) *packetWorld {
	t.Helper()
	return newPacketWorldOf(t, snat, PacketOptions{})
}

// newPacketWorldOf makes the programs as on another kernel.
func newPacketWorldOf(t *testing.T, snat bool, opts PacketOptions) *packetWorld {
	t.Helper()
	w := &packetWorld{fixture: newFixture(t), packetOpts: opts}
	w.packetOpts.PinDir, w.packetOpts.Log = w.opts.PinDir, w.opts.Log
	w.packetOpts.MaxFlows, w.packetOpts.MaxFragments, w.packetOpts.MaxDevices = 4096, 64, 16
	w.client, w.node, w.server = newNS(t), newNS(t), newNS(t)
	w.wire(w.client, packetDevice, "10.1.0.1/16", "fd00:1::1/64", clientAddr4+"/16", clientAddr6+"/64")
	w.wire(w.server, "toserver", nodeAddr4+"/16", nodeAddr6+"/64", backendAddr4+"/16", backendAddr6+"/64")
	inNS(t, w.node, forward)
	w.loadPacket()
	w.attach(snat)
	return w
}

// forward lets a namespace pass on what is not for itself.
func forward() error {
	return errors.Join(
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
		os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0),
	)
}

func (w *packetWorld) loadPacket() {
	w.Helper()
	p, err := LoadPacket(w.packetOpts)
	if err != nil {
		w.Fatalf("%+v", err) // with the verifier's log
	}
	w.packet = p
	w.Cleanup(func() {
		if err := p.Close(); err != nil {
			w.Error(err)
		}
	})
}

func (w *packetWorld) attach(snat bool) {
	w.Helper()
	inNS(w.TB, w.node, func() error {
		d := Device{Name: packetDevice, SNAT: snat, Addr4: netip.MustParseAddr(nodeAddr4), Addr6: netip.MustParseAddr(nodeAddr6)}
		if err := w.packet.Attach(d); err != nil || !snat {
			return err
		}
		return w.packet.Attach(Device{Name: "toserver"}) // replies to the node come in here
	})
}

func newNS(t testing.TB) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	if err := errors.Join(bpftest.RaiseLoopback(), netns.Set(own)); err != nil {
		t.Fatal(err)
	}
	return ns
}

// inNS runs f in a network namespace, on a thread of its own that ends with it.
func inNS(t testing.TB, ns netns.NsHandle, f func() error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not for others
		result <- errors.Join(netns.Set(ns), f())
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// wire connects a namespace with the node. Addresses are in CIDR notation, the
// node's first.
func (w *packetWorld) wire(far netns.NsHandle, name, near4, near6, far4, far6 string) {
	w.Helper()
	inNS(w.TB, w.node, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(far))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		return dress(name, near4, near6)
	})
	inNS(w.TB, far, func() error {
		if err := dress("eth0", far4, far6); err != nil {
			return err
		}
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(defaultRoute(dev, near4), defaultRoute(dev, near6))
	})
}

func dress(name string, addrs ...string) error {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		parsed, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		parsed.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(dev, parsed); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(dev)
}

func defaultRoute(dev netlink.Link, gateway string) error {
	return netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: netip.MustParsePrefix(gateway).Addr().AsSlice()})
}

// serveIn runs a server in the backend's namespace that answers everybody with
// the address it sees him under, and what it got.
func (w *packetWorld) serveIn(proto uint8, addr string) layout.Backend {
	w.Helper()
	var at netip.AddrPort
	inNS(w.TB, w.server, func() error {
		if proto == udp {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			at = c.LocalAddr().(*net.UDPAddr).AddrPort()
			w.serve(c, func() bool { return echoDatagram(c) })
			return nil
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		at = l.Addr().(*net.TCPAddr).AddrPort()
		w.serve(l, func() bool { return greet(l) })
		return nil
	})
	return record(at)
}

func echoDatagram(c net.PacketConn) bool {
	buf := make([]byte, 65536)
	n, from, err := c.ReadFrom(buf)
	if err != nil {
		return false
	}
	seen, _, _ := net.SplitHostPort(from.String())
	_, _ = c.WriteTo(append([]byte(seen+" "), buf[:n]...), from) // the client may have gone
	return true
}

func greet(l net.Listener) bool {
	c, err := l.Accept()
	if err != nil {
		return false
	}
	seen, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	_, _ = c.Write([]byte(seen))
	_ = c.Close()
	return true
}

// call connects from the client's namespace, sends what is to be said and returns
// the answer or the error.
func (w *packetWorld) call(network, addr, say string) (answer string) {
	w.Helper()
	return w.callFor(10*time.Second, network, addr, say)
}

func (w *packetWorld) callFor(limit time.Duration, network, addr, say string) (answer string) {
	w.Helper()
	inNS(w.TB, w.client, func() error {
		c, err := net.DialTimeout(network, addr, limit)
		if err != nil {
			answer = err.Error()
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
		if say != "" {
			if _, err := c.Write([]byte(say)); err != nil {
				return err
			}
		}
		buf := make([]byte, 65536)
		n, err := c.Read(buf)
		answer = string(buf[:n])
		if err != nil {
			answer = err.Error()
		}
		return nil
	})
	return answer
}

// onKernels runs a test with clients outside and inside, on this kernel and as on one
// without TCX and without a view of checksums.
func onKernels(t *testing.T, test func(*testing.T, *packetWorld, bool)) {
	for _, opts := range []PacketOptions{{}, {clsact: true, blind: true}} {
		for _, snat := range []bool{false, true} {
			t.Run(fmt.Sprintf("snat=%t/clsact=%t", snat, opts.clsact), func(t *testing.T) {
				test(t, newPacketWorldOf(t, snat, opts), snat)
			})
		}
	}
}

func TestPackets(t *testing.T) {
	onKernels(t, func(t *testing.T, w *packetWorld, snat bool) {
		sees4, sees6 := clientAddr4, clientAddr6
		if snat {
			sees4, sees6 = nodeAddr4, nodeAddr6
		}
		w.service("10.96.0.1:80", tcp, w.serveIn(tcp, backendAddr4+":0"))
		w.service("[fd00:96::1]:80", tcp, w.serveIn(tcp, "["+backendAddr6+"]:0"))
		w.service("10.96.0.1:53", udp, w.serveIn(udp, backendAddr4+":0"))
		w.service("[fd00:96::1]:53", udp, w.serveIn(udp, "["+backendAddr6+"]:0"))
		long := strings.Repeat("0123456789", 500) // more than the link takes at once
		for range 3 {
			w.answers("tcp", "10.96.0.1:80", "", sees4)
			w.answers("tcp", "[fd00:96::1]:80", "", sees6)
			w.answers("udp", "10.96.0.1:53", "hello", sees4+" hello")
			w.answers("udp", "[fd00:96::1]:53", "hello", sees6+" hello")
			w.answers("udp", "10.96.0.1:53", long, sees4+" "+long)
			w.answers("udp", "[fd00:96::1]:53", long, sees6+" "+long)
		}
		w.answers("tcp", backendAddr4+":1", "", "dial tcp "+backendAddr4+":1: connect: connection refused")
	})
}

func (w *packetWorld) answers(network, addr, say, want string) {
	w.Helper()
	if got := w.call(network, addr, say); got != want {
		w.Errorf("%s %s: got %.80q, want %.80q", network, addr, got, want)
	}
}

// TestPacketErrors has nobody behind the backend's port: what ICMP says of the
// backend reaches the client as if it came from the frontend.
func TestPacketErrors(t *testing.T) {
	onKernels(t, func(t *testing.T, w *packetWorld, _ bool) {
		w.service("10.96.0.1:53", udp, record(netip.MustParseAddrPort(backendAddr4+":9")))
		w.service("[fd00:96::1]:53", udp, record(netip.MustParseAddrPort("["+backendAddr6+"]:9")))
		for _, addr := range []string{"10.96.0.1:53", "[fd00:96::1]:53"} {
			if got := w.call("udp", addr, "hello"); !strings.HasSuffix(got, "connection refused") {
				t.Errorf("%s: got %q, want connection refused", addr, got)
			}
		}
	})
}

// dialogue is a connection from the client's namespace that stays open.
func (w *packetWorld) dialogue(addr string) net.Conn {
	w.Helper()
	var c net.Conn
	inNS(w.TB, w.client, func() (err error) {
		c, err = net.DialTimeout("tcp", addr, 10*time.Second)
		return err
	})
	w.Cleanup(func() { _ = c.Close() })
	return c
}

// echoIn runs a TCP server in the backend's namespace that sends back what it gets.
func (w *packetWorld) echoIn(addr string) layout.Backend {
	w.Helper()
	var l net.Listener
	inNS(w.TB, w.server, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	w.serve(l, func() bool {
		c, err := l.Accept()
		if err != nil {
			return false
		}
		go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		return true
	})
	return record(l.Addr().(*net.TCPAddr).AddrPort())
}

func (w *packetWorld) speak(c net.Conn) {
	w.Helper()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		w.Error(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		w.Errorf("got %q, error %v", buf, err)
	}
}

// TestPacketConnectionsOutliveTheLoader takes connections over the end of the
// process that attached the programs and over its next life, and over the loss
// of their backend from the service.
func TestPacketConnectionsOutliveTheLoader(t *testing.T) {
	onKernels(t, func(t *testing.T, w *packetWorld, snat bool) {
		b := w.echoIn(backendAddr4 + ":0")
		id := w.service("10.96.0.1:80", tcp, b)
		c := w.dialogue("10.96.0.1:80")
		w.speak(c)
		if err := w.packet.Close(); err != nil {
			t.Error(err)
		}
		w.speak(c)
		w.loadPacket()
		w.attach(snat)
		w.speak(c)
		w.next = w.publish(id, w.next, nil)
		w.speak(c)
		w.refuses("10.96.0.1:80")
	})
}

// refuses checks that the beginning of a connection is dropped and counted.
func (w *packetWorld) refuses(addr string) {
	w.Helper()
	before := w.counters()
	inNS(w.TB, w.client, func() error {
		s, err := openSocket("4 tcp")
		if err != nil {
			return err
		}
		defer unix.Close(s.fd)
		if err := unix.SetNonblock(s.fd, true); err != nil {
			return err
		}
		if err := unix.Connect(s.fd, s.sockaddr(addr)); !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect to %s, which has no backend: %w", addr, err)
		}
		bpftest.Eventually(w, "packet refused", func() error {
			if w.counters().Refused == before.Refused {
				return fmt.Errorf("counters %+v", w.counters())
			}
			return nil
		})
		if _, err := unix.Getpeername(s.fd); !errors.Is(err, unix.ENOTCONN) {
			return fmt.Errorf("connected to %s, which has no backend (%w)", addr, err)
		}
		return nil
	})
}

// TestPacketsLeaveAWithdrawnCluster has a UDP client go on under the same port
// after its backend's cluster was withdrawn.
func TestPacketsLeaveAWithdrawnCluster(t *testing.T) {
	w := newPacketWorld(t, false)
	first, second := w.serveIn(udp, backendAddr4+":0"), w.serveIn(udp, backendAddr4+":0")
	second.Cluster = 2
	id := w.service("10.96.0.1:53", udp, first)
	inNS(t, w.client, func() error {
		c, err := net.Dial("udp", "10.96.0.1:53")
		if err != nil {
			return err
		}
		defer c.Close()
		for _, step := range []func(){
			func() {},
			func() { w.next = w.publish(id, w.next, []layout.Backend{first, second}) },
			func() { w.dp.StoreCluster(1, layout.Cluster{State: layout.ClusterWithdrawn}) },
		} {
			step()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			buf := make([]byte, 64)
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			if _, err := c.Read(buf); err != nil {
				return err
			}
		}
		return nil
	})
	flows := map[uint16]int{}
	var key packetCmFlowKey
	var flow packetCmFlow
	for it := w.packet.coll.Maps[packetMapCmFlows].Iterate(); it.Next(&key, &flow); {
		if flow.Flags&1 != 0 { // CM_FLOW_FORWARD
			flows[flow.Cluster]++
		}
	}
	if len(flows) != 1 || flows[2] != 1 {
		t.Errorf("flows by cluster: %v, want one to cluster 2", flows)
	}
}

// TestPacketsToTheNodeItself has a backend on the node that balances, which needs
// no masquerading even of clients outside.
func TestPacketsToTheNodeItself(t *testing.T) {
	w := newPacketWorld(t, true)
	w.server = w.node
	w.service("10.96.0.1:80", tcp, w.serveIn(tcp, nodeAddr4+":0"))
	w.service("[fd00:96::1]:80", tcp, w.serveIn(tcp, "["+nodeAddr6+"]:0"))
	w.answers("tcp", "10.96.0.1:80", "", clientAddr4)
	w.answers("tcp", "[fd00:96::1]:80", "", clientAddr6)
}

// TestPacketsToOneself has a client that gets itself as the backend.
func TestPacketsToOneself(t *testing.T) {
	w := newPacketWorld(t, false)
	w.server = w.client
	w.service("10.96.0.1:80", tcp, w.serveIn(tcp, clientAddr4+":0"))
	w.answers("tcp", "10.96.0.1:80", "", nodeAddr4)
}

// TestPacketProgramsAreCurrent regenerates the per-packet programs.
func TestPacketProgramsAreCurrent(t *testing.T) {
	regenerated(t, "packet.go", "packet.bpf.c", "packet_bpfel.go", "packet_bpfel.o")
}
