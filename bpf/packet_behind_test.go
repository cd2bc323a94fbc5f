package bpf

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// TestBehindXDP sends datagrams over a veth whose far end has an XDP program that
// passes everything, and counts those that a program at TCX behind it finds to begin
// with an Ethernet header: all, for the kinds of programs that are used in each mode.
// The other one, which takes packets in pieces in the kernel's generic mode, is shown
// for comparison: what kernels do there is theirs to change.
func TestBehindXDP(t *testing.T) {
	const sent = 50
	for _, test := range []struct {
		name  string
		mode  link.XDPAttachFlags
		flags uint32
		used  bool
	}{
		{"no XDP", 0, 0, true},
		{"driver, whole packets", link.XDPDriverMode, 0, true},
		{"driver, in pieces", link.XDPDriverMode, xdpFrags, true},
		{"generic, whole packets", link.XDPGenericMode, 0, true},
		{"generic, in pieces", link.XDPGenericMode, xdpFrags, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			at, found := behindXDP(t, test.mode, test.flags, sent)
			t.Logf("of %d datagrams %d are at TCX, %d begin with an Ethernet header there", sent, at, found)
			if test.used && (at != sent || found != sent) {
				t.Errorf("of %d datagrams %d are at TCX, %d begin with an Ethernet header there", sent, at, found)
			}
		})
	}
}

// bodySize makes the datagrams tell themselves from other frames.
const bodySize = 1000

// behindXDP returns how many datagrams the program at TCX got, and how many of them
// began with an Ethernet header. All arrive at the socket that they are for.
func behindXDP(t *testing.T, mode link.XDPAttachFlags, flags uint32, sent int) (at, found uint64) {
	t.Helper()
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer counts.Close()
	near, far := newNS(t), newNS(t)
	inNS(t, near, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(far))}
		return errors.Join(netlink.LinkAdd(veth), dress("eth0", "10.1.0.1/16", "fd00:1::1/64"))
	})
	var server *net.UDPConn
	inNS(t, far, func() error {
		if err := dress("eth0", "10.1.0.2/16", "fd00:1::2/64"); err != nil {
			return err
		}
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if server, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 9}); err != nil {
			return err
		}
		t.Cleanup(func() { _ = server.Close() })
		return errors.Join(countBehind(t, counts, dev.Index), passAll(t, dev.Index, mode, flags))
	})
	inNS(t, near, func() error { return oneByOne(server, sent) })
	for i, to := range []*uint64{&at, &found} {
		if err := counts.Lookup(uint32(i), to); err != nil {
			t.Fatal(err)
		}
	}
	return at, found
}

// oneByOne sends datagrams, each when the one before has arrived.
func oneByOne(server *net.UDPConn, n int) error {
	c, err := net.Dial("udp", "10.1.0.2:9")
	if err != nil {
		return err
	}
	defer c.Close()
	body := make([]byte, bodySize)
	for i := range n {
		if _, err := c.Write(body); err != nil {
			return err
		}
		if err := server.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return err
		}
		if _, _, err := server.ReadFrom(body); err != nil {
			return fmt.Errorf("datagram %d of %d: %w", i+1, n, err)
		}
	}
	return nil
}

// passAll gives a device an XDP program that passes everything on, unless mode is 0.
func passAll(t *testing.T, index int, mode link.XDPAttachFlags, flags uint32) error {
	if mode == 0 {
		return nil
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, Flags: flags, License: "Dual BSD/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachXDP(link.XDPOptions{Interface: index, Program: p, Flags: mode})
	if err == nil {
		t.Cleanup(func() { _ = l.Close() })
	}
	return err
}

// countBehind counts large frames, and those of them with a datagram of IPv4 behind
// an Ethernet header.
func countBehind(t *testing.T, counts *ebpf.Map, index int) error {
	count := func(place int64) asm.Instructions {
		return asm.Instructions{
			asm.StoreImm(asm.RFP, -4, place, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4), asm.LoadMapPtr(asm.R1, counts.FD()), asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"), asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		}
	}
	list := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.LoadMem(asm.R0, asm.R6, 0, asm.Word), asm.JLT.Imm(asm.R0, bodySize, "out")}
	list = append(list, count(0)...)
	list = append(list, asm.LoadAbs(12, asm.Half), asm.JNE.Imm(asm.R0, 0x0800, "out"), asm.LoadAbs(14+9, asm.Byte), asm.JNE.Imm(asm.R0, udp, "out"))
	list = append(list, count(1)...)
	list = append(list, asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: list})
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		t.Cleanup(func() { _ = l.Close() })
	}
	return err
}
