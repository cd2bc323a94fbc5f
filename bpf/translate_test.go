package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

func TestTranslation(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("four", "127.0.0.2:0", tcp))
	f.service("10.96.0.1:53", udp, f.backend("four", "127.0.0.2:0", udp))
	f.service("[fd00:96::1]:80", tcp, f.backend("six", "[::1]:0", tcp))
	f.service("[fd00:96::1]:53", udp, f.backend("six", "[::1]:0", udp))

	tests := []struct {
		name, socket string
		steps        []string
		want         string
	}{
		{"tcp4", "4 tcp", []string{"connect 10.96.0.1:80", "peer", "recv"}, "ok; 10.96.0.1:80; four"},
		{"tcp6", "6 tcp", []string{"connect [fd00:96::1]:80", "peer", "recv"}, "ok; [fd00:96::1]:80; six"},
		{"tcp mapped", "6 tcp", []string{"connect 10.96.0.1:80", "peer", "recv"}, "ok; [::ffff:10.96.0.1]:80; four"},
		{"udp4 connected", "4 udp", []string{"connect 10.96.0.1:53", "peer", "send", "recv"}, "ok; 10.96.0.1:53; ok; four from 10.96.0.1:53"},
		{"udp6 connected", "6 udp", []string{"connect [fd00:96::1]:53", "peer", "send", "recv"}, "ok; [fd00:96::1]:53; ok; six from [fd00:96::1]:53"},
		{"udp mapped connected", "6 udp", []string{"connect 10.96.0.1:53", "peer", "send", "recv"}, "ok; [::ffff:10.96.0.1]:53; ok; four from [::ffff:10.96.0.1]:53"},
		{"udp4 unconnected", "4 udp", []string{"sendto 10.96.0.1:53", "recv"}, "ok; four from 10.96.0.1:53"},
		{"udp6 unconnected", "6 udp", []string{"sendto [fd00:96::1]:53", "recv"}, "ok; six from [fd00:96::1]:53"},
		{"udp mapped unconnected", "6 udp", []string{"sendto 10.96.0.1:53", "recv"}, "ok; four from [::ffff:10.96.0.1]:53"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.only(f.run(20, tt.socket, tt.steps...), tt.want)
		})
	}
}

// backends starts n servers that differ by name, and returns their records.
func (f *fixture) backends(n int, prefix string, proto uint8) []layout.Backend {
	f.Helper()
	list := make([]layout.Backend, n)
	for i := range list {
		list[i] = f.backend(fmt.Sprintf("%s%d", prefix, i), "127.0.0.2:0", proto)
	}
	return list
}

func addrOf(b layout.Backend) string {
	return netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), binary.BigEndian.Uint16(b.Port[:])).String()
}

func TestOtherDestinationsAreUntouched(t *testing.T) {
	f := newFixture(t)
	tcpServer, udpServer := f.backend("direct", "127.0.0.3:0", tcp), f.backend("direct", "127.0.0.3:0", udp)
	wrong := f.backend("wrong", "127.0.0.2:0", tcp)
	f.service("10.96.0.1:80", tcp, wrong)
	f.service(addrOf(udpServer), tcp, wrong) // same address and port, other protocol
	f.service("127.0.0.3:1", tcp, wrong)     // same address, other port

	to := addrOf(tcpServer)
	f.only(f.run(5, "4 tcp", "connect "+to, "peer", "recv"), "ok; "+to+"; direct")
	f.only(f.run(5, "6 tcp", "connect "+to, "peer", "recv"), "ok; [::ffff:127.0.0.3]:"+port(to)+"; direct")
	to = addrOf(udpServer)
	f.only(f.run(5, "4 udp", "connect "+to, "peer", "send", "recv"), "ok; "+to+"; ok; direct from "+to)
	f.only(f.run(5, "4 udp", "sendto "+to, "recv"), "ok; direct from "+to)
	f.only(f.run(5, "6 udp", "sendto "+to, "recv"), "ok; direct from [::ffff:127.0.0.3]:"+port(to))
	f.only(f.run(5, "4 udp", "sendto 10.96.0.1:80"), "ENETUNREACH")

	want := Counters{Misses: 30}
	if got := f.counters(); got != want {
		t.Errorf("counters: got %+v, want %+v", got, want)
	}
}

func port(addr string) string { return addr[strings.LastIndex(addr, ":")+1:] }

func (f *fixture) counters() Counters {
	f.Helper()
	c, err := f.dp.Counters()
	if err != nil {
		f.Fatal(err)
	}
	return c
}

