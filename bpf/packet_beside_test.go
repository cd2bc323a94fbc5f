package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/layout"
)

// nft loads rules on the node.
func (w *packetWorld) nft(rules string) {
	w.Helper()
	inNS(w.TB, w.node, func() error {
		c := exec.Command("nft", "-f", "-")
		c.Stdin = strings.NewReader(rules)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("load nft rules: %w: %s", err, out)
		}
		return nil
	})
}

// addrPort is where a record's backend listens.
func addrPort(b layout.Backend) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), uint16(b.Port[0])<<8|uint16(b.Port[1]))
}

// proxyRules has the shape of kube-proxy's nftables mode for services of one endpoint:
// a verdict map from address, protocol and port to a chain of the service, which draws
// a chain of an endpoint. What connection tracking cannot follow is dropped.
func proxyRules(name, addrType string, services map[string]netip.AddrPort) string {
	var chains, elements strings.Builder
	i := 0
	for frontend, to := range services {
		at := netip.MustParseAddrPort(frontend)
		for _, proto := range []string{"tcp", "udp"} {
			i++
			fmt.Fprintf(&chains, "chain endpoint-%d { %s saddr %s jump mark-for-masquerade\nmeta l4proto %s dnat to %s\n}\n", i, name, to.Addr(), proto, to)
			fmt.Fprintf(&chains, "chain service-%d { numgen random mod 1 vmap { 0 : goto endpoint-%d }\n}\n", i, i)
			fmt.Fprintf(&elements, "%s . %s . %d : goto service-%d,\n", at.Addr(), proto, at.Port(), i)
		}
	}
	return fmt.Sprintf(`table %[1]s kube-proxy {
chain mark-for-masquerade { meta mark set meta mark or 0x4000
}
%[2]s
map service-ips { type %[3]s . inet_proto . inet_service : verdict
elements = { %[4]s }
}
chain services { %[1]s daddr . meta l4proto . th dport vmap @service-ips
}
chain filter-forward { type filter hook forward priority 0
ct state invalid drop
}
chain nat-output { type nat hook output priority -100
jump services
}
chain nat-prerouting { type nat hook prerouting priority -100
jump services
}
chain nat-postrouting { type nat hook postrouting priority 100
meta mark and 0x4000 == 0 return
meta mark set meta mark xor 0x4000
masquerade fully-random
}
}
`, name, chains.String(), addrType, elements.String())
}

// TestPacketsBesideKubeProxy has rules on the node for a service of the mesh, which
// they would send to nobody, and for one that only they know.
func TestPacketsBesideKubeProxy(t *testing.T) {
	onKernels(t, func(t *testing.T, w *packetWorld, snat bool) {
		for _, family := range []struct{ name, addrType, global, plain, backend, sees, node string }{
			{"ip", "ipv4_addr", "10.96.0.1:80", "10.96.0.9:80", backendAddr4, clientAddr4, nodeAddr4},
			{"ip6", "ipv6_addr", "[fd00:96::1]:80", "[fd00:96::9]:80", backendAddr6, clientAddr6, nodeAddr6},
		} {
			at := net.JoinHostPort(family.backend, "0")
			onTCP, onUDP := w.serveIn(tcp, at), w.serveIn(udp, at)
			w.service(family.global, tcp, onTCP)
			w.service(family.global, udp, onUDP)
			local := w.serveIn(tcp, at)
			w.serveIn(udp, addrPort(local).String())
			nobody := netip.AddrPortFrom(netip.MustParseAddr(family.backend), 9)
			w.nft(proxyRules(family.name, family.addrType, map[string]netip.AddrPort{family.global: nobody, family.plain: addrPort(local)}))
			seen := family.sees
			if snat {
				seen = family.node
			}
			for range 3 {
				w.answers("tcp", family.global, "", seen)
				w.answers("udp", family.global, "?", seen+" ?")
				w.answers("tcp", family.plain, "", family.sees)
				w.answers("udp", family.plain, "?", family.sees+" ?")
			}
		}
	})
}

