package mesh

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Config says who we are and what remote clusters may not say. Only the first
// three fields are required.
type Config struct {
	LocalCluster string // our cluster's name
	LocalID      uint32 // our cluster's id, 1..MaxClusters
	MaxClusters  uint32 // 255 or 511, the same in the whole mesh
	// Node is the name of our own node, by which the own cluster's backends on it
	// are told from others; "" if unknown.
	Node string

	// Limits bound a single record; the zero value means the schema's defaults.
	Limits schema.Limits
	// MaxServices, MaxSlices and MaxBackends bound what is kept of one remote
	// cluster; 0 means 10,000 services, 30,000 endpoint slices (as many services
	// with two families and some large ones) and 100,000 backends (about 3 MB,
	// 6 MB from slices, of which every mention of a backend counts). What exceeds
	// them is refused with reason "limit". This is the one place where order
	// matters: the keys that came first stay.
	// A backend counts once for each name of its port, of which 64 are kept.
	MaxServices, MaxSlices, MaxBackends int
	// MaxServiceBackends bounds what one remote cluster adds to one port of a
	// service, of each address family; 0 means 10,000, twice as many as Kubernetes
	// supports. Of more those that can be used come first, then the first in order
	// of address; the rest is refused with reason "limit": a service that one cluster bloats stays one that the
	// kernel's tables can hold, for the sake of the others' backends.
	MaxServiceBackends int
	// ProtectedNamespaces and ProtectedServices never take remote backends; nil
	// means kube-system and default/kubernetes.
	ProtectedNamespaces []string
	ProtectedServices   []lb.ServiceName
	// Deny lists ranges that no remote backend may lie in, in addition to those
	// that never may (see [AlwaysDenied]) and those that become known later (see
	// [Mesh.SetOwn]): our own node, pod and service ranges.
	Deny []netip.Prefix
	// Brake is the share of its backends, in percent, that a remote cluster may
	// withdraw at once, for clusters whose policy names none; 0 means any. See
	// [Mesh.Release].
	Brake int
}

const (
	defaultMaxServices        = 10_000
	defaultMaxSlices          = 30_000
	defaultMaxBackends        = 100_000
	defaultMaxServiceBackends = 10_000
)

// AlwaysDenied returns the ranges in which no remote backend may lie, whatever
// the configuration: addresses that mean this host, this link, a group of
// hosts, or a cloud's metadata service, and IPv6 that a host or translator turns
// into an IPv4 address, which may be any of these. What some clusters give to
// their pods is not among them, odd as it may be: 100.64.0.0/10 (RFC 6598) and
// 240.0.0.0/4 (RFC 1112), which Google's clusters can use.
func AlwaysDenied() []netip.Prefix {
	text := []string{
		"0.0.0.0/8",          // this network, RFC 791
		"127.0.0.0/8",        // loopback, RFC 1122
		"169.254.0.0/16",     // link-local, RFC 3927; most clouds' metadata
		"192.0.0.0/24",       // protocol assignments, RFC 6890; Oracle's metadata at .192
		"224.0.0.0/4",        // multicast, RFC 5771
		"255.255.255.255/32", // broadcast, RFC 8190
		"100.100.100.200/32", // Alibaba's metadata
		"168.63.129.16/32",   // Azure's platform, which hands out credentials of the host
		"::/96",              // unspecified, loopback, IPv4-compatible, RFC 4291
		"::ffff:0:0:0/96",    // IPv4-translated (SIIT), RFC 2765
		"64:ff9b::/96",       // NAT64, RFC 6052
		"64:ff9b:1::/48",     // NAT64 of local use, RFC 8215
		"2001::/32",          // Teredo, RFC 4380
		"2002::/16",          // 6to4, RFC 3056
		"fe80::/10",          // link-local, RFC 4291
		"fec0::/10",          // site-local, RFC 3879
		"ff00::/8",           // multicast, RFC 4291
		"fd00:ec2::254/128",  // Amazon's metadata
		"fd20:ce::254/128",   // Google's metadata
	}
	out := make([]netip.Prefix, len(text))
	for i, s := range text {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// Validate reports every problem of the configuration, joined.
func (c Config) Validate() error {
	var errs []error
	if err := schema.ValidateClusterName(c.LocalCluster); err != nil {
		errs = append(errs, fmt.Errorf("check LocalCluster: %w", err))
	}
	if err := schema.ValidateClusterID(c.LocalID, c.MaxClusters); err != nil {
		errs = append(errs, fmt.Errorf("check LocalID: %w", err))
	}
	if c.MaxServices < 0 || c.MaxSlices < 0 || c.MaxBackends < 0 || c.MaxServiceBackends < 0 {
		errs = append(errs, fmt.Errorf("check MaxServices %d, MaxSlices %d, MaxBackends %d and MaxServiceBackends %d: none may be negative, 0 means the default",
			c.MaxServices, c.MaxSlices, c.MaxBackends, c.MaxServiceBackends))
	}
	if err := ValidateBrake(c.Brake); err != nil {
		errs = append(errs, fmt.Errorf("check Brake: %w", err))
	}
	for i, p := range c.Deny {
		if !p.IsValid() {
			errs = append(errs, fmt.Errorf("check Deny[%d]: the range is not valid, write it as address/bits", i))
		}
	}
	return errors.Join(errs...)
}

// withDefaults fills what was left out and copies what the Mesh keeps.
func (c Config) withDefaults() Config {
	if c.Limits == (schema.Limits{}) {
		c.Limits = schema.DefaultLimits()
	}
	if c.MaxServices == 0 {
		c.MaxServices = defaultMaxServices
	}
	if c.MaxSlices == 0 {
		c.MaxSlices = defaultMaxSlices
	}
	if c.MaxBackends == 0 {
		c.MaxBackends = defaultMaxBackends
	}
	if c.MaxServiceBackends == 0 {
		c.MaxServiceBackends = defaultMaxServiceBackends
	}
	if c.ProtectedNamespaces == nil {
		c.ProtectedNamespaces = []string{"kube-system"}
	}
	if c.ProtectedServices == nil {
		c.ProtectedServices = []lb.ServiceName{{Namespace: "default", Name: "kubernetes"}}
	}
	return c
}
