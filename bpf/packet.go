package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
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

	// clsact attaches as on Linux before 6.6, blind translates as before 6.2.
	clsact, blind bool
	// plainFlows keeps flows in a plain hash, to measure what the other costs.
	plainFlows bool
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
	// XDP says whether packets in the middle of connections that only pass this node
	// are translated before the stack sees them. Where that cannot be, they are
	// translated as others are, and a warning says so.
	XDP XDPMode
}

// XDPMode is how a program is put before the stack.
type XDPMode string

// XDPDriver asks the device's driver to run the program and takes no for an answer.
// XDPGeneric runs it in the kernel's stead of the driver, which gains nothing: it is
// for trying out, with devices that have no checksums left to be computed.
const (
	XDPOff     XDPMode = ""
	XDPDriver  XDPMode = "driver"
	XDPGeneric XDPMode = "generic"
)

// Packet is the per-packet side of the data path, on the maps of a [Datapath]
// that has been loaded before. Its methods are for one goroutine at a time.
type Packet struct {
	log    *slog.Logger
	dir    string
	coll   *ebpf.Collection
	links  map[string]link.Link        // by pin
	clsact bool                        // the kernel has no TCX
	modes  map[int]link.XDPAttachFlags // of the devices that this process gave XDP
	// counted is when [Packet.TellUsage] counted last, by the monotonic clock.
	counted time.Duration
}

// LoadPacket loads the per-packet programs on the pinned maps and attaches
// nothing. Devices that a former life attached go on with its programs until
// [Packet.Attach] replaces them.
func LoadPacket(opts PacketOptions) (*Packet, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	p := &Packet{log: opts.Log, dir: filepath.Clean(opts.PinDir), links: map[string]link.Link{}, clsact: opts.clsact, modes: map[int]link.XDPAttachFlags{}}
	spec, err := loadPacket()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	if err := errors.Join(p.checkLayout(), p.size(spec, opts), suit(spec, opts)); err != nil {
		return nil, err
	}
	trusted := p.canTrustSeen()
	p.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: p.dir}})
	if err != nil {
		return nil, fmt.Errorf("load per-packet programs: %w", err)
	}
	if !trusted {
		err = p.seeAll()
	}
	return p, err
}

// suit makes the programs fit this kernel.
func suit(spec *ebpf.CollectionSpec, opts PacketOptions) error {
	suitXDP(spec)
	kernel, err := btf.LoadKernelSpec()

	has := uint8(0)
	if cast := (*btf.Func)(nil); err == nil && !opts.blind && kernel.TypeByName("bpf_cast_to_kern_ctx", &cast) == nil {
		has = 1
	}
	if err != nil { // nothing can be adapted to a kernel that does not describe itself
		for _, p := range spec.Programs {
			dropRelocations(p.Instructions)
		}
	}
	if err := spec.Variables[packetVarCmCanSeeChecksum].Set(has); err != nil {
		return fmt.Errorf("set program constant: %w", err)
	}
	return nil
}

// dropRelocations leaves instructions as they are compiled, for programs that then
// do not reach those which need adapting.
func dropRelocations(list asm.Instructions) {
	for i := range list {
		if btf.CORERelocationMetadata(&list[i]) != nil {
			list[i].Metadata = asm.Metadata{}
		}
	}
}

// canTrustSeen says whether the filter before the flows, if it is pinned at all, is
// as old as they are.
func (p *Packet) canTrustSeen() bool {
	_, seen := os.Stat(filepath.Join(p.dir, packetMapCmSeen))
	_, flows := os.Stat(filepath.Join(p.dir, packetMapCmFlows))
	return seen == nil || flows != nil
}

// seeAll makes the filter say that there may be a flow for everything.
func (p *Packet) seeAll() error {
	all := make([]byte, p.coll.Maps[packetMapCmSeen].ValueSize())
	for i := range all {
		all[i] = 1
	}
	if err := p.coll.Maps[packetMapCmSeen].Put(uint32(0), all); err != nil {
		return errors.Join(fmt.Errorf("fill the filter before the flows: %w", err), p.Close())
	}
	return nil
}

// size gives every map its size: that of its pin, else the configured one. Only
// the maps of packets may be new.
func (p *Packet) size(spec *ebpf.CollectionSpec, opts PacketOptions) error {
	sizes := map[string]uint32{
		packetMapCmFlows: opts.MaxFlows, packetMapCmFragments: opts.MaxFragments, packetMapCmDevices: opts.MaxDevices, packetMapCmSeen: 1, packetMapCmDrafts: 1,
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
		if opts.plainFlows && name == packetMapCmFlows {
			m.Type = ebpf.Hash
		}
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
