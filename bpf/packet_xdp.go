package bpf

import (
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// settleXDP puts the XDP program on a device, or takes it off, and says whether it
// is there now. That a device cannot have it is no error. Devices that send without
// an Ethernet header cannot.
func (p *Packet) settleXDP(dev *net.Interface, d Device, ethernet bool) (bool, error) {
	pin := devicePin("xdp", dev.Index, "ingress")
	if d.XDP == XDPOff {
		return false, p.drop(pin)
	}
	if !ethernet {
		p.log.Warn("device has no XDP: it has no Ethernet header", "key", d.Name)
		return false, p.drop(pin)
	}
	flags := link.XDPDriverMode
	if d.XDP == XDPGeneric {
		flags = link.XDPGenericMode
	}
	if p.inForce(pin, dev.Index) && p.modes[dev.Index] != flags { // a link keeps its mode
		if err := p.drop(pin); err != nil {
			return false, err
		}
	}
	prog := p.coll.Programs["cm_xdp"]
	if d.XDP == XDPGeneric {
		prog = p.coll.Programs[genericXDP]
	}
	err := p.attachLink(pin, dev.Index, prog, func() (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Interface: dev.Index, Program: prog, Flags: flags})
	})
	if err != nil {
		p.log.Warn("device goes on without XDP: its driver has none, or another program is there", "key", d.Name, "err", err)
		return false, p.drop(pin)
	}
	p.modes[dev.Index] = flags
	return true, nil
}

// genericXDP is the XDP program for whole packets only. The kernel's generic mode
// makes copies of packets for programs that say they take them in pieces, and to
// what is attached behind these begin with the IP header (TestBehindXDP).
const genericXDP = "cm_xdp_generic"

// xdpFrags is BPF_F_XDP_HAS_FRAGS of linux/bpf.h, of Linux 5.18.
const xdpFrags = 1 << 5

// suitXDP adds the program for whole packets; where the kernel knows no others, it is
// the only one.
func suitXDP(spec *ebpf.CollectionSpec) {
	whole := spec.Programs["cm_xdp"].Copy()
	whole.Name, whole.Flags = genericXDP, whole.Flags&^xdpFrags
	spec.Programs[genericXDP] = whole
	probe, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Flags: xdpFrags, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		spec.Programs["cm_xdp"].Flags &^= xdpFrags
		return
	}
	_ = probe.Close()
}
