package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Before Linux 6.6 there is no TCX, and a program is on a device as a filter of its
// clsact qdisc. The kernel keeps filters by itself; a pin of the program says that
// one is there. Filters of others stay, and so does the qdisc, which may be theirs.

// Where our filters are: before all others, under a number that nobody else takes
// by chance ("cm").
const (
	filterPriority = 1
	filterHandle   = 0x636d
)

func parentOf(side string) uint32 {
	if side == "egress" {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func filterOf(index int, side string) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: parentOf(side), Handle: filterHandle, Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: -1, Name: "clustermesh_" + side, DirectAction: true,
	}
}

// attachFilter makes or replaces the filter of one direction, in one step.
func (p *Packet) attachFilter(index int, s side, prog *ebpf.Program) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the clsact qdisc: %w", err)
	}
	f := filterOf(index, s.name)
	f.Fd = prog.FD()
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("put in the filter: %w; `tc filter show dev %d %s` shows what is there", err, index, s.name)
	}
	own, err := prog.Clone() // the library moves the pin of a program that has one
	if err != nil {
		return fmt.Errorf("pin the filter's program: %w", err)
	}
	return errors.Join(replacePin(own, filepath.Join(p.dir, devicePin("tc", index, s.name))), own.Close())
}

// filterInForce says whether the filter is there with the program of its pin.
func (p *Packet) filterInForce(pin string, index int, side string) bool {
	prog, err := ebpf.LoadPinnedProgram(filepath.Join(p.dir, pin), nil)
	if err != nil {
		return false
	}
	id, err := programID(prog)
	if err := errors.Join(err, prog.Close()); err != nil {
		return false
	}
	f, err := findFilter(index, side)
	return err == nil && f != nil && f.Id == int(id)
}

// findFilter returns our filter, nil if there is none.
func findFilter(index int, side string) (*netlink.BpfFilter, error) {
	dev := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	list, err := netlink.FilterList(dev, parentOf(side))
	if err != nil {
		return nil, fmt.Errorf("list filters of device %d: %w", index, err)
	}
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle == filterHandle && b.Name == filterOf(index, side).Name {
			return b, nil
		}
	}
	return nil, nil
}

// dropFilter takes the filter of one direction out, if there is one, and its pin.
func (p *Packet) dropFilter(index int, side string) error {
	path := filepath.Join(p.dir, devicePin("tc", index, side))
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(deleteFilter(index, side), os.Remove(path))
}

// deleteFilter takes no other's filter out, even if the device is another one now.
func deleteFilter(index int, side string) error {
	f, err := findFilter(index, side)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil // no device, or no qdisc
	}
	if err != nil || f == nil {
		return err
	}
	if err := netlink.FilterDel(filterOf(index, side)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take out the filter of device %d: %w", index, err)
	}
	return nil
}
