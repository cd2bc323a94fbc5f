package demo

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// bridgeName is the switch between the nodes, in a namespace of its own.
const bridgeName = "br0"

// newWire makes the namespace with the bridge.
func newWire() (*place, error) {
	wire, err := newPlace("wire")
	if err != nil {
		return nil, err
	}
	if err := wire.link.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}); err != nil {
		wire.close()
		return nil, fmt.Errorf("create bridge: %w (the kernel needs CONFIG_BRIDGE)", err)
	}
	if err := wire.up(bridgeName); err != nil {
		wire.close()
		return nil, err
	}
	return wire, nil
}

// plug connects node to the bridge and gives it addr there.
func plug(wire, node *place, addr netip.Prefix) error {
	bridge, err := wire.link.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	port := netlink.NewLinkAttrs()
	port.Name, port.MasterIndex = "to-"+node.name, bridge.Attrs().Index
	pair := &netlink.Veth{LinkAttrs: port, PeerName: "eth0", PeerNamespace: netlink.NsFd(node.net)}
	if err := wire.link.LinkAdd(pair); err != nil {
		return fmt.Errorf("create veth pair: %w (the kernel needs CONFIG_VETH)", err)
	}
	if err := wire.up(port.Name); err != nil {
		return err
	}
	if err := node.addAddr("eth0", addr); err != nil {
		return err
	}
	return node.up("eth0")
}

func (p *place) addAddr(link string, addr netip.Prefix) error {
	l, err := p.link.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	if err := p.link.AddrAdd(l, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", addr, link, err)
	}
	return nil
}

// addRoute sends one pod's address to the node it is on.
func (p *place) addRoute(dst netip.Addr, via netip.Addr) error {
	r := &netlink.Route{Dst: ipNet(host(dst)), Gw: via.AsSlice()}
	if err := p.link.RouteAdd(r); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", dst, via, err)
	}
	return nil
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
