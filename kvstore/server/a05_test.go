package server

import (
	"bytes"
	"crypto/tls"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
)

const pageKiB = 4

// rss returns the process's resident memory in KiB.
func rss(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * pageKiB
}

// peakRSS samples resident memory until stop is called.
func peakRSS(t *testing.T) (stop func() (peak int)) {
	var peak atomic.Int64
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			peak.Store(max(peak.Load(), int64(rss(t))))
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() int { close(done); <-ended; return int(peak.Load()) }
}

// sockets are connections of an attacker, plain file descriptors: they must not
// cost the measured process memory.
type sockets struct {
	t   *testing.T
	to  unix.SockaddrInet4
	fds []int
}

func (w *world) sockets(t *testing.T) *sockets {
	a := w.s.Addr().(*net.TCPAddr)
	s := &sockets{t: t, to: unix.SockaddrInet4{Port: a.Port, Addr: [4]byte{127, 0, 0, 1}}}
	t.Cleanup(s.close)
	return s
}

// open connects and says something, which may be nothing.
func (s *sockets) open(say []byte) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	s.fds = append(s.fds, fd)
	if err := unix.Connect(fd, &s.to); err != nil {
		s.t.Fatalf("connection %d: %v", len(s.fds), err)
	}
	if len(say) > 0 {
		_, _ = unix.Write(fd, say) // it may be closed already
	}
}

func (s *sockets) close() {
	for _, fd := range s.fds {
		_ = unix.Close(fd)
	}
	s.fds = nil
}

// clientHello records what a TLS client says first.
func clientHello(t *testing.T, cfg *tls.Config) []byte {
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		c := tls.Client(client, cfg)
		_ = c.Handshake()
		c.Close()
	}()
	b := make([]byte, 16<<10)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b[:n])
}

// served measures a peer that connects, asks and leaves.
func served(w *world, g guest, cert tls.Certificate) (time.Duration, error) {
	begin := time.Now()
	conn := w.dialWith(w.with(cert))
	defer conn.Close()
	_, err := pb.NewKVClient(conn).Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0"))
	return time.Since(begin), err
}

// TestA05_IdleAndHalfOpenConnections opens ten thousand connections that say
// nothing and a thousand that stop in the middle of the handshake.
func TestA05_IdleAndHalfOpenConnections(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 14_000 {
		t.Skipf("%d file descriptors are allowed, 14000 are needed (%v)", limit.Cur, err)
	}
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west}, func(c *Config) { c.Limits.HandshakeTimeout = time.Minute; c.Log = nil })
	w.put("cilium/state/a=1")
	cert, hello := west.cert(), clientHello(t, w.with(west.cert()))
	quiet, err := served(w, west, cert)
	if err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory()
	before, stop := rss(t), peakRSS(t)
	idle, half := w.sockets(t), w.sockets(t)
	const idlers, halves = 10_000, 1_000
	var worst time.Duration
	check := func(when string) {
		d, err := served(w, west, cert)
		if err != nil {
			t.Errorf("%s: a valid peer is not served: %v", when, err)
		}
		worst = max(worst, d)
	}
	for i := range idlers {
		idle.open(nil)
		if i%1000 == 999 {
			check("while idle connections come")
		}
	}
	for i := range halves {
		half.open(hello)
		if i%250 == 249 {
			check("while half-open handshakes come")
		}
	}
	check("with all of them open")
	grown := stop() - before
	t.Logf("%d idle connections and %d half-open handshakes: memory +%d KiB at its peak; a valid peer is served within %v (before: %v)",
		idlers, halves, grown, worst, quiet)
	if grown > 50<<10 && !raceEnabled {
		t.Errorf("memory grew by %d KiB", grown)
	}
	if worst > 10*time.Second {
		t.Errorf("a valid peer waited %v", worst)
	}
	if n := w.metric("clustermesh_gateway_handshake_failures_total", string(failedBusy)); n < idlers-2000 {
		t.Errorf("only %v evictions are counted", n)
	}
	idle.close()
	half.close()
	eventually(t, "all connections are forgotten", func() bool { return w.metric("clustermesh_gateway_connections", "") == 0 })
}