// TestServiceWithoutBackendsRefuses uses frontends at which somebody listens, so
// that only the program can refuse.
func TestServiceWithoutBackendsRefuses(t *testing.T) {
	f := newFixture(t)
	onTCP, onUDP := f.backend("listens", "127.0.0.9:0", tcp), f.backend("listens", "127.0.0.9:0", udp)
	onTCP6 := f.backend("listens", "[::1]:0", tcp)
	f.service(addrOf(onTCP), tcp)
	f.service(addrOf(onTCP6), tcp)
	f.service(addrOf(onUDP), udp)
	f.refuses("ECONNREFUSED", onTCP, onTCP6, onUDP)
	if got, want := f.counters(), (Counters{Refused: 18, Reasons: Reasons{Empty: 18}}); got != want {
		t.Errorf("counters: got %+v, want %+v", got, want)
	}
}

// TestRefusalOfOldKernels is about programs that may not choose the error.
func TestRefusalOfOldKernels(t *testing.T) {
	f := newPlace(t)
	f.opts.plainRefusal = true
	f.load()
	onTCP, onUDP := f.backend("listens", "127.0.0.9:0", tcp), f.backend("listens", "127.0.0.9:0", udp)
	onTCP6 := f.backend("listens", "[::1]:0", tcp)
	f.service(addrOf(onTCP), tcp)
	f.service(addrOf(onTCP6), tcp)
	f.service(addrOf(onUDP), udp)
	f.refuses("EPERM", onTCP, onTCP6, onUDP)
}

func (f *fixture) refuses(errno string, onTCP, onTCP6, onUDP layout.Backend) {
	f.Helper()
	f.only(f.run(3, "4 tcp", "connect "+addrOf(onTCP)), errno)
	f.only(f.run(3, "6 tcp", "connect "+addrOf(onTCP)), errno)
	f.only(f.run(3, "6 tcp", "connect "+addrOf(onTCP6)), errno)
	f.only(f.run(3, "4 udp", "connect "+addrOf(onUDP)), errno)
	f.only(f.run(3, "4 udp", "sendto "+addrOf(onUDP)), errno)
	f.only(f.run(3, "6 udp", "sendto "+addrOf(onUDP)), errno)
}

func TestReconnectForgetsTheFrontend(t *testing.T) {
	f := newFixture(t)
	onTCP, onUDP := f.backend("b", "127.0.0.2:0", tcp), f.backend("b", "127.0.0.2:0", udp)
	f.service("10.96.0.1:80", tcp, onTCP)
	f.service("10.96.0.1:53", udp, onUDP)
	f.service("10.96.0.2:53", udp, onUDP)
	direct := addrOf(onTCP)
	f.only(f.run(1, "4 tcp", "connect 10.96.0.1:80", "disconnect", "connect "+direct, "peer"), "ok; ok; ok; "+direct)
	mapped := "[::ffff:127.0.0.2]:" + port(direct)
	f.only(f.run(1, "6 tcp", "connect 10.96.0.1:80", "disconnect", "connect "+direct, "peer"), "ok; ok; ok; "+mapped)
	onTCP6 := f.backend("b", "[::1]:0", tcp)
	f.service("[fd00::1]:80", tcp, onTCP6)
	f.only(f.run(1, "6 tcp", "connect [fd00::1]:80", "disconnect", "connect "+addrOf(onTCP6), "peer"), "ok; ok; ok; "+addrOf(onTCP6))
	direct = addrOf(onUDP)
	f.only(f.run(1, "4 udp", "connect 10.96.0.1:53", "connect "+direct, "peer", "send", "recv"),
		"ok; ok; "+direct+"; ok; b from "+direct)
	f.only(f.run(1, "4 udp", "connect 10.96.0.1:53", "connect 10.96.0.2:53", "peer", "send", "recv"),
		"ok; ok; 10.96.0.2:53; ok; b from 10.96.0.2:53")
	f.only(f.run(1, "4 udp", "connect 10.96.0.1:53", "disconnect", "sendto 10.96.0.2:53", "recv"),
		"ok; ok; ok; b from 10.96.0.2:53")
	f.only(f.run(1, "6 udp", "connect 10.96.0.1:53", "disconnect", "sendto "+direct, "recv"),
		"ok; ok; ok; b from [::ffff:127.0.0.2]:"+port(direct))
}