// TestPacketsBesideFilters keeps a filter of somebody else on the same qdisc, whatever
// is done with ours.
func TestPacketsBesideFilters(t *testing.T) {
	w := newPacketWorldOf(t, false, PacketOptions{clsact: true})
	w.service("10.96.0.1:80", tcp, w.serveIn(tcp, backendAddr4+":0"))
	var dev netlink.Link
	inNS(t, w.node, func() (err error) {
		if dev, err = netlink.LinkByName(packetDevice); err != nil {
			return err
		}
		other := filterOf(dev.Attrs().Index, "ingress")
		other.Handle, other.Name, other.Fd = 7, "other", w.packet.coll.Programs["cm_ingress_l3"].FD()
		return netlink.FilterReplace(other)
	})
	index := dev.Attrs().Index
	check := func(what string, ours int) {
		t.Helper()
		inNS(t, w.node, func() error {
			list, err := netlink.FilterList(dev, parentOf("ingress"))
			got := map[string]int{}
			for _, f := range list {
				got[f.(*netlink.BpfFilter).Name]++
			}
			if err != nil || got["clustermesh_ingress"] != ours || got["other"] != 1 || len(list) != ours+1 {
				t.Errorf("%s: filters %v, error %v", what, got, err)
			}
			if got, err := w.packet.Attached(); err != nil || len(got) != ours {
				t.Errorf("%s: attached to %v, error %v", what, got, err)
			}
			return nil
		})
	}
	check("attached", 1)
	w.answers("tcp", "10.96.0.1:80", "", clientAddr4)
	inNS(t, w.node, func() error { return netlink.FilterDel(filterOf(index, "ingress")) })
	check("taken out by somebody", 0)
	w.attach(false)
	check("repaired", 1)
	w.answers("tcp", "10.96.0.1:80", "", clientAddr4)
	inNS(t, w.node, func() error { return w.packet.Detach(index) })
	check("detached", 0)
	w.attach(false)
	check("attached again", 1)
	w.close()
	inNS(t, w.node, func() error { return Cleanup(w.opts) })
	inNS(t, w.node, func() error {
		list, err := netlink.FilterList(dev, parentOf("ingress"))
		if err != nil || len(list) != 1 {
			t.Errorf("cleaned up: %d filters, error %v", len(list), err)
		}
		return nil
	})
}

// TestGoneDevicesAreForgotten: pods come and go, and what is kept of their devices goes
// with them.
func TestGoneDevicesAreForgotten(t *testing.T) {
	for _, clsact := range []bool{false, true} {
		w := newPacketWorldOf(t, false, PacketOptions{clsact: clsact})
		inNS(t, w.node, func() error {
			for i := range 40 { // more than there is room for at once
				pod := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod"}, PeerName: "far"}
				if err := netlink.LinkAdd(pod); err != nil {
					return err
				}
				if err := w.packet.Attach(Device{Name: "pod"}); err != nil {
					return fmt.Errorf("device %d: %w", i, err)
				}
				if err := netlink.LinkDel(pod); err != nil {
					return err
				}
				if n, err := w.packet.Forget(); err != nil || n != 1 {
					return fmt.Errorf("forgot %d devices, error %w", n, err)
				}
			}
			return nil
		})
		var index uint32
		var device packetCmDevice
		n := 0
		for it := w.packet.coll.Maps[packetMapCmDevices].Iterate(); it.Next(&index, &device); {
			n++
		}
		pins, err := Pins(w.opts)
		for _, p := range pins {
			for _, kind := range []string{"tcx", "tc"} {
				if _, _, ok := readDevicePin(kind, p.Name); ok {
					n++
				}
			}
		}
		if err != nil || n != 3 {
			t.Errorf("clsact=%t: %d devices and pins are kept, error %v; want one device with two", clsact, n, err)
		}
	}
}

