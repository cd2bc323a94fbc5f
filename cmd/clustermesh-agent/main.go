// Command clustermesh-agent keeps a node's eBPF load-balancing maps equal to
// what all clusters of the mesh say.
//
// Exit codes: 0 ended when told to, 1 failed, 2 used wrongly.
package main

import (
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/clustermesh/clustermesh/agent"
	"github.com/clustermesh/clustermesh/bpf"
	"github.com/clustermesh/clustermesh/cmd/internal/cli"
)

func main() {
	if os.Getenv("GOGC") == "" {
		// The agent shares its node with the workloads: memory is dearer than the
		// few milliseconds a day that collecting earlier costs.
		debug.SetGCPercent(50)
	}
	os.Exit(cli.Main(newCommand(os.Stdout, os.Stderr), os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags of the agent and its sub-commands.
type options struct {
	agent.Config
	log cli.LogFlags
}

func newCommand(stdout, stderr io.Writer) *cobra.Command {
	o := &options{}
	c := cli.Prepare(&cobra.Command{
		Use:   "clustermesh-agent",
		Short: "Keep this node's load-balancing maps equal to what all clusters say",
		Long: `clustermesh-agent follows every cluster that has a file in --clusters, its own
included, and keeps the merged backends of global services in eBPF maps, so that
a connection to an ordinary ClusterIP reaches healthy backends of all of them.

Programs, links and maps are pinned: stopping the agent changes nothing. It needs
CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON to start, and drops all its capabilities
before it reads anything of a cluster.

Without a command it runs until it is told to end. Every flag is also an
environment variable (--node-name is CLUSTERMESH_NODE_NAME) and a member of the
--config file. GOGC, Go's own variable, is 50 unless it is set: the agent shares
its node with the workloads.`,
		Example: `  clustermesh-agent --cluster-name west --cluster-id 2 --node-name n1 \
    --clusters /etc/clustermesh/clusters --bpffs /sys/fs/bpf \
    --state-dir /var/run/clustermesh --http 127.0.0.1:9964 \
    --api-socket /var/run/clustermesh/agent.sock
  clustermesh-agent --config /etc/clustermesh/agent.yaml --node-name n1`,
		Version: cli.ThisBuild().String(),
		RunE: func(c *cobra.Command, _ []string) error {
			o.Version, o.Revision = cli.ThisBuild().Version, cli.ThisBuild().Commit
			return agent.Run(c.Context(), o.Config)
		},
	}, o.setLog(stderr), func() error { return o.Validate() })
	o.addRunFlags(c.Flags())
	c.AddCommand(newCleanup(stderr), newCheck(stdout), newDevices(stderr), newSockets(stderr))
	return cli.Completed(c)
}

func (o *options) addRunFlags(f *pflag.FlagSet) {
	cli.Group(f, "This node and its cluster", o.addNodeFlags)
	cli.Group(f, "Other clusters", o.addAdmissionFlags)
	cli.Group(f, "Withdrawals", o.addBrakeFlags)
	cli.Group(f, "Probes", o.addProbeFlags)
	cli.Group(f, "Maps and pins", func(f *pflag.FlagSet) {
		o.addPlaceFlags(f)
		f.Uint32Var(&o.MaxFrontends, "max-frontends", bpf.DefaultMaxFrontends, "frontends the maps can hold; takes effect when they are created")
		f.Uint32Var(&o.MaxRecords, "max-records", bpf.DefaultMaxRecords, "backend records the maps can hold; takes effect when they are created")
	})
	cli.Group(f, "Served", func(f *pflag.FlagSet) {
		f.StringVar(&o.HTTP, "http", "127.0.0.1:9964", "address of /metrics, /healthz and /readyz; empty for none")
		f.StringVar(&o.APISocket, "api-socket", "/var/run/clustermesh/agent.sock", "unix socket of the local API, for clustermesh status and others")
	})
	o.log.Add(f)
}

// addNodeFlags adds the flags that say where the agent is.
func (o *options) addNodeFlags(f *pflag.FlagSet) {
	f.StringVar(&o.ClusterName, "cluster-name", "", "name of this cluster in the mesh (required)")
	f.Uint32Var(&o.ClusterID, "cluster-id", 0, "id of this cluster, unique in the mesh: 1 to --max-connected-clusters (required)")
	f.Uint32Var(&o.MaxConnectedClusters, "max-connected-clusters", 255, "255 or 511, the same in every cluster of the mesh")
	f.StringVar(&o.NodeName, "node-name", "", "name of this node in Kubernetes (required)")
	f.StringVar(&o.Zone, "zone", "", "zone of this node, for services that prefer near backends; empty for the label topology.kubernetes.io/zone of the node")
	f.StringSliceVar(&o.NodePortAddresses, "node-port-addresses", nil, "range of this node's addresses at which node ports of global services are served; may be repeated; none for the node's internal addresses (InternalIP)")
	f.StringVar(&o.HostNetns, "host-netns", "initial", "network namespace that is the node's own, in which node ports are reached by 127.0.0.1 and ::1: initial, agent (this process's), or a cookie (SO_NETNS_COOKIE)")
}

// addAdmissionFlags adds the flags that say which clusters there are and what
// the remote ones may not do.
func (o *options) addAdmissionFlags(f *pflag.FlagSet) {
	f.StringVar(&o.ClustersDir, "clusters", "", "directory with one etcd client YAML per cluster, this one included, named like the cluster; followed live (required)")
	f.StringVar(&o.PeersDir, "peers", "", "directory with what is accepted of each remote cluster, in a file CLUSTER.yaml; empty for none")
	f.StringSliceVar(&o.DenyCIDRs, "deny-cidr", nil, "range in which no remote backend may lie, such as this cluster's service range; may be repeated. The ranges of its nodes and pods are known")
	f.StringSliceVar(&o.ProtectedNamespaces, "protected-namespaces", []string{"kube-system"}, "namespace whose services never take remote backends; may be repeated. default/kubernetes never does")
}

// addBrakeFlags adds the flags of what holds mass withdrawals.
func (o *options) addBrakeFlags(f *pflag.FlagSet) {
	f.IntVar(&o.WithdrawalBrakePercent, "withdrawal-brake-percent", 0, "percentage of its backends that a remote cluster may withdraw at once, beyond which they are held in use; 0 for no brake")
	f.DurationVar(&o.WithdrawalBrakeWindow, "withdrawal-brake-window", 10*time.Second, "time within which withdrawals count as one")
	f.DurationVar(&o.WithdrawalBrakeHold, "withdrawal-brake-hold", 10*time.Minute, "time for which withdrawn backends are held, unless they come back or clustermesh release lets go of them")
}

// addProbeFlags adds the flags of what finds dead clusters.
func (o *options) addProbeFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.Probe, "probe", true, "probe remote backends by TCP connects, so that new connections leave a cluster that answers in no way")
	f.DurationVar(&o.ProbeInterval, "probe-interval", 200*time.Millisecond, "time between two probes of a remote cluster; a dead one is left after 8 to 9 of them")
	f.Uint16Var(&o.ProbeNodePort, "probe-node-port", 0, "TCP port of the nodes of remote clusters that is probed as well, such as 10250; a refusal is an answer too; 0 for none")
}

// addPlaceFlags adds the flags that say where the kernel objects are.
func (o *options) addPlaceFlags(f *pflag.FlagSet) {
	f.StringVar(&o.Cgroup, "cgroup", "", "cgroup2 directory whose processes are served; empty for the whole node")
	f.StringVar(&o.BPFFS, "bpffs", "/sys/fs/bpf", "bpf file system with the agent's pins")
	f.StringVar(&o.StateDir, "state-dir", "/var/run/clustermesh", "directory for the lock that keeps a second agent off the same pins, and for what is remembered over restarts")
}

// setLog makes the logger once the flags are settled.
func (o *options) setLog(stderr io.Writer) func() error {
	return func() (err error) {
		o.Log, err = o.log.Logger(stderr)
		return err
	}
}

func newCleanup(stderr io.Writer) *cobra.Command {
	o := &options{}
	c := cli.Prepare(&cobra.Command{
		Use:   "cleanup",
		Short: "Detach the programs and remove every pin, program and map",
		Long: `cleanup takes the product off this node: it detaches the programs and removes every
pin, program and map, those of devices too. Traffic goes on without the mesh. It
may be repeated, and refuses while an agent runs on the same --state-dir.`,
		Example: "  clustermesh-agent cleanup --bpffs /sys/fs/bpf --state-dir /var/run/clustermesh",
		RunE: func(*cobra.Command, []string) error {
			return agent.Cleanup(o.Config)
		},
	}, o.setLog(stderr))
	o.addPlaceFlags(c.Flags())
	o.log.Add(c.Flags())
	return c
}
