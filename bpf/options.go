package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// Sizes used for fields of Options that are 0.
const (
	DefaultMaxFrontends = 16384
	DefaultMaxRecords   = 262144
	DefaultMaxClusters  = 512
	DefaultMaxRevNAT    = 65536
	DefaultMaxPeers     = 131072
	DefaultMaxAffinity  = 65536
)

// defaultSlots are as many as fit into a processor's own cache: 1 MiB. More of them
// would not be found there.
const defaultSlots = 16384

// Upper bounds of the sizes. The slab's is 2 GiB of records.
const (
	limitFrontends = 1 << 20
	limitRecords   = layout.MaxRecords
	limitClusters  = 1 << 16
	limitRevNAT    = 1 << 22
	limitPeers     = 1 << 22
	limitAffinity  = 1 << 22
)

// Options say where the kernel objects live and how large the maps are. Sizes
// count map entries and take effect when the maps are created; maps that are
// pinned already keep theirs until Cleanup.
type Options struct {
	// PinDir is the directory for the pins, inside a bpffs, for example
	// /sys/fs/bpf/clustermesh. It is created with mode 0700.
	PinDir string
	// MountBPFFS mounts a bpffs on PinDir's parent directory if PinDir is not
	// on one. Nothing unmounts it.
	MountBPFFS bool
	// Cgroup is the cgroup2 directory whose processes get load balancing; empty
	// means the root of the cgroup2 mount, which is every process of the node.
	Cgroup string
	// MaxFrontends bounds the frontends, MaxRecords the slab's 32-byte records,
	// MaxClusters the cluster ids (the largest is one less) and MaxRevNAT the
	// pairs of unconnected UDP socket and backend that are remembered. MaxPeers
	// bounds the TCP sockets whose frontend is remembered in a hash because the
	// slots are taken; those beyond it take a slower way. MaxAffinity bounds the
	// pairs of client and frontend with session affinity that are remembered. 0
	// takes the default.
	MaxFrontends, MaxRecords, MaxClusters, MaxRevNAT, MaxPeers, MaxAffinity uint32
	// HostNetns is the cookie of the network namespace that is the node's own, for
	// frontends of [layout.ScopeHost]; 0 is the initial one.
	HostNetns uint64
	// Log receives warnings and how much Cleanup removed; nil discards.
	Log *slog.Logger

	// plainRefusal leaves bpf_set_retval out, as on Linux before 5.18.
	plainRefusal bool
	// noExchange leaves exchanges out, as on Linux before 5.12.
	noExchange bool
	// slots is how many slots for peers there are, a power of two.
	slots uint32
}

// Validate returns every problem of the options, joined.
func (o Options) Validate() error {
	return errors.Join(
		o.validatePinDir(),
		validateSize("MaxFrontends", o.MaxFrontends, limitFrontends),
		validateSize("MaxRecords", o.MaxRecords, limitRecords),
		validateSize("MaxClusters", o.MaxClusters, limitClusters),
		validateSize("MaxRevNAT", o.MaxRevNAT, limitRevNAT),
		validateSize("MaxPeers", o.MaxPeers, limitPeers),
		validateSize("MaxAffinity", o.MaxAffinity, limitAffinity),
	)
}

func (o Options) validatePinDir() error {
	clean := filepath.Clean(o.PinDir)
	if !filepath.IsAbs(o.PinDir) || clean == filepath.Dir(clean) || strings.Contains(filepath.Base(clean), ".") {
		return fmt.Errorf("validate PinDir %q: need an absolute path below a bpffs, without a dot in the last name, for example /sys/fs/bpf/clustermesh", o.PinDir)
	}
	return nil
}

func validateSize(field string, n, limit uint32) error {
	if n == 1 || n > limit {
		return fmt.Errorf("validate %s %d: need 2 to %d, or 0 for the default", field, n, limit)
	}
	return nil
}

// withDefaults fills the fields that may be empty, except Cgroup.
func (o Options) withDefaults() Options {
	o.PinDir = filepath.Clean(o.PinDir)
	setDefault(&o.MaxFrontends, DefaultMaxFrontends)
	setDefault(&o.MaxRecords, DefaultMaxRecords)
	setDefault(&o.MaxClusters, DefaultMaxClusters)
	setDefault(&o.MaxRevNAT, DefaultMaxRevNAT)
	setDefault(&o.MaxPeers, DefaultMaxPeers)
	setDefault(&o.MaxAffinity, DefaultMaxAffinity)
	setDefault(&o.slots, defaultSlots)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func setDefault(field *uint32, value uint32) {
	if *field == 0 {
		*field = value
	}
}
