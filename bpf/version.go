package bpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// LayoutVersion is the newest version of the map layout that this package reads
// and writes. It is CM_LAYOUT of clustermesh.h.
const LayoutVersion = 2

// plainLayout is the version of maps in which no header has flags: an agent that
// knows no flags reads them rightly, so they are passed on to it as its own.
const plainLayout = 1

// ErrLayout says that pinned maps have a layout that this package cannot read.
var ErrLayout = errors.New("pinned maps have another layout version")

// pinInfo checks the layout version of what is pinned, or pins ours. It goes
// before every other map, so no map is ever pinned without a version.
func pinInfo(spec *ebpf.CollectionSpec, dir string) error {
	path := filepath.Join(dir, clustermeshMapCmInfo)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return createInfo(spec, path)
	}
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", clustermeshMapCmInfo, err)
	}
	defer m.Close()
	return checkInfo(m, dir)
}

func createInfo(spec *ebpf.CollectionSpec, path string) error {
	plain := spec.Maps[clustermeshMapCmInfo].Copy()
	plain.Pinning = ebpf.PinNone
	m, err := ebpf.NewMap(plain)
	if err != nil {
		return fmt.Errorf("create version map: %w", err)
	}
	defer m.Close()
	info := clustermeshCmInfo{Layout: plainLayout}
	if err := m.Put(uint32(0), &info); err != nil {
		return fmt.Errorf("write layout version: %w", err)
	}
	if err := m.Pin(path); err != nil {
		return fmt.Errorf("pin version map: %w", err)
	}
	return nil
}

func checkInfo(m *ebpf.Map, dir string) error {
	var info clustermeshCmInfo
	if err := m.Lookup(uint32(0), &info); err != nil {
		return fmt.Errorf("read layout version: %w", err)
	}
	if info.Layout < plainLayout || info.Layout > LayoutVersion {
		return fmt.Errorf("take over pins in %q: %w: found %d, need %d to %d; run the agent version that made them, or drain the node and remove them by the agent's cleanup",
			dir, ErrLayout, info.Layout, plainLayout, LayoutVersion)
	}
	return nil
}

// findVersion says what the pinned maps are now: of version 1 again once the
// last header with flags is gone.
func (d *Datapath) findVersion(Options) error {
	for i := range d.headers.all {
		if layout.Header(atomic.LoadUint64(&d.headers.all[i])).Flags() != 0 {
			d.flagged = true
			return d.storeVersion(LayoutVersion)
		}
	}
	return d.storeVersion(plainLayout)
}

// raiseVersion goes before the first header with flags, which older agents would
// misread: from then on they refuse the pins.
func (d *Datapath) raiseVersion() {
	if d.flagged {
		return
	}
	if err := d.storeVersion(LayoutVersion); err != nil {
		panic(err) // storing into an array that exists cannot fail
	}
	d.flagged = true
}

func (d *Datapath) storeVersion(version uint32) error {
	info := clustermeshCmInfo{Layout: version}
	if err := d.coll.Maps[clustermeshMapCmInfo].Put(uint32(0), &info); err != nil {
		return fmt.Errorf("write layout version: %w", err)
	}
	return nil
}

// prepareSettings gives the node its salt, for as long as the maps exist, ends
// the reports that a former life may have asked for, and has programs look for
// peers of sockets wherever they may be, until findSpilled knows.
func (d *Datapath) prepareSettings(Options) error {
	s := &d.settings.all[0]
	for s.Salt == 0 {
		s.Salt = rand.Uint64()
	}
	atomic.StoreUint32(&s.Sample, 0)
	atomic.StoreUint32(&s.Spilled, 1)
	return nil
}
