package agent

import (
	"net/netip"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// What a cluster publishes of its nodes tells which addresses are ours: those
// of the nodes and the ranges of their pods. No remote cluster may name them.

// updateNodes takes changes of the own cluster's nodes.
func (c *core) updateNodes(u kvstore.Update) {
	from := schema.Source{Cluster: c.cfg.ClusterName, ClusterID: c.cfg.ClusterID}
	for _, ch := range u.Changes {
		if ch.Deleted {
			c.setHere(ch.Key, nil)
			delete(c.own, ch.Key)
			continue
		}
		n, err := schema.DecodeNode(from, ch.Key, ch.Value, schema.DefaultLimits())
		if err != nil { // what was known of it stays
			c.log.Warn("own node is not understood", "key", ch.Key, "err", err)
			continue
		}
		c.own[ch.Key] = rangesOf(n)
		c.setHere(ch.Key, n)
	}
	if u.Synced {
		c.ownProblem = nil
		key := schema.NodeKey(c.cfg.ClusterName, c.cfg.NodeName)
		if _, known := c.own[key]; !known {
			c.setHere(key, nil)
		}
	}
	if len(u.Changes) == 0 {
		return
	}
	var all []netip.Prefix
	for _, list := range c.own {
		all = append(all, list...)
	}
	c.listAgain(c.mesh.SetOwn(all))
}

// zoneLabel is where Kubernetes keeps a node's zone.
const zoneLabel = "topology.kubernetes.io/zone"

// setHere takes in what the own cluster says of this node, nil for nothing, if
// the key is this node's: its zone, unless the configuration says it, and the
// addresses that lead to the node ports of services.
func (c *core) setHere(key string, n *schema.Node) {
	if key != schema.NodeKey(c.cfg.ClusterName, c.cfg.NodeName) {
		return
	}
	if n == nil {
		n = &schema.Node{}
	}
	if c.cfg.Zone == "" {
		c.mesh.SetZone(n.Labels[zoneLabel])
	}
	c.mesh.SetNodeAddresses(c.cfg.nodePortAddresses(n))
}

// rangesOf lists the addresses of a node and of its pods. What does not parse
// was checked by the decoder; an empty text is an address that the node has not.
func rangesOf(n *schema.Node) []netip.Prefix {
	var out []netip.Prefix
	host := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, a := range n.IPAddresses {
		host(a.IP)
	}
	for _, text := range []string{n.IPv4HealthIP, n.IPv6HealthIP, n.IPv4IngressIP, n.IPv6IngressIP} {
		host(text)
	}
	for _, cidr := range ownCIDRs(n) {
		if p, ok := cidr.Prefix(); ok {
			out = append(out, p)
		}
	}
	return out
}

func ownCIDRs(n *schema.Node) []schema.CIDR {
	out := append([]schema.CIDR{}, n.IPv4SecondaryAllocCIDRs...)
	out = append(out, n.IPv6SecondaryAllocCIDRs...)
	for _, c := range []*schema.CIDR{n.IPv4AllocCIDR, n.IPv6AllocCIDR} {
		if c != nil {
			out = append(out, *c)
		}
	}
	return out
}
