package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// tcpPacket is an Ethernet frame from the middle of a TCP connection, with right
// checksums.
func tcpPacket(src, dst string) []byte {
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	l4 := make([]byte, 20)
	binary.BigEndian.PutUint16(l4, from.Port())
	binary.BigEndian.PutUint16(l4[2:], to.Port())
	l4[12], l4[13] = 5<<4, 0x10
	return ipPacket(from.Addr(), to.Addr(), tcp, l4, 16)
}

// ipPacket puts a network header and an Ethernet header before l4, whose checksum is
// at that offset.
func ipPacket(from, to netip.Addr, proto uint8, l4 []byte, checksum int) []byte {
	p := make([]byte, 14)
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(pseudo, 0, proto, byte(len(l4)>>8), byte(len(l4)))
	binary.BigEndian.PutUint16(l4[checksum:], ^sumOf(append(pseudo, l4...)))
	if from.Is4() {
		p[12], p[13] = 8, 0
		ip := make([]byte, 20)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
		copy(ip[12:], from.AsSlice())
		copy(ip[16:], to.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sumOf(ip))
		return append(append(p, ip...), l4...)
	}
	p[12], p[13] = 0x86, 0xdd
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
	copy(ip[8:], from.AsSlice())
	copy(ip[24:], to.AsSlice())
	return append(append(p, ip...), l4...)
}

