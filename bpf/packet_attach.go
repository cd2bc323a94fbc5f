package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// side is one direction of a device.
type side struct {
	name   string
	attach ebpf.AttachType
}

// sides lists both: what answers before what asks.
func sides() []side {
	return []side{{"egress", ebpf.AttachTCXEgress}, {"ingress", ebpf.AttachTCXIngress}}
}

// Flags of cm_device.
const (
	deviceSNAT = 1
	deviceXDP  = 2
)

// Attach puts the programs in force on a device and pins what keeps them there, in
// one step per direction if the device has ours already. A device that is gone is
// an error that wraps [os.ErrNotExist].
func (p *Packet) Attach(d Device) error {
	dev, err := net.InterfaceByName(d.Name)
	if err != nil {
		return fmt.Errorf("attach to device %q: %w: %w", d.Name, os.ErrNotExist, err)
	}
	if err := p.configure(dev.Index, d, false); err != nil {
		return fmt.Errorf("attach to device %q: %w", d.Name, err)
	}
	suffix := ""
	if len(dev.HardwareAddr) == 0 && dev.Flags&net.FlagLoopback == 0 {
		suffix = "_l3"
	}
	for _, s := range sides() {
		if err := p.attachSide(dev.Index, s, p.coll.Programs["cm_"+s.name+suffix]); err != nil {
			return fmt.Errorf("attach to the %s of device %q: %w", s.name, d.Name, err)
		}
	}
	fast, err := p.settleXDP(dev, d, suffix == "")
	if err == nil && fast {
		err = p.configure(dev.Index, d, true)
	}
	if err != nil {
		return fmt.Errorf("attach to device %q: %w", d.Name, err)
	}
	return nil
}

// configure tells the programs about a device. fast says that it runs the XDP
// program, so that others may send it packets from theirs.
func (p *Packet) configure(index int, d Device, fast bool) error {
	conf := packetCmDevice{}
	if d.SNAT {
		conf.Flags |= deviceSNAT
	}
	if fast {
		conf.Flags |= deviceXDP
	}
	for _, a := range []struct {
		from netip.Addr
		to   *[4]uint32
	}{{d.Addr4, &conf.Addr4}, {d.Addr6, &conf.Addr6}} {
		if a.from.IsValid() {
			*a.to = words(a.from.As16())
		}
	}
	if err := p.coll.Maps[packetMapCmDevices].Put(uint32(index), &conf); err != nil {
		return fmt.Errorf("write its options: %w", err)
	}
	return nil
}

// words are the bytes of an address as the programs read them.
func words(b [16]byte) (w [4]uint32) {
	for i := range w {
		w[i] = uint32(b[4*i]) | uint32(b[4*i+1])<<8 | uint32(b[4*i+2])<<16 | uint32(b[4*i+3])<<24
	}
	return w
}

// attachSide uses TCX, or a filter where the kernel has none.
func (p *Packet) attachSide(index int, s side, prog *ebpf.Program) error {
	if !p.clsact {
		err := p.attachTCX(index, s, prog)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
		p.log.Info("this kernel has no TCX: attaching filters of clsact")
		p.clsact = true
	}
	return p.attachFilter(index, s, prog)
}

func (p *Packet) attachTCX(index int, s side, prog *ebpf.Program) error {
	return p.attachLink(devicePin("tcx", index, s.name), index, prog, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: s.attach, Anchor: link.Head()})
	})
}

