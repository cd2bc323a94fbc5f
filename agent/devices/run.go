package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf"
)

// Config says where the maps are pinned and which devices carry the programs.
type Config struct {
	// PinDir is the agent's pin directory.
	PinDir string
	// Rules name the devices; the first that matches decides.
	Rules []Rule
	// MaxFlows bounds the remembered directions of connections, two per
	// connection; 0 takes the default.
	MaxFlows uint32
	// XDP says how devices by which clients outside come in run the XDP program.
	XDP bpf.XDPMode
	// Log receives what is attached and what cannot be.
	Log *slog.Logger
}

// Validate reports every problem of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if len(c.Rules) == 0 {
		errs = append(errs, errors.New("--device: none given; name at least one, for example --device eth0=snat"))
	}
	if c.PinDir == "" {
		errs = append(errs, errors.New("--bpffs: not set; give the agent's"))
	}
	return errors.Join(errs...)
}

// pause is how long a change that the kernel did not announce may go unseen, and
// how long a device that refused the programs waits for the next try.
const pause = 5 * time.Second

// Run waits for the agent's maps, attaches the programs to the devices and
// follows them until ctx ends. It leaves everything attached. It returns an
// error when the agent's maps are replaced by others: the programs have to be
// loaded anew.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	events := make(chan struct{}, 1)
	if err := announce(ctx, events); err != nil {
		return fmt.Errorf("follow the network devices: %w", err)
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	p, err := bpf.Await(ctx, c.Log, tick.C, func() (*bpf.Packet, error) {
		return bpf.LoadPacket(bpf.PacketOptions{PinDir: c.PinDir, MaxFlows: c.MaxFlows, Log: c.Log})
	})
	if err != nil || p == nil {
		return err
	}
	f := follower{rules: c.Rules, xdp: c.XDP, log: c.Log, packet: p, attached: map[int]bpf.Device{}, failed: map[string]string{}}
	for {
		if err := f.look(); err != nil {
			return errors.Join(err, p.Close())
		}
		select {
		case <-ctx.Done():
			return p.Close()
		case <-events:
		case <-tick.C:
		}
	}
}

// announce reports changes of devices and addresses, several as one.
func announce(ctx context.Context, events chan<- struct{}) error {
	links, addrs := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate)
	if err := netlink.LinkSubscribe(links, ctx.Done()); err != nil {
		return err
	}
	if err := netlink.AddrSubscribe(addrs, ctx.Done()); err != nil {
		return err
	}
	go func() {
		for links != nil || addrs != nil {
			select {
			case _, ok := <-links:
				if !ok {
					links = nil
				}
			case _, ok := <-addrs:
				if !ok {
					addrs = nil
				}
			}
			select {
			case events <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}

// packet is what a follower needs of [bpf.Packet].
type packet interface {
	Attach(bpf.Device) error
	Detach(index int) error
	Attached() (indexes []int, err error)
	Forget() (n int, err error)
	Current() error
	TellUsage() error
}

// follower knows what it attached.
type follower struct {
	rules    []Rule
	xdp      bpf.XDPMode
	log      *slog.Logger
	packet   packet
	attached map[int]bpf.Device
	failed   map[string]string // the error that was logged last, by device
}

// look makes the attachments what the devices and rules demand.
func (f *follower) look() error {
	if err := f.packet.Current(); err != nil {
		return err
	}
	have, err := list()
	if err != nil {
		return fmt.Errorf("list the network devices: %w", err)
	}
	if _, err := f.packet.Forget(); err != nil {
		f.log.Warn("leave devices that are gone", "err", err)
	}
	if err := f.packet.TellUsage(); err != nil {
		f.log.Warn("count what the maps hold", "err", err)
	}
	if err := f.recall(); err != nil {
		return err
	}
	attach, detach := steps(choose(f.rules, f.xdp, have), f.attached)
	failed := map[string]string{}
	for _, d := range attach {
		if err := f.attach(d, have); err != nil {
			failed[d.Name] = err.Error()
		}
	}
	for _, index := range detach {
		if err := f.packet.Detach(index); err != nil {
			failed[f.attached[index].Name] = err.Error()
			continue
		}
		f.log.Info("left device", "key", f.attached[index].Name, "n", index)
		delete(f.attached, index)
	}
	f.report(failed)
	return nil
}

// recall adds what a former life attached, and forgets what somebody detached,
// so that the next steps put it right.
func (f *follower) recall() error {
	indexes, err := f.packet.Attached()
	if err != nil {
		return err
	}
	for _, index := range indexes {
		if _, ok := f.attached[index]; !ok {
			f.attached[index] = bpf.Device{}
		}
	}
	maps.DeleteFunc(f.attached, func(index int, _ bpf.Device) bool { return !slices.Contains(indexes, index) })
	return nil
}

func (f *follower) attach(d bpf.Device, have []device) error {
	if err := f.packet.Attach(d); err != nil {
		return err
	}
	i := slices.IndexFunc(have, func(h device) bool { return h.name == d.Name })
	f.attached[have[i].index] = d
	f.log.Info("balancing packets of device", "key", d.Name, "n", have[i].index)
	return nil
}

// report logs each error once, however often it is met.
func (f *follower) report(failed map[string]string) {
	for name, err := range failed {
		if f.failed[name] != err {
			f.log.Warn("device is not served", "key", name, "err", err)
		}
	}
	f.failed = failed
}

// list returns the devices of this network namespace with their addresses.
func list() ([]device, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	out := make([]device, 0, len(links))
	for _, l := range links {
		d := device{index: l.Attrs().Index, name: l.Attrs().Name}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, unix.ENODEV) { // gone meanwhile
			return nil, err
		}
		for _, a := range addrs {
			if parsed, ok := netip.AddrFromSlice(a.IP); ok {
				d.addrs = append(d.addrs, parsed.Unmap())
			}
		}
		out = append(out, d)
	}
	return out, nil
}