// sumOf is the sum that checksums are the complement of.
func sumOf(b []byte) uint16 {
	sum := uint32(0)
	for i, x := range b {
		sum += uint32(x) << (8 * (1 - i&1))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func flowEnd(addr string) (e packetCmEndpoint) {
	a := netip.MustParseAddrPort(addr)
	e.Addr = words(a.Addr().As16())
	e.Port = a.Port()>>8 | a.Port()<<8
	return e
}

// digest follows cm_digest.
func digest(addr netip.Addr, salt uint64) uint64 {
	w := words(addr.As16())
	if addr.Is4() {
		return uint64(w[3])
	}
	low, high := uint32(salt), uint32(salt>>32)
	return uint64(w[0]+low)*uint64(w[1]+high) + uint64(w[2]+^high)*uint64(w[3]+(low^high))
}

// keepFlow makes packets from src to dst into packets from newSrc to newDst.
func (f *fixture) keepFlow(p *Packet, src, dst, newSrc, newDst string, flags uint8) {
	f.Helper()
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	salt := f.dp.settings.all[0].Salt
	key := packetCmFlowKey{Src: digest(from.Addr(), salt), Dst: digest(to.Addr(), salt), Proto: tcp}
	if from.Addr().Is6() {
		key.V6 = 1
	}
	flow := packetCmFlow{Src: flowEnd(newSrc), Dst: flowEnd(newDst), Flags: flags}
	a, b := flowEnd(src), flowEnd(dst)
	key.Ports.Src, key.Ports.Dst = a.Port, b.Port
	copy(flow.Was[:4], a.Addr[:])
	copy(flow.Was[4:], b.Addr[:])
	flow.Addresses = grown(addresses(src, dst), addresses(newSrc, newDst))
	flow.All = grown(append(addresses(src, dst), ports(src, dst)...), append(addresses(newSrc, newDst), ports(newSrc, newDst)...))
	if err := p.coll.Maps[packetMapCmFlows].Put(&key, &flow); err != nil {
		f.Fatal(err)
	}
	if err := p.seeAll(); err != nil {
		f.Fatal(err)
	}
}

func addresses(src, dst string) []byte {
	return append(netip.MustParseAddrPort(src).Addr().AsSlice(), netip.MustParseAddrPort(dst).Addr().AsSlice()...)
}

func ports(src, dst string) (b []byte) {
	b = binary.BigEndian.AppendUint16(b, netip.MustParseAddrPort(src).Port())
	return binary.BigEndian.AppendUint16(b, netip.MustParseAddrPort(dst).Port())
}

// grown is what a sum grows by where from becomes to, in the order of this machine.
func grown(from, to []byte) uint16 {
	sum := uint32(^sumOf(from)) + uint32(sumOf(to))
	sum = sum&0xffff + sum>>16
	return uint16(sum>>8 | sum<<8)
}

// ring are the packets of n connections, each of which is made into the next, and the
// last into the first: the kernel's test run gives a program the same packet again
// and again, so every run finds another flow and changes all that can change.
func (f *fixture) ring(p *Packet, family, n int) (first []byte) {
	f.Helper()
	name := func(i int) (src, dst string) {
		i %= n
		if family == 4 {
			return fmt.Sprintf("10.1.%d.%d:%d", i>>8, i&255, 40000+i), fmt.Sprintf("10.2.%d.%d:%d", i>>8, i&255, 80+i)
		}
		return fmt.Sprintf("[fd00:1::%x]:%d", i, 40000+i), fmt.Sprintf("[fd00:2::%x]:%d", i, 80+i)
	}
	for i := range n {
		src, dst := name(i)
		newSrc, newDst := name(i + 1)
		f.keepFlow(p, src, dst, newSrc, newDst, 1) // CM_FLOW_FORWARD
	}
	return tcpPacket(name(0))
}

// BenchmarkPacket is the cost of one packet to the programs, as the kernel's test run
// measures it, at 1,000 services: of traffic that is nobody's, and in the middle of
// one connection and of a thousand.
func BenchmarkPacket(b *testing.B) {
	f := newBench(b, 1000, tcp)
	p, err := LoadPacket(PacketOptions{PinDir: f.opts.PinDir})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Close() })
	measure := func(name, program string, data []byte, want int32) {
		b.Run(name, func(b *testing.B) {
			ret, mean, err := p.coll.Programs[program].Benchmark(data, max(b.N, 100000), nil)
			if err != nil || int32(ret) != want {
				b.Fatalf("the program returned %d, error %v", int32(ret), err)
			}
			b.ReportMetric(float64(mean), "ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
	nobody4, nobody6 := tcpPacket("10.1.0.2:40000", "10.2.0.3:80"), tcpPacket("[fd00:1::2]:40000", "[fd00:2::3]:80")
	measure("nobody's/IPv4/ingress", "cm_ingress", nobody4, -1)
	measure("nobody's/IPv4/egress", "cm_egress", nobody4, -1)
	measure("nobody's/IPv6/ingress", "cm_ingress", nobody6, -1)
	measure("nobody's/IPv6/egress", "cm_egress", nobody6, -1)
	measure("nobody's/IPv4/XDP", "cm_xdp", nobody4, 2)
	for _, flows := range []int{1, 1000} {
		for _, family := range []int{4, 6} {
			measure(fmt.Sprintf("established/IPv%d/connections=%d", family, flows), "cm_ingress", f.ring(p, family, flows), -1)
		}
	}
}

// BenchmarkFlows compares the map of flows, which makes room by itself, with a plain
// hash: a packet in the middle of one of many connections, and keeping a new flow.
func BenchmarkFlows(b *testing.B) {
	for _, kind := range []string{"lru", "plain"} {
		f := newBench(b, 1000, tcp)
		p, err := LoadPacket(PacketOptions{PinDir: f.opts.PinDir, plainFlows: kind == "plain"})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = p.Close() })
		flows := p.coll.Maps[packetMapCmFlows]
		for _, connections := range []int{1, 1_000, 20_000} {
			data := f.ring(p, 4, connections)
			b.Run(fmt.Sprintf("packet/%s/connections=%d", kind, connections), func(b *testing.B) {
				ret, mean, err := p.coll.Programs["cm_ingress"].Benchmark(data, max(b.N, 400_000), nil)
				if err != nil || int32(ret) != -1 {
					b.Fatalf("the program returned %d, error %v", int32(ret), err)
				}
				b.ReportMetric(float64(mean), "ns/packet")
				b.ReportMetric(0, "ns/op")
			})
		}
		b.Run("insert/"+kind, func(b *testing.B) { insertFlows(b, flows, int(flows.MaxEntries())/2) })
		if kind == "lru" {
			fill(b, flows, int(flows.MaxEntries()))
			b.Run("insert/lru/full", func(b *testing.B) { insertFlows(b, flows, int(flows.MaxEntries())/2) })
		}
	}
}

// insertFlows measures inserting n new keys at once, which are taken out after it.
func insertFlows(b *testing.B, m *ebpf.Map, n int) {
	keys, values := make([]packetCmFlowKey, n), make([]packetCmFlow, n)
	round := uint64(0)
	for b.Loop() {
		b.StopTimer()
		round++
		for i := range keys {
			keys[i] = packetCmFlowKey{Src: round<<32 | uint64(i), Dst: 1 << 60, Proto: tcp}
		}
		b.StartTimer()
		if _, err := m.BatchUpdate(keys, values, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		for i := range keys { // of a full map some have made room already
			if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/flow")
	b.ReportMetric(0, "ns/op")
}