// attachLink gives the link of a pin this program, or makes and pins one.
func (p *Packet) attachLink(pin string, index int, prog *ebpf.Program, attach func() (link.Link, error)) error {
	path := filepath.Join(p.dir, pin)
	l, err := p.takeOver(path, index)
	if err != nil {
		return err
	}
	if l != nil {
		if err := l.Update(prog); err != nil {
			return errors.Join(fmt.Errorf("update link: %w", err), l.Close())
		}
	} else {
		if l, err = attach(); err != nil {
			return err
		}
		if err := replacePin(l, path); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	if old := p.links[pin]; old != nil {
		_ = old.Close() // the same link, by another descriptor
	}
	p.links[pin] = l
	return nil
}

// devicePin is the name of the pin that keeps a program on a device: a link, or of a
// filter, which the kernel keeps by itself, the program.
func devicePin(kind string, index int, side string) string {
	prefix := linkPrefix
	if kind == "tc" {
		prefix = programPrefix
	}
	return fmt.Sprintf("%s%s_%d_%s", prefix, kind, index, side)
}

// readDevicePin returns the device and side of a pin of a kind.
func readDevicePin(kind, pin string) (index int, side string, ok bool) {
	format := devicePin(kind, 0, "")
	_, err := fmt.Sscanf(pin, format[:len(format)-2]+"%d_%s", &index, &side)
	return index, side, err == nil && pin == devicePin(kind, index, side)
}

// takeOver opens a pinned link, unless it belonged to a device that is gone.
func (p *Packet) takeOver(path string, index int) (link.Link, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil { // nothing, or nothing of ours
		l, err = p.pinHeld(path)
	}
	if l == nil || err != nil {
		return nil, err
	}
	on, err := deviceOf(l)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read link: %w", err), l.Close())
	}
	if on != index {
		return nil, l.Close()
	}
	return l, nil
}

// deviceOf is the index of the device that a link is attached to, 0 if none.
func deviceOf(l link.Link) (int, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	if tcx := info.TCX(); tcx != nil {
		return int(tcx.Ifindex), nil
	}
	if xdp := info.XDP(); xdp != nil {
		return int(xdp.Ifindex), nil
	}
	return 0, nil
}

// Detach takes the programs off a device, by its index. A device that is gone or
// never had them is no error.
func (p *Packet) Detach(index int) error {
	errs := []error{p.drop(devicePin("xdp", index, "ingress"))}
	for _, s := range []string{"ingress", "egress"} { // what asks before what answers
		errs = append(errs, p.drop(devicePin("tcx", index, s)), p.dropFilter(index, s))
	}
	if err := p.coll.Maps[packetMapCmDevices].Delete(uint32(index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		errs = append(errs, fmt.Errorf("delete the options of device %d: %w", index, err))
	}
	return errors.Join(errs...)
}

// drop gives up a link and its pin.
func (p *Packet) drop(pin string) error {
	var errs []error
	if err := os.Remove(filepath.Join(p.dir, pin)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove pin: %w", err))
	}
	if l := p.links[pin]; l != nil {
		errs = append(errs, l.Close())
		delete(p.links, pin)
	}
	return errors.Join(errs...)
}

// Attached lists the indexes of the devices whose pins, of both directions, are
// there and in force, whether by this process or an earlier one. A device that was
// to have the XDP program and lost it is not among them.
func (p *Packet) Attached() ([]int, error) {
	pins, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	sides, lost := map[int]int{}, map[int]bool{}
	for _, pin := range pins {
		if index, _, ok := readDevicePin("tcx", pin.Name()); ok && p.inForce(pin.Name(), index) {
			sides[index]++
		}
		if index, side, ok := readDevicePin("tc", pin.Name()); ok && p.filterInForce(pin.Name(), index, side) {
			sides[index]++
		}
		if index, _, ok := readDevicePin("xdp", pin.Name()); ok && !p.inForce(pin.Name(), index) {
			lost[index] = true
		}
	}
	var both []int
	for index, n := range sides {
		if n >= 2 && !lost[index] {
			both = append(both, index)
		}
	}
	return both, nil
}

// Forget gives up what is kept of devices that are gone, and returns their number.
func (p *Packet) Forget() (int, error) {
	gone := map[int]bool{}
	var index uint32
	var device packetCmDevice
	for it := p.coll.Maps[packetMapCmDevices].Iterate(); it.Next(&index, &device); {
		gone[int(index)] = true
	}
	pins, err := os.ReadDir(p.dir)
	if err != nil {
		return 0, fmt.Errorf("list pins: %w", err)
	}
	for _, pin := range pins {
		for _, kind := range []string{"tcx", "tc", "xdp"} {
			if index, _, ok := readDevicePin(kind, pin.Name()); ok {
				gone[index] = true
			}
		}
	}
	var errs []error
	n := 0
	for index := range gone {
		if _, err := net.InterfaceByIndex(index); err == nil {
			continue
		}
		n++
		errs = append(errs, p.Detach(index))
	}
	return n, errors.Join(errs...)
}
