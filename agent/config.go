package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/agent/mesh"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Config is everything an agent needs to know. Paths are absolute or relative
// to the working directory.
type Config struct {
	// ClusterName and ClusterID are those of the cluster this node belongs to.
	ClusterName string
	ClusterID   uint32
	// MaxConnectedClusters is 255 or 511, the same in every cluster of the mesh.
	MaxConnectedClusters uint32
	// NodeName names this node as Kubernetes does: in status output, and to tell
	// which backends are on it.
	NodeName string
	// Zone is where this node is; "" takes it from what the own cluster publishes
	// of the node, its label topology.kubernetes.io/zone.
	Zone string
	// NodePortAddresses are ranges: node ports of services are served at this node's
	// addresses within, as far as its own cluster knows them. None means the
	// internal ones, which Kubernetes calls InternalIP.
	NodePortAddresses []string
	// HostNetns says which network namespace is the node's own, in which
	// node ports are reached by its loopback addresses: "initial", "agent" for that
	// of this process, or the kernel's number (SO_NETNS_COOKIE) of another one. ""
	// means "initial".
	HostNetns string
	// ClustersDir holds one etcd client YAML per cluster; the file name is the
	// cluster name. It is followed live.
	ClustersDir string
	// PeersDir, if set, holds what is accepted of each remote cluster in a file
	// <cluster>.yaml; it is followed live. A cluster without a file is accepted
	// as far as the settings below allow.
	PeersDir string
	// DenyCIDRs are ranges that no remote backend may lie in, such as our service
	// ranges; the ranges of our nodes and pods are known from the own cluster.
	DenyCIDRs []string
	// ProtectedNamespaces never take remote backends; nil means kube-system.
	// Service default/kubernetes never does.
	ProtectedNamespaces []string
	// WithdrawalBrakePercent is the share of its backends that a remote cluster
	// may withdraw at once; what it withdraws beyond that is held in use. 0 means
	// no brake. A peer file may say otherwise.
	WithdrawalBrakePercent int
	// WithdrawalBrakeWindow is how long withdrawals add up, and
	// WithdrawalBrakeHold how long what was withdrawn is held.
	WithdrawalBrakeWindow, WithdrawalBrakeHold time.Duration
	// Cgroup is the cgroup2 directory whose processes are served; "" is the
	// root of the cgroup2 mount, hence every process of the node.
	Cgroup string
	// BPFFS is the bpf file system below which maps, programs and links are
	// pinned.
	BPFFS string
	// StateDir holds the lock that keeps a second agent off the same pins.
	StateDir string
	// HTTP is the listen address of /metrics, /healthz and /readyz; "" for none.
	HTTP string
	// APISocket is the unix socket of the local API.
	APISocket string

	// MaxFrontends and MaxRecords size the eBPF maps; 0 for the defaults.
	MaxFrontends, MaxRecords uint32
	// HeartbeatTimeout is how long a connected cluster may stay without a
	// heartbeat before the connection is taken for dead; exporters write one
	// every minute.
	HeartbeatTimeout time.Duration
	// ClusterShare is the part of all processors that one remote cluster's changes
	// may take for long, ClusterBurst how much processor time they may take before.
	// What is beyond that is read later. 0 means 0.01 and 1 s.
	ClusterShare float64
	ClusterBurst time.Duration
	// Probe has remote clusters' backends probed by TCP connects, so that new
	// connections leave a cluster that answers in no way. ProbeInterval is how
	// often each cluster is judged, and sent one probe; what depends on it is
	// counted in rounds, see package liveness. 0 means 200 ms.
	Probe         bool
	ProbeInterval time.Duration
	// ProbeNodePort, unless 0, has the nodes of remote clusters probed at that TCP
	// port as well. Whether something listens there does not matter.
	ProbeNodePort uint16
	// MinBackoff and MaxBackoff bound the pause between two connections.
	MinBackoff, MaxBackoff time.Duration

	// Version is shown in status output and metrics, Revision, the commit, in metrics.
	Version  string
	Revision string
	// Log receives the agent's log; it must not be nil.
	Log *slog.Logger
	// Registry receives the metrics; nil makes a registry of the agent's own.
	Registry *prometheus.Registry
}

