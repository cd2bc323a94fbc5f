package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
	// NodeName names this node in status output.
	NodeName string
	// ClustersDir holds one etcd client YAML per cluster; the file name is the
	// cluster name. It is followed live.
	ClustersDir string
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
	// MinBackoff and MaxBackoff bound the pause between two connections.
	MinBackoff, MaxBackoff time.Duration

	// Version is shown in status output.
	Version string
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
	return errors.Join(errs...)
}

// pinDir is where this agent's pins live.
func (c Config) pinDir() string {
	dir := filepath.Join(c.BPFFS, "clustermesh")
	if absolute, err := filepath.Abs(dir); err == nil {
		return absolute
	}
	return dir
}
