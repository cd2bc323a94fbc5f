package main

import (
	"io"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/agent/sockets"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

// socketOptions are the flags of sockets.
type socketOptions struct {
	sockets.Config
	bpffs string
	log   cli.LogFlags
}

func newSockets(stderr io.Writer) *cobra.Command {
	o := &socketOptions{}
	c := cli.Prepare(&cobra.Command{
		Use:   "sockets",
		Short: "End connections to backends that are withdrawn",
		Long: `sockets ends connections that the agent's programs have sent to a backend which is
withdrawn since: its cluster lists it no more, or the whole cluster was given up,
for being out of contact or dead. What becomes of TCP connections, and of UDP
sockets to a cluster that was given up, the service's annotation
clustermesh.io/on-withdraw says: keep, drain or reset. Connected UDP sockets of a
backend that is listed no more are ended in any case, so that their owners connect
anew. Connections that somebody made to a backend directly are not touched.

It runs beside the agent, waits for its maps, and may be stopped at any time. It
ends sockets in the network namespaces of all processes that it can see and in
those that are mounted in --netns-dir. It needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN
and CAP_SYS_ADMIN, and CAP_SYS_PTRACE to see namespaces of other users' processes.`,
		Example: "  clustermesh-agent sockets --bpffs /sys/fs/bpf --netns-dir /run/netns",
		RunE: func(c *cobra.Command, _ []string) error {
			return sockets.Run(c.Context(), o.Config)
		},
	}, func() error { return o.settle(stderr) }, func() error { return o.Validate() })
	f := c.Flags()
	f.StringVar(&o.bpffs, "bpffs", "/sys/fs/bpf", "bpf file system with the agent's pins")
	f.StringSliceVar(&o.NetnsDirs, "netns-dir", []string{"/run/netns"}, "directory in which network namespaces of pods are mounted; may be given several times")
	o.log.Add(f)
	return c
}

// settle turns the flags into the configuration.
func (o *socketOptions) settle(stderr io.Writer) error {
	if o.bpffs != "" {
		o.PinDir = filepath.Join(o.bpffs, "clustermesh")
	}
	log, err := o.log.Logger(stderr)
	o.Log = log
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return err
}
