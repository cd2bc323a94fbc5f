package bpf

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// TestRepairDevice: links of a device whose pins were removed, that were
// detached, or whose pins are of something else, show as not attached, and
// attaching puts them right.
func TestRepairDevice(t *testing.T) {
	f := newFixture(t)
	p, err := LoadPacket(PacketOptions{PinDir: f.opts.PinDir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	index := lo.Attrs().Index
	attach := func() {
		t.Helper()
		if err := p.Attach(Device{Name: "lo"}); err != nil {
			t.Fatal(err)
		}
		if got, err := p.Attached(); err != nil || !slices.Equal(got, []int{index}) {
			t.Fatalf("attached are %v, %v", got, err)
		}
	}
	lost := func(how string) {
		t.Helper()
		if got, err := p.Attached(); err != nil || len(got) != 0 {
			t.Errorf("%s: attached are %v, %v", how, got, err)
		}
		attach()
	}
	attach()
	for _, side := range []string{"ingress", "egress"} {
		path := filepath.Join(f.opts.PinDir, devicePin("tcx", index, side))
		before := linkID(t, path)
		f.removePin(filepath.Base(path))
		lost("pin removed")
		if after := linkID(t, path); after != before {
			t.Errorf("link %d became %d", before, after)
		}
		f.removePin(filepath.Base(path))
		if err := foreignObjects(t)[0].Pin(path); err != nil {
			t.Fatal(err)
		}
		lost("foreign pin")
		if after := linkID(t, path); after != before {
			t.Errorf("link %d became %d", before, after)
		}
		if err := detach(path); err != nil {
			t.Fatal(err)
		}
		lost("detached")
	}
	if err := p.Detach(index); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(f.opts.PinDir, "link_tcx*")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func linkID(t *testing.T, path string) link.ID {
	t.Helper()
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}
