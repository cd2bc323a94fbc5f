package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Config says who we are and what remote clusters may not say. Only the first
// three fields are required.
type Config struct {
	LocalCluster string // our cluster's name
	LocalID      uint32 // our cluster's id, 1..MaxClusters
	MaxClusters  uint32 // 255 or 511, the same in the whole mesh

	// Limits bound a single record; the zero value means the schema's defaults.
	Limits schema.Limits
	// MaxServices, MaxSlices and MaxBackends bound what is kept of one remote
	// cluster; 0 means 10,000 services, 30,000 endpoint slices (as many services
	// with two families and some large ones) and 100,000 backends (about 3 MB,
	// 6 MB from slices, of which every mention of a backend counts). What exceeds
	// them is refused with reason "limit". This is the one place where order
	// matters: the keys that came first stay.
	MaxServices, MaxSlices, MaxBackends int
	// ProtectedNamespaces and ProtectedServices never take remote backends; nil
	// means kube-system and default/kubernetes.
	ProtectedNamespaces []string
	ProtectedServices   []lb.ServiceName
	// Deny lists ranges that no remote backend may lie in, in addition to those
	// that never may (see [AlwaysDenied]): our own node, pod and service ranges.
	Deny []netip.Prefix
}

const (
	defaultMaxServices = 10_000
	defaultMaxSlices   = 30_000
	defaultMaxBackends = 100_000
)

// AlwaysDenied returns the ranges in which no remote backend may lie, whatever
// the configuration: addresses that mean this host, this link, a group of
// hosts, or a cloud's metadata service, and IPv4-compatible IPv6.
func AlwaysDenied() []netip.Prefix {
	text := []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
		"::/96", "fe80::/10", "ff00::/8", "fd00:ec2::254/128",
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
	if c.MaxServices < 0 || c.MaxSlices < 0 || c.MaxBackends < 0 {
		errs = append(errs, fmt.Errorf("check MaxServices %d, MaxSlices %d and MaxBackends %d: none may be negative, 0 means the default", c.MaxServices, c.MaxSlices, c.MaxBackends))
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
	if c.ProtectedNamespaces == nil {
		c.ProtectedNamespaces = []string{"kube-system"}
	}
	if c.ProtectedServices == nil {
		c.ProtectedServices = []lb.ServiceName{{Namespace: "default", Name: "kubernetes"}}
	}
	c.Deny = unmapPrefixes(slices.Concat(AlwaysDenied(), c.Deny))
	return c
}

// Policy says what is accepted of one remote cluster beyond what holds for all
// of them. The zero value accepts everything.
type Policy struct {
	// Allow lists the ranges that the cluster's backends must lie in (its pod
	// CIDRs); empty means any.
	Allow []netip.Prefix
	// Namespaces lists the namespaces whose services take backends of this
	// cluster; empty means any.
	Namespaces []string
}

// unmapPrefixes turns IPv4-mapped prefixes into IPv4 ones, since addresses are
// compared unmapped.
func unmapPrefixes(in []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(in))
	for i, p := range in {
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		out[i] = p
	}
	return out
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// admitsAddress reports whether a remote cluster may name a as a backend.
func (m *Mesh) admitsAddress(c *cluster, a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() || a.Zone() != "" || within(m.cfg.Deny, a) {
		return false
	}
	return len(c.policy.Allow) == 0 || within(c.policy.Allow, a)
}

// admitsService reports whether a remote cluster may add backends to name.
func (m *Mesh) admitsService(c *cluster, name lb.ServiceName) bool {
	if slices.Contains(m.cfg.ProtectedNamespaces, name.Namespace) || slices.Contains(m.cfg.ProtectedServices, name) {
		return false
	}
	return len(c.policy.Namespaces) == 0 || slices.Contains(c.policy.Namespaces, name.Namespace)
}
