package bpf

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// loadFormer does what the loader of layout version 1 did, before sockets'
// frontends were kept in a map of their own and a hook ran at their release.
// testdata/layout1.o.gz is its object, as it was committed. The datapath that it
// returns can write sets and keys.
func loadFormer(opts Options) (*Datapath, error) {
	opts = opts.withDefaults()
	d := &Datapath{log: opts.Log, dir: opts.PinDir, cgroup: opts.Cgroup, links: map[string]link.Link{}, memo: newMemo()}
	for _, step := range []func(Options) error{preparePinDir, d.takeLock, d.openFormer, d.attachFormer, d.rcu.open, d.settle} {
		if err := step(opts); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

func formerSpec() (*ebpf.CollectionSpec, error) {
	f, err := os.Open("testdata/layout1.o.gz")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	object, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	return ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
}

func (d *Datapath) openFormer(opts Options) error {
	spec, err := formerSpec()
	if err != nil {
		return err
	}
	for name, m := range spec.Maps {
		if isData(name) {
			continue
		}
		m.Pinning = ebpf.PinByName
		if size := mapSizes(opts)[name]; size != 0 {
			if m.MaxEntries, err = d.pinnedSize(name, size); err != nil {
				return err
			}
		}
	}
	if d.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: d.dir}}); err != nil {
		return err
	}
	return errors.Join(d.checkFormer(), open(d, "cm_headers", &d.headers, true), open(d, "cm_slab", &d.slab, false))
}

// checkFormer is version 1's refusal of any other, and its mark on new maps.
func (d *Datapath) checkFormer() error {
	var info clustermeshCmInfo
	if err := d.coll.Maps["cm_info"].Lookup(uint32(0), &info); err != nil {
		return err
	}
	if info.Layout > 1 {
		return fmt.Errorf("%w: %d", ErrLayout, info.Layout)
	}
	info.Layout = 1
	return d.coll.Maps["cm_info"].Put(uint32(0), &info)
}

func (d *Datapath) attachFormer(Options) error {
	id, err := cgroupID(d.cgroup)
	if err != nil {
		return err
	}
	for _, h := range hooks() {
		if d.coll.Programs[h.program()] == nil {
			continue
		}
		if err := d.attachHook(h, id); err != nil {
			return err
		}
	}
	return nil
}

// takeOver begins a life of a version.
func takeOver(version string, opts Options) (*Datapath, error) {
	if version == former {
		return loadFormer(opts)
	}
	return Load(opts)
}

const (
	former  = "former"
	present = "present"
)

// TestDowngradeWaitsForWhatItCannotRead: an agent of layout version 1 refuses
// maps with a header that it would misread, and changes nothing; once a present
// agent has taken the header back and started anew, the older one takes over.
func TestDowngradeWaitsForWhatItCannotRead(t *testing.T) {
	f := newFixture(t)
	b := f.backend("b", "127.0.0.2:0", tcp)
	id := f.service("10.96.0.1:80", tcp, b)
	works := func() {
		f.Helper()
		f.only(f.run(20, "4 tcp", "connect 10.96.0.1:80", "peer", "recv"), "ok; 10.96.0.1:80; b")
	}
	plain := layout.Header(f.dp.headers.all[id])
	f.dp.StoreHeader(id, plain|layout.HeaderSticky)
	f.close()
	before := f.pinned()
	if _, err := loadFormer(f.opts); !errors.Is(err, ErrLayout) {
		t.Fatalf("former version took over: %v", err)
	}
	if after := f.pinned(); !reflect.DeepEqual(before.programs, after.programs) || !reflect.DeepEqual(before.links, after.links) {
		t.Error("the refused start changed programs or links")
	}
	works()
	f.load()
	f.dp.StoreHeader(id, plain)
	f.close()
	f.load() // counts the flags anew
	f.close()
	d, err := loadFormer(f.opts)
	if err != nil {
		t.Fatal(err)
	}
	works()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	f.load()
	works()
}
