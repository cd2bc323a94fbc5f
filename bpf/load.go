package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// Datapath is the kernel side of the agent: the maps and the attached programs.
//
// The methods are for one writer at a time; only WaitRCU and Counters may be
// called from other goroutines meanwhile. No method may be called after Close.
type Datapath struct {
	log    *slog.Logger
	dir    string
	cgroup string
	lock   *os.File
	coll   *ebpf.Collection
	links  map[string]link.Link // by hook; referenced, or the collector would close them
	fresh  []string             // pins of links that this Load made
	memo   memo

	headers  *window[uint64]
	slab     *window[layout.Backend]
	meta     *window[layout.Meta]
	clusters *window[layout.Cluster]
	settings *window[clustermeshCmSettings]
	sweeps   *window[clustermeshCmSweeps]
	usage    *window[clustermeshCmUsage]
	census   census

	flagged    bool        // some header has flags: the layout is of version 2
	monitoring atomic.Bool // a Monitor runs

	rcu rcuWaiter
}

// Load makes the kernel objects, or takes over those that are pinned, attaches
// the programs and returns the datapath. Live entries are not touched. When it
// returns, no program run is under way any more that began before it took over,
// so that every part of the slab that no header names may be written. After a
// failure nothing new is attached.
//
// It fails with ErrBusy if another process has the pin directory, and with
// ErrLayout if the pinned maps need another version of the agent.
func Load(opts Options) (*Datapath, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	d := &Datapath{log: opts.Log, dir: opts.PinDir, links: map[string]link.Link{}, memo: newMemo()}
	if err := d.open(opts); err != nil {
		return nil, errors.Join(err, d.detachFresh(), d.Close())
	}
	return d, nil
}

func (d *Datapath) open(opts Options) error {
	steps := []func(Options) error{
		d.findCgroup, preparePinDir, d.takeLock, d.openObjects, d.mapMemory, d.prepareSettings, d.findVersion, d.rcu.open, d.attach, d.know, d.settle, d.findSpilled,
	}
	for _, step := range steps {
		if err := step(opts); err != nil {
			return err
		}
	}
	return nil
}

// settle waits for program runs that began under the previous owner of the pins.
func (d *Datapath) settle(Options) error { return d.WaitRCU() }

func (d *Datapath) takeLock(opts Options) (err error) {
	d.lock, err = lockPinDir(opts.PinDir)
	return err
}

// openObjects loads the programs on the pinned maps, made first if need be.
func (d *Datapath) openObjects(opts Options) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise memlock limit: %w", err)
	}
	spec, err := d.collectionSpec(opts)
	if err != nil {
		return err
	}
	if err := pinInfo(spec, opts.PinDir); err != nil {
		return err
	}
	d.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: opts.PinDir},
	})
	if err != nil {
		return fmt.Errorf("load maps and programs: %w", err)
	}
	return nil
}

// collectionSpec is the compiled object with the sizes and constants of opts.
func (d *Datapath) collectionSpec(opts Options) (*ebpf.CollectionSpec, error) {
	spec, err := loadClustermesh()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	for name, m := range spec.Maps {
		if !isData(name) {
			m.Pinning = ebpf.PinByName
		}
	}
	for name, size := range mapSizes(opts) {
		if spec.Maps[name].MaxEntries, err = d.pinnedSize(name, size); err != nil {
			return nil, err
		}
	}
	if opts.noExchange || haveExchange() != nil {
		withoutExchange(spec)
	}
	return spec, setConstants(spec, opts)
}

// isData says whether a map is one of the compiler's data sections.
func isData(name string) bool { return name[0] == '.' }

func mapSizes(opts Options) map[string]uint32 {
	return map[string]uint32{
		clustermeshMapCmFrontends: opts.MaxFrontends,
		clustermeshMapCmHeaders:   opts.MaxFrontends,
		clustermeshMapCmMeta:      opts.MaxFrontends,
		clustermeshMapCmSlab:      opts.MaxRecords,
		clustermeshMapCmClusters:  opts.MaxClusters,
		clustermeshMapCmReverse:   opts.MaxRevNAT,
		clustermeshMapCmTcpPeers:  opts.MaxPeers,
		clustermeshMapCmTcpSlots:  opts.slots,

		clustermeshMapCmAffinity:    opts.MaxAffinity,
		clustermeshMapCmClusterHits: opts.MaxClusters,
		clustermeshMapCmEvents:      eventBytes,
	}
}

// pinnedSize is the size of the map pinned under name, or size if there is
// none: running on with the old size is better than not starting.
func (d *Datapath) pinnedSize(name string, size uint32) (uint32, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(d.dir, name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return size, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	defer m.Close()
	if m.MaxEntries() != size {
		d.log.Warn("keep size of pinned map until cleanup", "key", name, "n", m.MaxEntries())
	}
	return m.MaxEntries(), nil
}

// setConstants tells the programs what this kernel can do, how large their maps
// are, and which network namespace is the node's own.
func setConstants(spec *ebpf.CollectionSpec, opts Options) error {
	has := uint8(1)
	if opts.plainRefusal || !haveSetRetval() {
		has = 0
	}
	if err := spec.Variables[clustermeshVarCmCanSetRetval].Set(has); err != nil {
		return fmt.Errorf("set program constant: %w", err)
	}
	mask := spec.Maps[clustermeshMapCmTcpSlots].MaxEntries - 1
	if err := spec.Variables[clustermeshVarCmSlotMask].Set(mask); err != nil {
		return fmt.Errorf("set program constant: %w", err)
	}
	if err := spec.Variables[clustermeshVarCmHostNetns].Set(opts.HostNetns); err != nil {
		return fmt.Errorf("set program constant: %w", err)
	}
	return nil
}

// haveSetRetval says whether programs may choose the error of a refused call.
func haveSetRetval() bool {
	err := features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval)
	return !errors.Is(err, ebpf.ErrNotSupported)
}

// Close unmaps and closes everything and leaves the pins, so load balancing goes
// on. Closing twice is harmless.
func (d *Datapath) Close() error {
	var errs []error
	for _, l := range d.links {
		errs = append(errs, l.Close())
	}
	errs = append(errs, d.unmapMemory(), d.rcu.close())
	if d.coll != nil {
		d.coll.Close()
	}
	if d.lock != nil {
		errs = append(errs, unlock(d.lock))
	}
	d.links, d.coll, d.lock = nil, nil, nil
	return errors.Join(errs...)
}
