package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// internalIP is the type of a node's address that others in its cluster use.
const internalIP = "InternalIP"

func (c Config) nodePortRanges() ([]netip.Prefix, error) {
	return parseRanges("--node-port-addresses", c.NodePortAddresses)
}

// nodePortAddresses picks the addresses of this node's record at which node ports
// are served. What does not parse was checked by the decoder; loopback addresses
// are served anyway, and in their own way.
func (c Config) nodePortAddresses(n *schema.Node) []netip.Addr {
	ranges, _ := c.nodePortRanges()
	var out []netip.Addr
	for _, known := range n.IPAddresses {
		a, err := netip.ParseAddr(known.IP)
		if err != nil || !a.Unmap().IsGlobalUnicast() {
			continue
		}
		within := slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
		if within || len(ranges) == 0 && known.Type == internalIP {
			out = append(out, a)
		}
	}
	return out
}

// agentNetns says that the node's own network namespace is that of this process.
const agentNetns = "agent"

// hostNetns is the kernel's number of the node's own network namespace, 0 for the
// initial one. The configuration is valid.
func (c Config) hostNetns() (uint64, error) {
	if c.HostNetns == agentNetns {
		return ownNetns()
	}
	return c.parseHostNetns()
}

func (c Config) parseHostNetns() (cookie uint64, err error) {
	switch c.HostNetns {
	case "", "initial", agentNetns:
		return 0, nil
	}
	if cookie, err = strconv.ParseUint(c.HostNetns, 10, 64); err != nil || cookie == 0 {
		return 0, fmt.Errorf("--host-netns %q: not a network namespace; write initial, agent, or the namespace's cookie", c.HostNetns)
	}
	return cookie, nil
}

// ownNetns is the number of this process's network namespace.
func ownNetns() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("--host-netns agent: open a socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("--host-netns agent: the kernel (before Linux 5.14) does not tell the number of a namespace: %w; write initial", err)
	}
	return cookie, nil
}

// outside says what clients outside do not get of a service by this node.
func (c *core) outside(name lb.ServiceName, tables []lb.FrontendTable) []string {
	if c.mesh.Restricted(name) {
		return []string{"its loadBalancerSourceRanges limit which clients may come in, so its external addresses and node ports are left to kube-proxy: clients there get backends of this cluster only"}
	}
	for i := range tables {
		t := &tables[i]
		if t.Frontend.Scope == lb.ScopeOutside && (len(t.Backends) == 0 || !t.Backends[0].Selected) {
			return []string{fmt.Sprintf("its externalTrafficPolicy is Local and no usable backend is on node %s: connections from outside the cluster that come to this node are dropped, as its health check node port says; clients in the cluster are not concerned", c.cfg.NodeName)}
		}
	}
	return nil
}
