package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// completeSum has the kernel sum the test's packet up, as some drivers do, and compare
// that sum with the packet afterwards (BPF_F_TEST_SKB_CHECKSUM_COMPLETE, Linux 6.17).
const completeSum = 1 << 2

// TestPacketBytes compares translated packets, checksums and all, byte by byte with
// what they would be had they been sent so: in place and by calls into the kernel.
func TestPacketBytes(t *testing.T) {
	for _, blind := range []bool{false, true} {
		f := newFixture(t)
		p, err := LoadPacket(PacketOptions{PinDir: f.opts.PinDir, MaxFlows: 1024, blind: blind})
		if err != nil {
			t.Fatalf("%+v", err)
		}
		t.Cleanup(func() { _ = p.Close() })
		for _, pair := range [][2]string{{"10.1.0.2", "10.2.0.3"}, {"fd00:1::2", "fd00:2::3"}} {
			for port := range uint16(300) {
				src := netip.AddrPortFrom(netip.MustParseAddr(pair[0]), 40000+port).String()
				dst := netip.AddrPortFrom(netip.MustParseAddr(pair[1]), 80).String()
				newSrc := netip.AddrPortFrom(netip.MustParseAddr(pair[0]).Prev(), 61000+17*port%4536).String()
				newDst := netip.AddrPortFrom(netip.MustParseAddr(pair[1]).Next(), 8080+3*port).String()
				if port < 3 {
					f.keepFlow(p, src, dst, newSrc, newDst, 1)
				}
				for _, flags := range []uint32{0, completeSum} {
					if blind && flags != 0 && pair[0] != "10.1.0.2" {
						continue // what such a kernel gets wrong by itself
					}
					f.translates(p, src, dst, newSrc, newDst, flags)
				}
				if port == 2 {
					break
				}
			}
		}
	}
}

func (f *fixture) translates(p *Packet, src, dst, newSrc, newDst string, flags uint32) {
	f.Helper()
	got, ret := f.through(p, "cm_ingress", tcpPacket(src, dst), flags)
	if want := tcpPacket(newSrc, newDst); ret != -1 || !bytes.Equal(got, want) {
		f.Errorf("%s to %s, flags %d: returned %d\n got %x\nwant %x", src, dst, flags, ret, got, want)
	}
}

// through is what a program makes of a packet.
func (f *fixture) through(p *Packet, program string, data []byte, flags uint32) ([]byte, int32) {
	f.Helper()
	run := ebpf.RunOptions{Data: data, DataOut: make([]byte, 4096), Flags: flags}
	ret, err := p.coll.Programs[program].Run(&run)
	if err != nil {
		f.Fatal(err)
	}
	return run.DataOut, int32(ret)
}

// skbContext is the beginning of struct __sk_buff, up to what a test may set.
type skbContext struct {
	_       [10]uint32
	Ifindex uint32
	_       [37]uint32
}

// TestTooBigBytes reads the error that a packet becomes which is too big for its way.
func TestTooBigBytes(t *testing.T) {
	w := newPacketWorld(t, true)
	for _, family := range []int{4, 6} {
		frontend, backend := "10.96.0.1:80", backendAddr4+":80"
		client := clientAddr4 + ":40000"
		if family == 6 {
			frontend, backend, client = "[fd00:96::1]:80", "["+backendAddr6+"]:80", "["+clientAddr6+"]:40000"
		}
		w.service(frontend, tcp, record(netip.MustParseAddrPort(backend)))
		setMTU(t, w.node, "toserver", 1300)
		l4 := make([]byte, 20+1400)
		from, to := netip.MustParseAddrPort(client), netip.MustParseAddrPort(frontend)
		binary.BigEndian.PutUint16(l4, from.Port())
		binary.BigEndian.PutUint16(l4[2:], to.Port())
		l4[12], l4[13] = 5<<4, 0x10
		sent := ipPacket(from.Addr(), to.Addr(), tcp, l4, 16)
		inNS(t, w.node, func() error {
			dev, err := net.InterfaceByName(packetDevice)
			if err != nil {
				return err
			}
			run := ebpf.RunOptions{Data: sent, DataOut: make([]byte, 4096), Context: &skbContext{Ifindex: uint32(dev.Index)}}
			ret, err := w.packet.coll.Programs["cm_ingress"].Run(&run)
			if err != nil || ret != 7 { // TC_ACT_REDIRECT
				return fmt.Errorf("returned %d, %w", ret, err)
			}
			return checkTooBig(run.DataOut, sent, 1300)
		})
	}
}

// checkTooBig reads an error about a packet that was sent.
func checkTooBig(got, sent []byte, mtu uint32) error {
	if sent[14]>>4 == 4 {
		ip, icmp := got[14:34], got[34:]
		switch {
		case len(got) != 14+20+8+64:
			return fmt.Errorf("%d bytes", len(got))
		case !bytes.Equal(ip[12:16], sent[30:34]) || !bytes.Equal(ip[16:20], sent[26:30]) || ip[9] != 1:
			return fmt.Errorf("network header %x", ip)
		case sumOf(ip) != 0xffff || sumOf(icmp) != 0xffff:
			return errors.New("wrong checksum")
		case icmp[0] != 3 || icmp[1] != 4 || binary.BigEndian.Uint32(icmp[4:]) != mtu:
			return fmt.Errorf("error %x", icmp[:8])
		case !bytes.Equal(icmp[8:], sent[14:14+64]):
			return fmt.Errorf("quotes %x", icmp[8:])
		}
		return nil
	}
	ip, icmp := got[14:54], got[54:]
	pseudo := append(append([]byte{}, ip[8:40]...), 0, 0, byte(len(icmp)>>8), byte(len(icmp)), 0, 0, 0, 58)
	switch {
	case len(got) != 14+1280:
		return fmt.Errorf("%d bytes", len(got))
	case !bytes.Equal(ip[8:24], sent[38:54]) || !bytes.Equal(ip[24:40], sent[22:38]) || ip[6] != 58:
		return fmt.Errorf("network header %x", ip)
	case sumOf(append(pseudo, icmp...)) != 0xffff:
		return errors.New("wrong checksum")
	case icmp[0] != 2 || icmp[1] != 0 || binary.BigEndian.Uint32(icmp[4:]) != mtu:
		return fmt.Errorf("error %x", icmp[:8])
	case !bytes.Equal(icmp[8:], sent[14:14+1232]):
		return fmt.Errorf("quotes %x", icmp[8:])
	}
	return nil
}
