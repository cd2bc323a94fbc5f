package bpf

import (
	"reflect"
	"strings"
	"sync"
	"testing"

	"errors"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

func name40(s string) (b [40]byte) { copy(b[:], s); return b }
func name64(s string) (b [64]byte) { copy(b[:], s); return b }

func TestDumpReturnsWhatWasStored(t *testing.T) {
	f := newFixture(t)
	want := layout.Dump{Clusters: map[uint16]layout.Cluster{
		1:   {State: layout.ClusterUp, Name: name40("east")},
		511: {State: layout.ClusterWithdrawn, Name: name40("west")},
	}}
	for id, c := range want.Clusters {
		f.dp.StoreCluster(id, c)
	}
	for id := uint32(1); id < 40; id++ {
		want.Frontends = append(want.Frontends, f.storeExample(id))
	}
	if got := f.dump(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if err := f.dp.DeleteFrontend(want.Frontends[0].Key); err != nil {
		t.Fatal(err)
	}
	want.Frontends = want.Frontends[1:]
	if got := f.dump(); !reflect.DeepEqual(got, want) {
		t.Errorf("after delete:\ngot  %+v\nwant %+v", got, want)
	}
}

// storeExample writes a frontend that differs from all others in every field.
func (f *fixture) storeExample(id uint32) layout.DumpFrontend {
	f.Helper()
	e := layout.DumpFrontend{
		Key:    layout.FrontendKey{Addr: [16]byte{10: 0xff, 11: 0xff, 15: byte(id)}, Port: [2]byte{0, 80}, Proto: tcp},
		ID:     id,
		Header: layout.MakeHeader(id*50, 2, uint16(id)),
		Meta:   layout.Meta{Namespace: name64("ns"), Name: name64(strings.Repeat("s", int(id))), PortName: name64("http")},
		Region: layout.Region{Total: 3, Frontend: id, Affinity: uint8(id % 3)},
	}
	e.Meta.Key = e.Key
	for i := range 3 {
		e.Backends = append(e.Backends, layout.Backend{
			Addr: [16]byte{15: byte(i)}, Port: [2]byte{1, byte(id)}, Cluster: uint16(id), Frontend: id,
			State: uint8(i), Flags: layout.FlagLocal,
		})
	}
	f.dp.StoreBackends(e.Header.Offset(), e.Region, e.Backends)
	f.dp.StoreMeta(id, e.Meta)
	f.dp.StoreHeader(id, e.Header)
	if err := f.dp.InsertFrontend(e.Key, id); err != nil {
		f.Fatal(err)
	}
	return e
}

// TestDumpDistrustsRegions covers headers that a crash or a fault could leave.
func TestDumpDistrustsRegions(t *testing.T) {
	f := newFixture(t)
	region := layout.Region{Total: 1, Frontend: 1}
	f.dp.StoreBackends(10, region, make([]layout.Backend, 1))
	f.dp.StoreBackends(20, layout.Region{Total: 1, Frontend: 2}, make([]layout.Backend, 1))
	f.dp.StoreBackends(4095, layout.Region{Total: 5, Frontend: 1}, nil)
	if err := f.dp.InsertFrontend(key("10.96.0.1:80", tcp), 1); err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]layout.Header{
		"no region":       0,
		"other frontend":  layout.MakeHeader(20, 1, 0),
		"too few":         layout.MakeHeader(10, 2, 0),
		"past the end":    layout.MakeHeader(4095, 1, 0),
		"outside":         layout.MakeHeader(1<<25, 1, 0),
		"just outside":    layout.MakeHeader(4097, 0, 0),
		"unwritten place": layout.MakeHeader(30, 0, 0),
	} {
		f.dp.StoreHeader(1, h)
		got := f.dump().Frontends[0]
		if got.Header != h || got.Region != (layout.Region{}) || got.Backends != nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	f.dp.StoreHeader(1, layout.MakeHeader(10, 1, 0))
	if got := f.dump().Frontends[0]; got.Region != region || len(got.Backends) != 1 {
		t.Errorf("good region: got %+v", got)
	}
}

func TestInsertFrontend(t *testing.T) {
	f := newFixture(t)
	k := key("10.96.0.1:80", tcp)
	if err := errors.Join(f.dp.InsertFrontend(k, 1), f.dp.InsertFrontend(k, 1)); err != nil {
		t.Errorf("same id twice: %v", err)
	}
	if err := f.dp.InsertFrontend(k, 2); err == nil || !strings.Contains(err.Error(), "belongs to frontend 1") {
		t.Errorf("other id: %v", err)
	}
	if err := errors.Join(f.dp.DeleteFrontend(k), f.dp.DeleteFrontend(k), f.dp.InsertFrontend(k, 2)); err != nil {
		t.Errorf("delete twice, insert anew: %v", err)
	}
}

func TestFullMapSaysSo(t *testing.T) {
	f := newFixture(t)
	for id := range uint32(64) {
		k := layout.FrontendKey{Addr: [16]byte{15: byte(id)}, Proto: tcp}
		if err := f.dp.InsertFrontend(k, id); err != nil {
			t.Fatal(err)
		}
	}
	err := f.dp.InsertFrontend(layout.FrontendKey{Proto: udp}, 1)
	if !errors.Is(err, unix.E2BIG) || !strings.Contains(err.Error(), "raise MaxFrontends") {
		t.Errorf("got %v", err)
	}
}

func TestStoreOutsideThePanics(t *testing.T) {
	f := newFixture(t)
	for name, store := range map[string]func(){
		"offset 0":         func() { f.dp.StoreBackends(0, layout.Region{}, nil) },
		"backends too far": func() { f.dp.StoreBackends(4095, layout.Region{}, make([]layout.Backend, 2)) },
		"header":           func() { f.dp.StoreHeader(64, 0) },
		"meta":             func() { f.dp.StoreMeta(64, layout.Meta{}) },
		"cluster":          func() { f.dp.StoreCluster(512, layout.Cluster{}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			store()
		}()
	}
	f.dp.StoreBackends(4095, layout.Region{}, make([]layout.Backend, 1)) // the last record is usable
}

func TestWaitRCUFromManyGoroutines(t *testing.T) {
	f := newFixture(t)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 3 {
				f.waitRCU()
			}
		})
	}
	group.Wait()
}
