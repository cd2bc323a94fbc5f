package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
)

// tcpPacket is an Ethernet frame with the beginning of a TCP connection.
func tcpPacket(src, dst string) []byte {
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	p := make([]byte, 14+20+20)
	p[12], p[13] = 8, 0
	ip, l4 := p[14:34], p[34:]
	ip[0], ip[8], ip[9] = 0x45, 64, tcp
	binary.BigEndian.PutUint16(ip[2:], 40)
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(l4, from.Port())
	binary.BigEndian.PutUint16(l4[2:], to.Port())
	l4[12], l4[13] = 5<<4, 0x10
	return p
}

func flowEnd(addr string) (e packetCmEndpoint) {
	a := netip.MustParseAddrPort(addr)
	e.Addr = words(a.Addr().As16())
	e.Port = a.Port()>>8 | a.Port()<<8
	return e
}

// BenchmarkPacket is the cost of one packet to the ingress program, as the
// kernel's test run measures it: traffic that is nobody's, and a connection in
// the middle of its life. That one is translated into itself, because the test
// run gives the program the same packet again and again.
func BenchmarkPacket(b *testing.B) {
	for _, services := range []int{1, 1000} {
		f := newBench(b, services, tcp)
		p, err := LoadPacket(PacketOptions{PinDir: f.opts.PinDir})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = p.Close() })
		here, there := "10.1.0.2:40000", "10.2.0.2:80"
		flow := packetCmFlow{Src: flowEnd(here), Dst: flowEnd(there), Flags: 1}
		key := packetCmFlowKey{Src: flowEnd(here), Dst: flowEnd(there), Proto: tcp}
		if err := p.coll.Maps[packetMapCmFlows].Put(&key, &flow); err != nil {
			b.Fatal(err)
		}
		for _, c := range []struct {
			name string
			data []byte
		}{{"miss", tcpPacket(here, "10.2.0.3:80")}, {"established", tcpPacket(here, there)}} {
			b.Run(fmt.Sprintf("services=%d/%s", services, c.name), func(b *testing.B) {
				runs := max(b.N, 1000)
				ret, mean, err := p.coll.Programs["cm_ingress"].Benchmark(c.data, runs, nil)
				if err != nil || int32(ret) != -1 {
					b.Fatalf("the program returned %d, error %v", int32(ret), err)
				}
				b.ReportMetric(float64(mean), "ns/packet")
			})
		}
	}
}
