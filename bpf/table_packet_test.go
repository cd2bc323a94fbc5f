package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// packetKinds are clients whose packets meet the programs at a device.
func packetKinds() []tableKind {
	return []tableKind{
		{family: "v4", protocol: "tcp", hooks: "packet", proto: tcp, bound: clientAddr4},
		{family: "v4", protocol: "udp", hooks: "packet", proto: udp, bound: clientAddr4},
		{family: "v6", protocol: "tcp", hooks: "packet", proto: tcp, bound: clientAddr6},
		{family: "v6", protocol: "udp", hooks: "packet", proto: udp, bound: clientAddr6},
	}
}

// packetTable is where the cases of packets are.
type packetTable struct {
	*packetWorld
	port uint16 // of the client before
}

// testPacketTable has one client, on another machine if outside.
func testPacketTable(t *testing.T, outside bool, cases []tableCase) int {
	p := &packetTable{newPacketWorld(t, outside), 9999}
	w := newTableWorld(p.fixture)
	wrong := 0
	for i := range cases {
		c := &cases[i]
		host := map[string]string{"v4": backendAddr4 + ":0", "v6": "[" + backendAddr6 + "]:0"}[c.family]
		servers := w.serving(c, func(int) layout.Backend { return p.serveIn(c.proto, host) })
		right := t.Run(c.String(), func(t *testing.T) {
			w.in(t, c, servers, func(frontend string) {
				if c.refused() {
					p.droppedCase(t, c, frontend)
				} else {
					p.packetCase(t, c, frontend, servers, outside)
				}
			})
		})
		if !right {
			wrong++
		}
		if wrong == 3 { // each of them may have waited for long
			t.Fatal("too many cases failed to go on")
		}
	}
	return len(cases)
}

// packetCase knows the backends by the hits of their clusters. That an answer comes
// at all says that it came from the frontend: the client's sockets are connected.
// Each client has a port that none had before, or it would meet what the servers
// keep of connections through other frontends.
func (w *packetTable) packetCase(t *testing.T, c *tableCase, frontend string, servers []netip.AddrPort, outside bool) {
	t.Helper()
	want := c.bound
	if outside {
		want = map[string]string{"v4": nodeAddr4, "v6": nodeAddr6}[c.family]
	}
	network := "tcp"
	if c.proto == udp {
		network, want = "udp", want+" ?"
	}
	n := c.runs(100, 5)
	hits := w.hits(func() {
		inNS(t, w.client, func() error {
			for range n {
				w.port++
				if got, err := askOnce(network, netip.AddrPortFrom(netip.MustParseAddr(c.bound), w.port), frontend); err != nil || got != want {
					return fmt.Errorf("answer %q, %w, want %q", got, err, want)
				}
			}
			return nil
		})
	})
	got, sum := map[int]int{}, 0
	for cluster, hits := range hits {
		got[int(cluster)-1] += int(hits)
		sum += int(hits)
	}
	if sum != n {
		t.Errorf("%d connections made the hits %v", n, hits)
	}
	c.judge(t, got, addressSeed(c.bound), servers)
}

// askOnce sends a question mark, which servers of TCP do not wait for, and returns
// the answer.
func askOnce(network string, from netip.AddrPort, addr string) (string, error) {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(from)}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(from)
	}
	c, err := d.Dial(network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// droppedCase begins a connection that the programs must drop and count.
func (w *packetTable) droppedCase(t *testing.T, c *tableCase, frontend string) {
	t.Helper()
	before := w.counters()
	kind := map[string]string{"v4": "4 ", "v6": "6 "}[c.family] + map[uint8]string{tcp: "tcp", udp: "udp"}[c.proto]
	inNS(t, w.client, func() error {
		s, err := openSocket(kind)
		if err != nil {
			return err
		}
		defer unix.Close(s.fd)
		if err := unix.SetNonblock(s.fd, true); err != nil {
			return err
		}
		if err := unix.Connect(s.fd, s.sockaddr(frontend)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		if c.proto == udp {
			if _, err := unix.Write(s.fd, []byte("?")); err != nil {
				return err
			}
		}
		return w.dropped(s, before)
	})
}

func (w *packetTable) dropped(s clientSocket, before Counters) error {
	bpftest.Eventually(w, "packet refused", func() error {
		if after := w.counters(); after.Refused == before.Refused {
			return fmt.Errorf("counters %+v", after)
		}
		return nil
	})
	if after := w.counters(); after.Hits != before.Hits {
		return fmt.Errorf("a backend was chosen: counters %+v", after)
	}
	if n, err := unix.Read(s.fd, make([]byte, 1)); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("read %d bytes, %w, want nothing", n, err)
	}
	return nil
}