var nodeNamePattern = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?$`)

// withDefaults returns the configuration with zero fields set to their defaults.
func (c Config) withDefaults() Config {
	if c.MaxConnectedClusters == 0 {
		c.MaxConnectedClusters = schema.MaxClusters255
	}
	if c.HeartbeatTimeout == 0 {
		c.HeartbeatTimeout = 150 * time.Second
	}
	if c.MinBackoff == 0 {
		c.MinBackoff = 100 * time.Millisecond
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = 2 * time.Second
	}
	if c.ClusterShare == 0 {
		c.ClusterShare = 0.01
	}
	if c.ClusterBurst == 0 {
		c.ClusterBurst = time.Second // a list of tens of thousands of services takes less
	}
	if c.ProbeInterval == 0 {
		c.ProbeInterval = 200 * time.Millisecond
	}
	if c.WithdrawalBrakeWindow == 0 {
		c.WithdrawalBrakeWindow = 10 * time.Second
	}
	if c.WithdrawalBrakeHold == 0 {
		c.WithdrawalBrakeHold = 10 * time.Minute
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	return c
}

// Validate reports every problem of the configuration at once, each naming
// the flag that sets the field.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	if err := schema.ValidateClusterName(c.ClusterName); err != nil {
		errs = append(errs, fmt.Errorf("--cluster-name %q: %w", c.ClusterName, err))
	}
	if m := c.MaxConnectedClusters; m != schema.MaxClusters255 && m != schema.MaxClusters511 {
		errs = append(errs, fmt.Errorf("--max-connected-clusters %d: only 255 and 511 are possible; use the same value in every cluster", m))
	} else if err := schema.ValidateClusterID(c.ClusterID, m); err != nil {
		errs = append(errs, fmt.Errorf("--cluster-id %d: %w", c.ClusterID, err))
	}
	if !nodeNamePattern.MatchString(c.NodeName) {
		errs = append(errs, fmt.Errorf("--node-name %q: not a node name; give the Kubernetes node's name", c.NodeName))
	}
	if c.Zone != "" && !nodeNamePattern.MatchString(c.Zone) {
		errs = append(errs, fmt.Errorf("--zone %q: not the name of a zone; give the value of the node's label %s", c.Zone, zoneLabel))
	}
	for _, p := range []struct{ flag, value, remedy string }{
		{"--clusters", c.ClustersDir, "give the directory with one etcd client YAML per cluster"},
		{"--bpffs", c.BPFFS, "give a directory on a bpf file system, such as /sys/fs/bpf"},
		{"--state-dir", c.StateDir, "give a directory that only root may write, such as /var/run/clustermesh"},
		{"--api-socket", c.APISocket, "give a path for the local API's unix socket"},
	} {
		if p.value == "" {
			errs = append(errs, fmt.Errorf("%s: not set; %s", p.flag, p.remedy))
		}
	}
	if len(c.APISocket) > 107 {
		errs = append(errs, fmt.Errorf("--api-socket %q: longer than the 107 bytes a unix socket path may have; choose a shorter path", c.APISocket))
	}
	_, err := c.denied()
	_, ranges := c.nodePortRanges()
	_, netns := c.parseHostNetns()
	return errors.Join(append(errs, err, ranges, netns, c.validateBrake(), c.validateProtected(), c.validateProbing(), c.validateFlow())...)
}

var namespacePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`) // RFC 1123, as Kubernetes wants it

// validateProtected wants names of namespaces: what is none would protect none.
func (c Config) validateProtected() error {
	var errs []error
	for _, n := range c.ProtectedNamespaces {
		if !namespacePattern.MatchString(n) {
			errs = append(errs, fmt.Errorf("--protected-namespaces %q: not the name of a namespace; separate names by commas alone", n))
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateFlow() error {
	if c.ClusterShare < 0 || c.ClusterShare > 1 || c.ClusterBurst < 0 {
		return fmt.Errorf("ClusterShare %g, ClusterBurst %s: the share is of all processors, from 0 to 1, and neither may be negative", c.ClusterShare, c.ClusterBurst)
	}
	return nil
}

func (c Config) validateProbing() error {
	if c.ProbeInterval < 10*time.Millisecond || c.ProbeInterval > time.Minute {
		return fmt.Errorf("--probe-interval %s: must be from 10ms to 1m; turn probing off by --probe=false", c.ProbeInterval)
	}
	if c.ProbeNodePort != 0 && !c.Probe {
		return fmt.Errorf("--probe-node-port %d: nothing is probed with --probe=false; leave one of the two out", c.ProbeNodePort)
	}
	return nil
}

func (c Config) validateBrake() error {
	var errs []error
	if err := mesh.ValidateBrake(c.WithdrawalBrakePercent); err != nil {
		errs = append(errs, fmt.Errorf("--withdrawal-brake-percent: %w", err))
	}
	if c.WithdrawalBrakeWindow < 0 || c.WithdrawalBrakeHold < 0 {
		errs = append(errs, fmt.Errorf("--withdrawal-brake-window %s, --withdrawal-brake-hold %s: must not be negative", c.WithdrawalBrakeWindow, c.WithdrawalBrakeHold))
	}
	return errors.Join(errs...)
}

// denied parses DenyCIDRs.
func (c Config) denied() ([]netip.Prefix, error) { return parseRanges("--deny-cidr", c.DenyCIDRs) }

// parseRanges parses the values of a flag; a single address stands for itself.
func parseRanges(flag string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	var errs []error
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if a, addr := netip.ParseAddr(text); addr == nil {
			p, err = netip.PrefixFrom(a.WithZone(""), a.BitLen()), nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %q: not a range; write it like 10.96.0.0/12", flag, text))
			continue
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// meshConfig is what the mesh needs to know; the configuration is valid.
func (c Config) meshConfig() mesh.Config {
	deny, _ := c.denied()
	return mesh.Config{
		LocalCluster: c.ClusterName, LocalID: c.ClusterID, MaxClusters: c.MaxConnectedClusters, Node: c.NodeName,
		Deny: deny, ProtectedNamespaces: c.ProtectedNamespaces, Brake: c.WithdrawalBrakePercent,
	}
}

// pinDir is where this agent's pins live.
func (c Config) pinDir() string {
	dir := filepath.Join(c.BPFFS, "clustermesh")
	if absolute, err := filepath.Abs(dir); err == nil {
		return absolute
	}
	return dir
}