// TestA05_HTTP2Floods lets a valid peer misuse HTTP/2 in the known ways, and
// expects that the connection or the call ends, that memory stays, and that
// another peer is served.
func TestA05_HTTP2Floods(t *testing.T) {
	west, north := westGuest(t), northGuest(t)
	w, _ := startPeers(t, []guest{west, north}, patient, func(c *Config) { c.Log = nil })
	seed(w)
	other := pb.NewKVClient(w.dialAs(north))
	body := message(ordinary(t, pb.KV_Range_FullMethodName))
	debug.FreeOSMemory()
	before, stop := rss(t), peakRSS(t)
	floods := campaign(8_000, 500_000)
	for name, flood := range map[string]func(h *rawHTTP, i int) error{
		"rapid reset": func(h *rawHTTP, i int) error {
			id := uint32(2*i + 1)
			if err := h.frame(frameHeaders, flagEndHeaders, id, request(pb.KV_Range_FullMethodName)); err != nil {
				return err
			}
			_ = h.frame(frameData, flagEndStream, id, body)
			return h.frame(frameReset, 0, id, []byte{0, 0, 0, 8})
		},
		"continuation without end": func(h *rawHTTP, i int) error {
			if i == 0 {
				return h.frame(frameHeaders, 0, 1, request(pb.KV_Range_FullMethodName))
			}
			return h.frame(frameContinuation, 0, 1, literals("x-padding", strings.Repeat("v", 8<<10)))
		},
		"header bomb": func(h *rawHTTP, i int) error {
			return h.frame(frameHeaders, flagEndHeaders|flagEndStream, uint32(2*i+1), request(pb.KV_Range_FullMethodName, "x-bomb", strings.Repeat("v", 16<<10-200)))
		},
		"settings":     func(h *rawHTTP, _ int) error { return h.frame(frameSettings, 0, 0, nil) },
		"pings":        func(h *rawHTTP, _ int) error { return h.frame(framePing, 0, 0, make([]byte, 8)) },
		"empty data":   func(h *rawHTTP, _ int) error { return h.frame(frameData, 0, 1, nil) },
		"huge message": hugeMessage,
		"endless calls": func(h *rawHTTP, i int) error {
			return h.frame(frameHeaders, flagEndHeaders, uint32(2*i+1), request(pb.Watch_Watch_FullMethodName))
		},
	} {
		h := w.rawHTTP(w.with(west.cert()))
		ended := make(chan int)
		go func() { // the attacker reads, or TCP alone would stop him
			n := 0
			for {
				if _, _, _, _, err := h.next(); err != nil {
					ended <- n
					return
				}
				n++
			}
		}()
		sent := 0
		for ; sent < floods && flood(h, sent) == nil; sent++ {
			if sent%(floods/4) == 1 {
				if _, err := other.Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0")); err != nil {
					t.Errorf("%s: another peer is not served: %v", name, err)
				}
			}
		}
		h.Close()
		t.Logf("%s: %d frames sent, %d received", name, sent, <-ended)
	}
	if grown := stop() - before; grown > 50<<10 && !raceEnabled {
		t.Errorf("memory grew by %d KiB", grown)
	} else {
		t.Logf("memory +%d KiB at its peak", grown)
	}
	if _, err := other.Range(w.ctx(), rangeOf("cilium/state/", "cilium/state0")); err != nil {
		t.Errorf("another peer is not served afterwards: %v", err)
	}
	eventually(t, "only the other peer is left", func() bool { return w.metric("clustermesh_gateway_connections", "") == 1 })
}

// hugeMessage announces a message of 4 GiB and sends its start for ever.
func hugeMessage(h *rawHTTP, i int) error {
	if i == 0 {
		return h.frame(frameHeaders, flagEndHeaders, 1, request(pb.KV_Range_FullMethodName))
	}
	return h.frame(frameData, 0, 1, append([]byte{0, 0xff, 0xff, 0xff, 0xff}, make([]byte, 8<<10)...))
}
