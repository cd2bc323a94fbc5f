package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// Nodes of the own cluster tell which addresses are ours, see own.go. Those of
// remote clusters are probed, if the configuration says so, and nothing else is
// done with them.

// nodeWatch remembers across connections which nodes the core has been told of.
type nodeWatch struct {
	watcher *kvstore.Watcher
	prefix  string
}

// maxNodes bounds how many nodes of one remote cluster are kept; Kubernetes
// supports half as many.
const maxNodes = 10_000

// nodesPause lies between two attempts to hear nodes, in units of MaxBackoff:
// attempts on a connection that works otherwise are in vain more often than not,
// because the cluster does not let us read its nodes.
const nodesPause = 10

// followNodes hears the cluster's nodes until ctx ends. Nothing else waits for
// it: a store without nodes, or one that does not let us read them, costs only
// this knowledge, and status says so.
func (r *remote) followNodes(ctx context.Context, conn connection, said announcement) error {
	if !r.local && r.cfg.ProbeNodePort == 0 {
		return nil
	}
	prefix := schema.WatchPrefix(schema.KindNode, r.name, said.cached)
	if r.nodes.prefix != prefix {
		config := r.watcherConfig(prefix)
		if !r.local {
			config.MaxKeys = maxNodes
		}
		r.nodes = nodeWatch{kvstore.NewWatcher(config), prefix}
		if err := r.core.do(ctx, func(c *core) { c.link(r.name).nodes = map[string]netip.Addr{} }); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		err := r.hearNodes(ctx, conn, said)
		if ctx.Err() != nil { // the connection ended, and with it everything on it
			return nil
		}
		_ = r.core.do(ctx, func(c *core) { c.nodesUnheard(r.name, err) })
		select {
		case <-ctx.Done():
		case <-time.After(nodesPause * r.cfg.MaxBackoff):
		}
	}
	return nil
}

func (r *remote) hearNodes(ctx context.Context, conn connection, said announcement) error {
	if said.canaries {
		if err := awaitKey(ctx, conn, schema.CanaryKey(schema.KindNode, r.name, said.cached)); err != nil {
			return err
		}
	}
	return r.nodes.watcher.Follow(ctx, conn, func(u kvstore.Update) error {
		if r.local {
			return r.core.do(ctx, func(c *core) { c.updateNodes(u) })
		}
		found := nodeAddresses(schema.Source{Cluster: r.name, ClusterID: said.id, Cached: said.cached}, u.Changes)
		return r.core.do(ctx, func(c *core) { c.updateRemoteNodes(r.name, found, u.Synced) })
	})
}

// nodesUnheard notes why nodes of a cluster are not followed.
func (c *core) nodesUnheard(name string, err error) {
	if name == c.cfg.ClusterName {
		line := fmt.Sprintf("follow the own cluster's nodes: %v; what remote clusters must not name is not up to date", err)
		c.ownProblem = c.logNew("own nodes are not followed", c.ownProblem, []string{line})
		return
	}
	line := fmt.Sprintf("follow the nodes of cluster %s: %v; those that are known are probed; let this cluster read its nodes, or give --probe-node-port 0", name, err)
	l := c.link(name)
	l.nodesProblem = c.logNew("nodes of a cluster are not followed", l.nodesProblem, []string{line})
}

// nodeAddresses are the addresses to probe of nodes that changed, by key; not
// valid ones are of nodes that are gone, that have none or that are not
// understood: nothing but probes depends on them.
func nodeAddresses(from schema.Source, changes []kvstore.Change) map[string]netip.Addr {
	found := make(map[string]netip.Addr, len(changes))
	for _, ch := range changes {
		found[ch.Key] = netip.Addr{}
		if ch.Deleted {
			continue
		}
		if n, err := schema.DecodeNode(from, ch.Key, ch.Value, schema.DefaultLimits()); err == nil {
			found[ch.Key] = addressOf(n)
		}
	}
	return found
}

// addressOf is the first address of a node within its network or, without one,
// its first one outside. Pods are reached by the former kind of network.
func addressOf(n *schema.Node) netip.Addr {
	for _, kind := range []string{"InternalIP", "ExternalIP"} {
		for _, a := range n.IPAddresses {
			if addr, err := netip.ParseAddr(a.IP); a.Type == kind && err == nil {
				return addr.Unmap()
			}
		}
	}
	return netip.Addr{}
}

// updateRemoteNodes takes in nodes of a remote cluster that changed.
func (c *core) updateRemoteNodes(name string, found map[string]netip.Addr, synced bool) {
	l := c.link(name)
	if l.nodes == nil {
		l.nodes = map[string]netip.Addr{}
	}
	for key, addr := range found {
		if addr.IsValid() {
			l.nodes[key] = addr
		} else {
			delete(l.nodes, key)
		}
	}
	if synced {
		l.nodesProblem = nil
	}
}

// nodeTargets returns up to n nodes of a remote cluster to probe, different ones
// each time.
func (c *core) nodeTargets(name string, n int) []netip.AddrPort {
	var out []netip.AddrPort
	for _, addr := range c.link(name).nodes { // the order of a Go map
		if len(out) == n {
			break
		}
		if c.mesh.AdmitsNode(name, addr) {
			out = append(out, netip.AddrPortFrom(addr, c.cfg.ProbeNodePort))
		}
	}
	return out
}

// nodeProblems tells the operator whose nodes are not followed.
func (c *core) nodeProblems() []string {
	var lines []string
	for _, s := range c.mesh.Status() {
		if l := c.links[s.Name]; l != nil {
			lines = append(lines, l.nodesProblem...)
		}
	}
	return lines
}