// TestPacketsWithXDP takes the programs of TCX away in the middle of connections that
// only pass the node: what still arrives, the XDP program has passed on. Then the other
// way round.
func TestPacketsWithXDP(t *testing.T) {
	for _, mode := range []XDPMode{XDPGeneric, XDPDriver} {
		t.Run(string(mode), func(t *testing.T) {
			w := newPacketWorld(t, true)
			w.finishChecksums()
			w.attachXDP(mode)
			var talks []net.Conn
			for frontend, backend := range map[string]string{"10.96.0.1:80": backendAddr4 + ":0", "[fd00:96::1]:80": "[" + backendAddr6 + "]:0"} {
				w.service(frontend, tcp, w.echoIn(backend))
				c := w.dialogue(frontend)
				w.speak(c)
				talks = append(talks, c)
			}
			indexes, err := w.packet.Attached()
			if err != nil || len(indexes) != 2 {
				t.Fatalf("attached to %v, error %v", indexes, err)
			}
			for _, index := range indexes {
				for _, s := range sides() {
					if err := w.packet.drop(devicePin("tcx", index, s.name)); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, c := range talks {
				w.speak(c)
			}
			w.attach(true) // without XDP
			if pins, err := Pins(w.opts); err != nil || strings.Contains(fmt.Sprint(pins), "link_xdp") {
				t.Errorf("pins %v, error %v; want none of XDP", pins, err)
			}
			for _, c := range talks {
				w.speak(c)
			}
		})
	}
}

// attachXDP gives both devices of the node the XDP program. A veth driver takes
// packets from another's only while the far end has a program, too.
func (w *packetWorld) attachXDP(mode XDPMode) {
	w.Helper()
	if mode == XDPDriver {
		w.passXDP(w.client, "eth0", unix.XDP_FLAGS_DRV_MODE)
		w.passXDP(w.server, "eth0", unix.XDP_FLAGS_DRV_MODE)
	}
	inNS(w.TB, w.node, func() error {
		return errors.Join(
			w.packet.Attach(Device{Name: packetDevice, SNAT: true, Addr4: netip.MustParseAddr(nodeAddr4), Addr6: netip.MustParseAddr(nodeAddr6), XDP: mode}),
			w.packet.Attach(Device{Name: "toserver", SNAT: true, XDP: mode}),
		)
	})
}

// passXDP gives a device somebody's XDP program that lets everything pass.
func (w *packetWorld) passXDP(ns netns.NsHandle, device string, flags int) {
	w.Helper()
	inNS(w.TB, ns, func() error {
		dev, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		pass, err := ebpf.NewProgram(passXDP())
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetXdpFdWithFlags(dev, pass.FD(), flags), pass.Close())
	})
}

// finishChecksums has client and backend compute checksums themselves, as whatever
// comes from a wire has them.
func (w *packetWorld) finishChecksums() {
	w.Helper()
	for _, ns := range []netns.NsHandle{w.client, w.server} {
		inNS(w.TB, ns, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return setTransmitChecksum(fd, "eth0", false)
		})
	}
}

// TestXDPThatCannotBe: a device that has no XDP, or has another's, is served without.
func TestXDPThatCannotBe(t *testing.T) {
	w := newPacketWorld(t, true)
	w.service("10.96.0.1:80", tcp, w.serveIn(tcp, backendAddr4+":0"))
	w.passXDP(w.node, packetDevice, unix.XDP_FLAGS_SKB_MODE)
	inNS(t, w.node, func() error {
		return w.packet.Attach(Device{Name: packetDevice, SNAT: true, Addr4: netip.MustParseAddr(nodeAddr4), Addr6: netip.MustParseAddr(nodeAddr6), XDP: XDPDriver})
	})
	w.answers("tcp", "10.96.0.1:80", "", nodeAddr4)
}
