package layout_test

import (
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// TestHeaderParts: flags and offset do not touch each other, and a header of
// version 1 is one without flags.
func TestHeaderParts(t *testing.T) {
	for _, flags := range []layout.Header{0, layout.HeaderSticky, layout.HeaderConsistent, layout.HeaderSticky | layout.HeaderConsistent} {
		for _, offset := range []uint32{0, 1, layout.MaxRecords - 1} {
			h := layout.MakeHeader(offset, 65535, 65534) | flags
			if h.Offset() != offset || h.Selected() != 65535 || h.Generation() != 65534 || h.Flags() != flags {
				t.Errorf("offset %d with flags %x became %x", offset, uint64(flags), uint64(h))
			}
		}
	}
	if h := layout.MakeHeader(7, 3, 1); h != 7<<32|3<<16|1 {
		t.Errorf("got %x", uint64(h))
	}
}

func TestRecordsOfARegion(t *testing.T) {
	for r, want := range map[layout.Region]uint64{
		{}:                               1,
		{Total: 5}:                       6,
		{Total: 5, Slots: 1}:             7,
		{Total: 5, Slots: 16}:            7,
		{Total: 5, Slots: 17}:            8,
		{Total: 1<<32 - 1, Slots: 65521}: 1<<32 + 4096,
	} {
		if got := r.Records(); got != want {
			t.Errorf("%+v: got %d, want %d", r, got, want)
		}
	}
}

// TestClientSlotNeverChanges holds values that nodes of all versions agree on.
func TestClientSlotNeverChanges(t *testing.T) {
	for addr, want := range map[string][3]uint32{
		"10.1.2.3":    {18, 73, 4701},
		"192.168.0.1": {113, 461, 29603},
		"fd00:1::2":   {38, 157, 10109},
	} {
		for i, slots := range []uint32{251, 1021, 65521} {
			if got := layout.ClientSlot(netip.MustParseAddr(addr).As16(), slots); got != want[i] {
				t.Errorf("%s of %d: got %d, want %d", addr, slots, got, want[i])
			}
		}
	}
}

// TestClientSlotsAreEven: neighbouring addresses spread.
func TestClientSlotsAreEven(t *testing.T) {
	var counts [16]int
	addr := netip.MustParseAddr("10.0.0.0").As16()
	const clients = 1 << 16
	for i := range clients {
		addr[14], addr[15] = byte(i>>8), byte(i)
		counts[layout.ClientSlot(addr, 16)]++
	}
	for slot, n := range counts {
		if n < clients/16*9/10 || n > clients/16*11/10 {
			t.Errorf("slot %d has %d of %d clients", slot, n, clients)
		}
	}
}
