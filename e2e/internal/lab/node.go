package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "cm0"
	// cablePrefix and a node's name are the bridge's end of its cable.
	cablePrefix = "v-"
)

// Node is a machine of the lab: a network namespace whose eth0 hangs on the
// lab's bridge, and a cgroup for everything that runs on the machine.
type Node struct {
	Name   string
	Addrs  []netip.Prefix // of eth0, all nodes in one subnet per family
	Pods   []netip.Prefix // addresses of the node's pods, routed to it
	Cgroup string
	ns     netns.NsHandle
	nl     *netlink.Handle
}

func addBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	snooping := false // nobody queries here; neighbour discovery must always get through
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	return netlink.LinkSetUp(bridge)
}

// Join gives the lab's own network namespace an address in the nodes' subnet, so
// that processes on nodes reach what listens there.
func (l *Lab) Join(a netip.Prefix) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(bridge, hostAddr(a))
}

func removeBridge() error {
	link, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// AddNode makes a node and the routes between it and all nodes added before.
// It is not safe for concurrent use.
func (l *Lab) AddNode(name string, addrs, pods []netip.Prefix) (*Node, error) {
	cgroup, err := l.Cgroup("node/" + name)
	if err != nil {
		return nil, err
	}
	n := &Node{Name: name, Addrs: addrs, Pods: pods, Cgroup: cgroup}
	if err := n.open(); err != nil {
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	for _, other := range l.nodes {
		if err := errors.Join(n.routeTo(other), other.routeTo(n)); err != nil {
			return nil, fmt.Errorf("route between %s and %s: %w", name, other.Name, err)
		}
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

func (n *Node) open() (err error) {
	if n.ns, err = newNetns(); err != nil {
		return err
	}
	if n.nl, err = netlink.NewHandleAt(n.ns); err != nil {
		return err
	}
	if err := n.plug(); err != nil {
		return err
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	return n.nl.LinkSetUp(lo)
}

func (n *Node) close() error {
	n.nl.Close()
	return errors.Join(n.unplug(), n.ns.Close())
}

// unplug takes the cable out. It would go with the namespace, but at a time of the
// kernel's choice, and the next lab has nodes of the same names.
func (n *Node) unplug() error {
	cable, err := netlink.LinkByName(cablePrefix + n.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(cable)
}

// newNetns makes a network namespace without a name: it lives as long as its
// handle and the processes in it.
func newNetns() (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return netns.None(), err
	}
	defer home.Close()
	made, err := netns.New()
	if err != nil {
		return netns.None(), err
	}
	return made, netns.Set(home)
}

// plug joins the node to the bridge and gives eth0 its addresses.
func (n *Node) plug() error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = cablePrefix+n.Name, bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	eth0, err := n.nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, a := range n.Addrs {
		if err := n.nl.AddrAdd(eth0, hostAddr(a)); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	return n.nl.LinkSetUp(eth0)
}

// hostAddr is an address that needs no duplicate detection, which would keep
// IPv6 addresses unusable for a second.
func hostAddr(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
}

func (n *Node) routeTo(other *Node) error {
	eth0, err := n.nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, pods := range other.Pods {
		via := other.Addr(pods.Addr().Is4())
		route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(pods), Gw: net.IP(via.AsSlice())}
		if err := n.nl.RouteAdd(route); err != nil {
			return fmt.Errorf("add route to %s via %s: %w", pods, via, err)
		}
	}
	return n.know(eth0, other)
}

// know makes the other node's link address permanent: on a busy machine the
// discovery of neighbours may time out, which would look like a lost backend.
func (n *Node) know(eth0 netlink.Link, other *Node) error {
	theirs, err := other.nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, a := range other.Addrs {
		neighbour := &netlink.Neigh{
			LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: a.Addr().AsSlice(), HardwareAddr: theirs.Attrs().HardwareAddr,
		}
		if err := n.nl.NeighSet(neighbour); err != nil {
			return fmt.Errorf("set neighbour %s: %w", a, err)
		}
	}
	return nil
}

// RouteOut sends an address to eth0 without a gateway, so that the node accepts
// connections to it, which something must then translate. undo takes the route
// away.
func (n *Node) RouteOut(a netip.Addr) (undo func() error, err error) {
	eth0, err := n.nl.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), Scope: netlink.SCOPE_LINK}
	if a.Is6() {
		route.Scope = netlink.SCOPE_UNIVERSE // IPv6 routes have no scope
	}
	return func() error { return n.nl.RouteDel(route) }, n.nl.RouteAdd(route)
}

// RouteVia sends an address to a gateway behind eth0.
func (n *Node) RouteVia(a, gateway netip.Addr) error {
	eth0, err := n.nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	return n.nl.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), Gw: gateway.AsSlice()})
}

// Forward lets the node pass on what is not for itself, as nodes of Kubernetes do.
func (n *Node) Forward() error {
	return n.Inside(func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0),
		)
	})
}

// AddAddr gives eth0 another address; undo takes it away.
func (n *Node) AddAddr(a netip.Prefix) (undo func() error, err error) {
	eth0, err := n.nl.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	return func() error { return n.nl.AddrDel(eth0, hostAddr(a)) }, n.nl.AddrAdd(eth0, hostAddr(a))
}

// Cookie is the kernel's number of the node's network namespace.
func (n *Node) Cookie() (cookie uint64, err error) {
	err = n.Inside(func() (err error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return cookie, err
}

// Inside runs f on a thread in the node's network namespace, where the commands
// that f starts are, too.
func (n *Node) Inside(f func() error) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(n.ns); err != nil {
			failed <- err
			return
		}
		failed <- f()
	}()
	return <-failed
}

// Addr is the node's address of one family, the zero Addr if it has none.
func (n *Node) Addr(v4 bool) netip.Addr {
	for _, a := range n.Addrs {
		if a.Addr().Is4() == v4 {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
