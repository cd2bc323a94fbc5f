package main

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/agent/devices"
	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// deviceOptions are the flags of devices.
type deviceOptions struct {
	devices.Config
	bpffs string
	rules []string
	xdp   string
	log   cli.LogFlags
}

func newDevices(stderr io.Writer) *cobra.Command {
	o := &deviceOptions{}
	c := cli.Prepare(&cobra.Command{
		Use:   "devices",
		Short: "Keep the per-packet programs attached to network devices",
		Long: `devices attaches the per-packet programs to network devices, for traffic that
passes no socket of this node's processes: clients outside, sandboxed pods. It
runs beside the agent, waits for its maps, and follows devices as they come and
go. Stopping it changes nothing; the agent's cleanup detaches everything.

A device by which clients outside come in needs =snat, so that replies return by
this node; every device by which such replies arrive has to be named too.

The programs are attached at TCX, and before Linux 6.6 as filters of a clsact
qdisc. With --xdp=driver, devices with =snat also translate packets in the middle
of connections that only pass this node before the stack sees them; a device whose
driver has no XDP goes on without. Both devices of such a path need =snat. TCP and
UDP are served with fragments, ICMP errors and the way's MTU; SCTP where its ports
stay the same, because its checksum cannot be mended per packet.`,
		Example: "  clustermesh-agent devices --bpffs /sys/fs/bpf --device eth0=snat --device 'veth*'",
		RunE: func(c *cobra.Command, _ []string) error {
			return devices.Run(c.Context(), o.Config)
		},
	}, func() error { return o.settle(stderr) }, func() error { return o.Validate() })
	f := c.Flags()
	f.StringVar(&o.bpffs, "bpffs", "/sys/fs/bpf", "bpf file system with the agent's pins")
	f.StringSliceVar(&o.rules, "device", nil, "name or pattern of devices, with =snat where clients are outside; may be given several times, the first match decides")
	f.StringVar(&o.xdp, "xdp", "off", "XDP on devices with =snat: off, driver, or generic, which is only for trying it out")
	f.Uint32Var(&o.MaxFlows, "max-flows", bpf.DefaultMaxFlows, "remembered directions of connections, two per connection; takes effect when the map is created")
	o.log.Add(f)
	return c
}

// settle turns the flags into the configuration.
func (o *deviceOptions) settle(stderr io.Writer) error {
	var errs []error
	for _, text := range o.rules {
		rule, err := devices.ParseRule(text)
		errs = append(errs, err)
		o.Rules = append(o.Rules, rule)
	}
	xdp, err := devices.ParseXDP(o.xdp)
	errs = append(errs, err)
	o.XDP = xdp
	if o.bpffs != "" {
		o.PinDir = filepath.Join(o.bpffs, "clustermesh")
	}
	log, err := o.log.Logger(stderr)
	errs = append(errs, err)
	o.Log = log
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return errors.Join(errs...)
}
