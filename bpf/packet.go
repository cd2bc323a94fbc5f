package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -target bpfel -go-package bpf packet packet.bpf.c -- -O2 -g -Wall -Werror  -mcpu=v3 -I. -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// Sizes used for fields of PacketOptions that are 0.
const (
	DefaultMaxFlows     = 262144
	DefaultMaxFragments = 8192
	DefaultMaxDevices   = 1024
)

// limitFlows bounds the sizes of PacketOptions.
const limitFlows = 1 << 24

// PacketOptions say where the maps of the socket programs are pinned and how
// large those of the per-packet programs are; 0 takes the default, and maps that
// are pinned already keep their size.
type PacketOptions struct {
	// PinDir is that of [Options].
	PinDir string
	// MaxFlows bounds the directions of connections that are remembered, two per
	// connection; the longest unused ones go first. MaxFragments bounds the
	// fragmented datagrams under way, MaxDevices the devices with options.
	MaxFlows, MaxFragments, MaxDevices uint32
	// Log receives warnings; nil discards.
	Log *slog.Logger
}

// Device is a network device of this network namespace whose traffic is load
// balanced per packet. Packets to a frontend are translated where they enter by
// the device, replies where they leave by it.
type Device struct {
	Name string
	// SNAT gives connections the addresses below as their source, so that replies
	// come back through this node: needed where clients are outside. Without it
	// only a client that is its own backend is masqueraded.
	SNAT bool
	// Addr4 and Addr6 are addresses of this node; one that is not set leaves
	// sources of its family alone.
	Addr4, Addr6 netip.Addr
}

// Packet is the per-packet side of the data path, on the maps of a [Datapath]
// that has been loaded before. Its methods are for one goroutine at a time.
type Packet struct {
	log   *slog.Logger
	dir   string
	coll  *ebpf.Collection
	links map[string]link.Link // by pin
}

// LoadPacket loads the per-packet programs on the pinned maps and attaches
// nothing. Devices that a former life attached go on with its programs until
// [Packet.Attach] replaces them.
func LoadPacket(opts PacketOptions) (*Packet, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	p := &Packet{log: opts.Log, dir: filepath.Clean(opts.PinDir), links: map[string]link.Link{}}
	spec, err := loadPacket()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	if err := errors.Join(p.size(spec, opts), p.checkLayout()); err != nil {
		return nil, err
	}
	p.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: p.dir}})
	if err != nil {
		return nil, fmt.Errorf("load per-packet programs: %w", err)
	}
	return p, nil
}

// size gives every map its size: that of its pin, else the configured one. Only
// the maps of packets may be new.
func (p *Packet) size(spec *ebpf.CollectionSpec, opts PacketOptions) error {
	sizes := map[string]uint32{
		packetMapCmFlows: opts.MaxFlows, packetMapCmFragments: opts.MaxFragments, packetMapCmDevices: opts.MaxDevices,
	}
	defaults := map[string]uint32{
		packetMapCmFlows: DefaultMaxFlows, packetMapCmFragments: DefaultMaxFragments, packetMapCmDevices: DefaultMaxDevices,
	}
	var errs []error
	for name, m := range spec.Maps {
		if isData(name) {
			continue
		}
		m.Pinning = ebpf.PinByName
		n, own := sizes[name]
		if n == 0 {
			n = defaults[name]
		}
		if n > limitFlows {
			errs = append(errs, fmt.Errorf("size map %s: %d entries; need at most %d", name, n, limitFlows))
		}
		errs = append(errs, p.takeSize(m, name, n, own))
	}
	return errors.Join(errs...)
}

func (p *Packet) takeSize(spec *ebpf.MapSpec, name string, n uint32, own bool) error {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, name), nil)
	if errors.Is(err, os.ErrNotExist) && own {
		spec.MaxEntries = n
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w; the socket programs have to be loaded first", name, err)
	}
	defer pinned.Close()
	spec.MaxEntries = pinned.MaxEntries()
	return nil
}