// TestClosedSocketsLeaveNoPeer checks that the remembered frontends go with
// their sockets, however these end.
func TestClosedSocketsLeaveNoPeer(t *testing.T) {
	f := newFixture(t)
	b := f.backend("b", "127.0.0.2:0", tcp)
	f.service("10.96.0.1:80", tcp, b)
	f.service("10.96.0.2:80", tcp, record(netip.MustParseAddrPort("127.0.0.2:1")))
	f.only(f.run(50, "4 tcp", "connect 10.96.0.1:80", "peer"), "ok; 10.96.0.1:80")
	f.only(f.run(50, "4 tcp", "connect 10.96.0.1:80", "disconnect", "connect 10.96.0.1:80", "peer"), "ok; ok; ok; 10.96.0.1:80")
	f.only(f.run(50, "6 tcp", "connect 10.96.0.1:80", "disconnect"), "ok; ok")
	f.only(f.run(50, "4 tcp", "connect 10.96.0.2:80"), "ECONNREFUSED")
	f.rememberNobody()
}

// TestTranslatedOnce has a backend that is itself a frontend. A connected
// dual-stack socket shows it to the sendmsg hook as a destination.
func TestTranslatedOnce(t *testing.T) {
	f := newFixture(t)
	for _, proto := range []uint8{tcp, udp} {
		first := f.backend("first", "127.0.0.2:0", proto)
		f.service("10.96.0.1:53", proto, first)
		f.service(addrOf(first), proto, f.backend("second", "127.0.0.3:0", proto))
	}
	f.only(f.run(5, "4 tcp", "connect 10.96.0.1:53", "peer", "recv"), "ok; 10.96.0.1:53; first")
	f.only(f.run(5, "4 udp", "connect 10.96.0.1:53", "send", "recv"), "ok; ok; first from 10.96.0.1:53")
	f.only(f.run(5, "6 udp", "connect 10.96.0.1:53", "send", "recv"), "ok; ok; first from [::ffff:10.96.0.1]:53")
	f.only(f.run(5, "4 udp", "sendto 10.96.0.1:53", "recv"), "ok; first from 10.96.0.1:53")
	f.only(f.run(5, "6 udp", "sendto 10.96.0.1:53", "recv"), "ok; first from [::ffff:10.96.0.1]:53")
}

// TestConnectedSocketKeepsItsBackend sends to the frontend by name on a socket
// that is connected to it: any other backend's answer would not reach it.
func TestConnectedSocketKeepsItsBackend(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:53", udp, f.backends(8, "b", udp)...)
	steps := []string{"connect 10.96.0.1:53"}
	for range 8 {
		steps = append(steps, "sendto 10.96.0.1:53", "recv")
	}
	for _, family := range []string{"4 udp", "6 udp"} {
		for got := range f.run(20, family, steps...) {
			if strings.HasSuffix(got, timedOut) || countNames(got) != 1 {
				t.Errorf("%s: want one backend for all, got %s", family, got)
			}
		}
	}
}

// countNames counts the different backends in an outcome.
func countNames(outcome string) int {
	names := map[string]bool{}
	for step := range strings.SplitSeq(outcome, "; ") {
		if name, _, ok := strings.Cut(step, " from "); ok {
			names[name] = true
		}
	}
	return len(names)
}

func TestUnconnectedSocketSticksToABackend(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:53", udp, f.backends(8, "b", udp)...)
	var steps []string
	for range 8 {
		steps = append(steps, "sendto 10.96.0.1:53", "recv")
	}
	for got := range f.run(50, "4 udp", steps...) {
		if countNames(got) != 1 {
			t.Errorf("want one backend for all, got %s", got)
		}
	}
}

// TestOneSocketManyServices holds the reverse translation apart.
func TestOneSocketManyServices(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:53", udp, f.backend("a", "127.0.0.2:0", udp))
	f.service("10.96.0.2:53", udp, f.backend("b", "127.0.0.2:0", udp))
	direct := addrOf(f.backend("c", "127.0.0.2:0", udp))
	f.only(f.run(5, "4 udp", "sendto 10.96.0.1:53", "recv", "sendto 10.96.0.2:53", "recv", "sendto "+direct, "recv", "sendto 10.96.0.1:53", "recv"),
		"ok; a from 10.96.0.1:53; ok; b from 10.96.0.2:53; ok; c from "+direct+"; ok; a from 10.96.0.1:53")
}

// TestSharedBackend has two services with the same backend: an answer belongs to
// the one that was asked last.
func TestSharedBackend(t *testing.T) {
	f := newFixture(t)
	shared := f.backend("b", "127.0.0.2:0", udp)
	f.service("10.96.0.1:53", udp, shared)
	f.service("10.96.0.2:53", udp, shared)
	f.only(f.run(5, "4 udp", "sendto 10.96.0.1:53", "recv", "sendto 10.96.0.2:53", "recv", "sendto 10.96.0.1:53", "recv"),
		"ok; b from 10.96.0.1:53; ok; b from 10.96.0.2:53; ok; b from 10.96.0.1:53")
}

