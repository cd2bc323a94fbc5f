package devices

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/bpf"
)

func TestParseRule(t *testing.T) {
	for text, want := range map[string]Rule{
		"eth0": {Pattern: "eth0"}, "eth0=snat": {Pattern: "eth0", SNAT: true}, "veth*": {Pattern: "veth*"},
	} {
		if got, err := ParseRule(text); err != nil || got != want {
			t.Errorf("%q: got %+v, error %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "=snat", "eth0=nat", "eth0=", "eth[", strings.Repeat("x", 65)} {
		if got, err := ParseRule(text); err == nil || !strings.Contains(err.Error(), "read device") {
			t.Errorf("%q: got %+v, error %v; want one that names it", text, got, err)
		}
	}
}

func TestParseXDP(t *testing.T) {
	for text, want := range map[string]bpf.XDPMode{"off": bpf.XDPOff, "driver": bpf.XDPDriver, "generic": bpf.XDPGeneric} {
		if got, err := ParseXDP(text); err != nil || got != want {
			t.Errorf("%q: got %q, error %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "on", "Driver"} {
		if _, err := ParseXDP(text); err == nil || !strings.Contains(err.Error(), "--xdp") {
			t.Errorf("%q: error %v, want one that names the flag", text, err)
		}
	}
}

func TestChooseTakesTheFirstRule(t *testing.T) {
	have := []device{
		{index: 1, name: "lo", addrs: addrs("127.0.0.1", "::1")},
		{index: 2, name: "eth0", addrs: addrs("192.0.2.7", "192.0.2.3", "fe80::1", "2001:db8::5")},
		{index: 3, name: "veth7"}, {index: 4, name: "vethx"},
	}
	rules := []Rule{{Pattern: "eth0", SNAT: true}, {Pattern: "veth7", SNAT: true}, {Pattern: "veth*"}}
	want := map[int]bpf.Device{
		2: {Name: "eth0", SNAT: true, XDP: bpf.XDPDriver, Addr4: netip.MustParseAddr("192.0.2.3"), Addr6: netip.MustParseAddr("2001:db8::5")},
		3: {Name: "veth7", SNAT: true, XDP: bpf.XDPDriver},
		4: {Name: "vethx"},
	}
	if got := choose(rules, bpf.XDPDriver, have); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func addrs(text ...string) (out []netip.Addr) {
	for _, a := range text {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestStepsNameWhatDiffers(t *testing.T) {
	want := map[int]bpf.Device{1: {Name: "a"}, 2: {Name: "b", SNAT: true}, 3: {Name: "c"}}
	attached := map[int]bpf.Device{1: {Name: "a"}, 2: {Name: "b"}, 9: {Name: "gone"}, 8: {}}
	attach, detach := steps(want, attached)
	if !reflect.DeepEqual(attach, []bpf.Device{{Name: "b", SNAT: true}, {Name: "c"}}) || !slices.Equal(detach, []int{8, 9}) {
		t.Errorf("attach %v, detach %v", attach, detach)
	}
	if attach, detach := steps(want, want); attach != nil || detach != nil {
		t.Errorf("nothing differs, yet attach %v, detach %v", attach, detach)
	}
}

// fakePacket attaches in memory.
type fakePacket struct {
	attached map[int]bool
	calls    int
	fails    error
	stale    error
	told     int // how often what the maps hold was to be told
}

func (f *fakePacket) Attach(d bpf.Device) error {
	f.calls++
	if f.fails != nil {
		return f.fails
	}
	dev, err := net.InterfaceByName(d.Name)
	if err == nil {
		f.attached[dev.Index] = true
	}
	return err
}

func (f *fakePacket) Detach(index int) error { delete(f.attached, index); return f.fails }
func (f *fakePacket) Forget() (int, error)   { return 0, nil }
func (f *fakePacket) Current() error         { return f.stale }
func (f *fakePacket) TellUsage() error       { f.told++; return f.fails }

func (f *fakePacket) Attached() (list []int, err error) {
	for index := range f.attached {
		list = append(list, index)
	}
	return list, nil
}

// TestFollower follows the loopback device, which is always there.
func TestFollower(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	p := &fakePacket{attached: map[int]bool{99999: true}, fails: errors.New("refused")}
	f := follower{rules: []Rule{{Pattern: "l?"}}, log: slog.New(slog.DiscardHandler), packet: p, attached: map[int]bpf.Device{}, failed: map[string]string{}}
	look := func() {
		t.Helper()
		if err := f.look(); err != nil {
			t.Fatal(err)
		}
	}
	look()
	if len(f.failed) != 2 || p.attached[lo.Index] {
		t.Errorf("after refusals: failed %v, attached %v", f.failed, p.attached)
	}
	p.fails = nil
	look()
	if want := map[int]bool{lo.Index: true}; !reflect.DeepEqual(p.attached, want) || len(f.failed) != 0 {
		t.Errorf("attached %v, want %v; failed %v", p.attached, want, f.failed)
	}
	calls := p.calls
	if look(); p.calls != calls {
		t.Error("nothing changed, yet it attached again")
	}
	delete(p.attached, lo.Index) // by somebody else
	if look(); !p.attached[lo.Index] {
		t.Error("the loss of an attachment was not repaired")
	}
	if p.told < 4 {
		t.Errorf("what the maps hold was told %d times", p.told)
	}
	p.stale = errors.New("made anew")
	if err := f.look(); !errors.Is(err, p.stale) {
		t.Errorf("other maps: got %v", err)
	}
}

func TestValidateNamesTheFlags(t *testing.T) {
	err := Config{}.Validate()
	if err == nil || !strings.Contains(err.Error(), "--device") || !strings.Contains(err.Error(), "--bpffs") {
		t.Errorf("got %v", err)
	}
}