// Attach puts the programs in force on a device and pins their links, in one
// step per direction if the device has ours already. A device that is gone is an
// error that wraps [os.ErrNotExist].
func (p *Packet) Attach(d Device) error {
	dev, err := net.InterfaceByName(d.Name)
	if err != nil {
		return fmt.Errorf("attach to device %q: %w: %w", d.Name, os.ErrNotExist, err)
	}
	if err := p.configure(dev.Index, d); err != nil {
		return fmt.Errorf("attach to device %q: %w", d.Name, err)
	}
	suffix := ""
	if len(dev.HardwareAddr) == 0 && dev.Flags&net.FlagLoopback == 0 {
		suffix = "_l3"
	}
	for _, side := range []struct {
		name   string
		attach ebpf.AttachType
	}{{"egress", ebpf.AttachTCXEgress}, {"ingress", ebpf.AttachTCXIngress}} { // what answers before what asks
		if err := p.attachSide(dev, side.name, p.coll.Programs["cm_"+side.name+suffix], side.attach); err != nil {
			return fmt.Errorf("attach to the %s of device %q: %w", side.name, d.Name, err)
		}
	}
	return nil
}

func (p *Packet) configure(index int, d Device) error {
	conf := packetCmDevice{}
	if d.SNAT {
		conf.Flags = 1 // CM_DEVICE_SNAT
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

func (p *Packet) attachSide(dev *net.Interface, side string, prog *ebpf.Program, attach ebpf.AttachType) error {
	pin := devicePin(dev.Index, side)
	path := filepath.Join(p.dir, pin)
	l, err := p.takeOver(path, dev.Index)
	if err != nil {
		return err
	}
	if l != nil {
		if err := l.Update(prog); err != nil {
			return errors.Join(fmt.Errorf("update link: %w", err), l.Close())
		}
	} else {
		if l, err = link.AttachTCX(link.TCXOptions{Interface: dev.Index, Program: prog, Attach: attach, Anchor: link.Head()}); err != nil {
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

func devicePin(index int, side string) string {
	return fmt.Sprintf("%stcx_%d_%s", linkPrefix, index, side)
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
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read link: %w", err), l.Close())
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != index {
		return nil, l.Close()
	}
	return l, nil
}

// checkLayout refuses maps of a version that the programs cannot read.
func (p *Packet) checkLayout() error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, packetMapCmInfo), nil)
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", packetMapCmInfo, err)
	}
	defer m.Close()
	return checkInfo(m, p.dir)
}

// Current returns an error when the pinned maps are no longer those that the
// programs were loaded on: a cleanup or another version of the agent made new
// ones.
func (p *Packet) Current() error {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, packetMapCmHeaders), nil)
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", packetMapCmHeaders, err)
	}
	defer pinned.Close()
	if a, b := mapID(pinned), mapID(p.coll.Maps[packetMapCmHeaders]); a != b {
		return fmt.Errorf("look at the pins in %q: the maps were made anew, as number %d instead of %d; start again to load the programs on them", p.dir, a, b)
	}
	return nil
}

// mapID is the kernel's number of a map, 0 if it does not tell.
func mapID(m *ebpf.Map) ebpf.MapID {
	info, err := m.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return id
}

// Detach takes the programs off a device, by its index. A device that is gone or
// never had them is no error.
func (p *Packet) Detach(index int) error {
	var errs []error
	for _, side := range []string{"ingress", "egress"} { // what asks before what answers
		pin := devicePin(index, side)
		if err := os.Remove(filepath.Join(p.dir, pin)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove pin: %w", err))
		}
		if l := p.links[pin]; l != nil {
			errs = append(errs, l.Close())
			delete(p.links, pin)
		}
	}
	if err := p.coll.Maps[packetMapCmDevices].Delete(uint32(index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		errs = append(errs, fmt.Errorf("delete the options of device %d: %w", index, err))
	}
	return errors.Join(errs...)
}

// Attached lists the indexes of the devices whose both links are pinned, by this
// process or an earlier one, and in force.
func (p *Packet) Attached() ([]int, error) {
	pins, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	sides := map[int]int{}
	var both []int
	for _, pin := range pins {
		var index int
		var side string
		if n, _ := fmt.Sscanf(pin.Name(), linkPrefix+"tcx_%d_%s", &index, &side); n != 2 || pin.Name() != devicePin(index, side) {
			continue
		}
		if !p.inForce(pin.Name(), index) {
			continue
		}
		if sides[index]++; sides[index] == 2 {
			both = append(both, index)
		}
	}
	return both, nil
}

// Close closes everything and leaves the pins, so load balancing goes on.
func (p *Packet) Close() error {
	var errs []error
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	p.links = nil
	p.coll.Close()
	return errors.Join(errs...)
}