// TestOtherProtocolsAreUntouched uses the two protocols that share hooks with TCP
// and UDP: ping sockets have the connect hook, UDP-Lite ones the sendmsg hook.
func TestOtherProtocolsAreUntouched(t *testing.T) {
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
		t.Fatal(err) // of this network namespace
	}
	f := newFixture(t)
	b := f.backend("b", "127.0.0.2:0", udp)
	f.service("127.0.0.9:53", unix.IPPROTO_ICMP, b)
	f.service("127.0.0.9:53", udp, b)
	f.only(f.run(3, "4 icmp", "connect 127.0.0.9:53", "peer"), "ok; 127.0.0.9:53")
	if got := f.run(3, "4 udplite", "sendto 127.0.0.9:53"); got["EPROTONOSUPPORT"] == 0 {
		f.only(got, "ok")
	}
	if c := f.counters(); c != (Counters{}) {
		t.Errorf("counters: %+v", c)
	}
}

// TestSharesAreEven has a bound that even shares exceed once in 10^9 runs.
func TestSharesAreEven(t *testing.T) {
	const backends, runs, bound = 10, 3000, 60.0
	f := newFixture(t)
	f.service("10.96.0.1:53", udp, f.backends(backends, "b", udp)...)
	f.service("10.96.0.1:80", tcp, f.backends(backends, "b", tcp)...)
	for name, got := range map[string]map[string]int{
		"connected":   f.run(runs, "4 udp", "connect 10.96.0.1:53", "send", "recv"),
		"unconnected": f.run(runs, "4 udp", "sendto 10.96.0.1:53", "recv"),
		"tcp":         f.run(runs, "6 tcp", "connect 10.96.0.1:80", "recv"),
	} {
		if x := chiSquare(got, backends, runs); x > bound {
			t.Errorf("%s: chi-square %.1f over %.0f: %v", name, x, bound, got)
		}
	}
}

func chiSquare(counts map[string]int, kinds, runs int) float64 {
	expected := float64(runs) / float64(kinds)
	sum := expected * float64(kinds-len(counts)) // kinds never seen
	for _, n := range counts {
		sum += (float64(n) - expected) * (float64(n) - expected) / expected
	}
	return sum
}

func TestWithdrawnClusterIsSkipped(t *testing.T) {
	f := newFixture(t)
	list := f.backends(4, "b", tcp)
	list[1].Cluster, list[2].Cluster, list[3].Cluster = 7, 7, 511
	f.service("10.96.0.1:80", tcp, list...)
	seen := func() map[string]int { return f.run(300, "4 tcp", "connect 10.96.0.1:80", "recv") }

	f.dp.StoreCluster(7, layout.Cluster{State: layout.ClusterWithdrawn})
	if got := seen(); len(got) != 2 || chiSquare(got, 2, 300) > 40 {
		t.Errorf("want even shares of b0 and b3, got %v", got)
	}
	f.dp.StoreCluster(511, layout.Cluster{State: layout.ClusterWithdrawn})
	f.only(seen(), "ok; b0")
	f.dp.StoreCluster(1, layout.Cluster{State: layout.ClusterWithdrawn})
	f.only(f.run(3, "4 tcp", "connect 10.96.0.1:80"), "ECONNREFUSED")
	for _, id := range []uint16{1, 7, 511} {
		f.dp.StoreCluster(id, layout.Cluster{State: layout.ClusterUp})
	}
	if got := seen(); len(got) != 4 {
		t.Errorf("want all four again, got %v", got)
	}
}

// TestLastBackendIsFound leaves one usable backend in a set as large as the
// sweep, at its ends and in the middle.
func TestLastBackendIsFound(t *testing.T) {
	const size = 64
	f := newFixture(t)
	alive := f.backend("alive", "127.0.0.2:0", tcp)
	f.dp.StoreCluster(2, layout.Cluster{State: layout.ClusterWithdrawn})
	for i, at := range []int{0, 1, 37, size - 1} {
		list := make([]layout.Backend, size)
		for i := range list {
			list[i] = alive
			list[i].Cluster = 2
		}
		list[at].Cluster = 1
		addr := fmt.Sprintf("10.96.0.%d:80", i+1)
		f.service(addr, tcp, list...)
		f.only(f.run(100, "4 tcp", "connect "+addr, "recv"), "ok; alive")
	}
}

// TestForeignRegionIsNotUsed points a header at records of another frontend, as
// a reader sees them whose region was reused.
func TestForeignRegionIsNotUsed(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backend("other", "127.0.0.2:0", tcp))
	id := f.service("10.96.0.2:80", tcp)
	f.dp.StoreHeader(id, layout.MakeHeader(2, 1, 0))
	f.only(f.run(3, "4 tcp", "connect 10.96.0.1:80", "recv"), "ok; other")
	f.only(f.run(3, "4 tcp", "connect 10.96.0.2:80"), "ECONNREFUSED")
	f.dp.StoreHeader(id, layout.MakeHeader(4095, 60000, 0)) // far beyond the slab
	f.only(f.run(3, "4 tcp", "connect 10.96.0.2:80"), "ECONNREFUSED")
}

// TestFamiliesDoNotMix: a socket that connects to an IPv4 frontend cannot reach
// an IPv6 backend.
func TestFamiliesDoNotMix(t *testing.T) {
	f := newFixture(t)
	four, six := f.backend("four", "127.0.0.2:0", tcp), f.backend("six", "[::1]:0", tcp)
	f.service("10.96.0.1:80", tcp, six, four)
	f.service("[fd00:96::1]:80", tcp, six, four)
	f.only(f.run(50, "4 tcp", "connect 10.96.0.1:80", "recv"), "ok; four")
	f.only(f.run(50, "6 tcp", "connect 10.96.0.1:80", "recv"), "ok; four")
	f.only(f.run(50, "6 tcp", "connect [fd00:96::1]:80", "recv"), "ok; six")
}

// TestReplacementLosesNoConnection replaces the sets as fast as it can while a
// client connects as fast as it can.
func TestReplacementLosesNoConnection(t *testing.T) {
	const runs = 4000
	f := newFixture(t)
	onTCP, onUDP := f.backends(4, "b", tcp), f.backends(4, "b", udp)
	idTCP, idUDP := f.service("10.96.0.1:80", tcp, onTCP...), f.service("10.96.0.1:53", udp, onUDP...)
	replaced := f.replaceDuring(func() {
		f.allNamed(f.run(runs, "4 tcp", "connect 10.96.0.1:80", "recv"), "ok; b")
		f.allNamed(f.run(runs, "6 udp", "sendto 10.96.0.1:53", "recv"), "ok; b")
		f.allNamed(f.run(runs, "4 udp", "connect 10.96.0.1:53", "send", "recv"), "ok; ok; b")
	}, map[uint32][]layout.Backend{idTCP: onTCP, idUDP: onUDP})
	if replaced < 100 {
		t.Errorf("replaced the sets %d times only", replaced)
	}
	if c := f.counters(); c.Hits < 3*runs || c.Refused != 0 {
		t.Errorf("counters: %+v", c)
	}
}

// TestRestartLosesNoConnection replaces the agent again and again meanwhile.
func TestRestartLosesNoConnection(t *testing.T) {
	f := newFixture(t)
	f.service("10.96.0.1:80", tcp, f.backends(4, "b", tcp)...)
	f.service("10.96.0.1:53", udp, f.backends(4, "b", udp)...)
	f.run(1, "4 tcp", "connect 10.96.0.1:80") // starts the client
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.allNamed(f.run(4000, "4 tcp", "connect 10.96.0.1:80", "recv"), "ok; b")
		f.allNamed(f.run(4000, "6 udp", "sendto 10.96.0.1:53", "recv"), "ok; b")
	}()
	for running := true; running; {
		f.close()
		f.load()
		select {
		case <-done:
			running = false
		default:
		}
	}
}

func (f *fixture) allNamed(got map[string]int, prefix string) {
	f.Helper()
	for outcome, n := range got {
		if !strings.HasPrefix(outcome, prefix) {
			f.Errorf("%d times %q", n, outcome)
		}
	}
}

// replaceDuring runs work and meanwhile gives each service one or two of its
// backends at a time, in fresh regions; when the slab is used up it waits until
// nobody can still read the oldest ones. It returns the number of rounds.
func (f *fixture) replaceDuring(work func(), services map[uint32][]layout.Backend) int {
	f.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	begin := f.next
	for round := 0; ; round++ {
		select {
		case <-done:
			return round
		default:
		}
		if f.next+6 > f.dp.Capacity().Records {
			f.next = begin
		}
		if f.next == begin {
			f.waitRCU()
		}
		for id, list := range services {
			i := round % (len(list) - 1)
			f.next = f.publish(id, f.next, list[i:i+1+round%2])
		}
	}
}

func (f *fixture) waitRCU() {
	f.Helper()
	if err := f.dp.WaitRCU(); err != nil {
		f.Error(err)
	}
}
