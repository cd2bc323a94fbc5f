package probe_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/clustermesh/clustermesh/agent/liveness/probe"
)

// TestNodesOverAWire probes a node in another network namespace, over a pair of
// veth devices: an open port and a closed one answer, each with a time; a node
// that is not there and one whose cable is out do not.
func TestNodesOverAWire(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	const here, there = "192.0.2.1", "192.0.2.2"
	far := newNamespace(t)
	near := newNamespace(t)
	within(t, near, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(far))}
		return errors.Join(netlink.LinkAdd(veth), raise("wire", here))
	})
	within(t, far, func() error { return errors.Join(raise("lo", ""), raise("eth0", there)) })
	var open uint16
	within(t, far, func() error {
		l, err := net.Listen("tcp", there+":0")
		if err == nil {
			t.Cleanup(func() { l.Close() })
			open = uint16(l.Addr().(*net.TCPAddr).Port)
		}
		return err
	})
	ask := func(what, addr string, port uint16, want probe.Outcome) {
		t.Helper()
		within(t, near, func() error {
			rtt, got := probe.Connect(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(addr), port))
			if got != want || got == probe.Answered && (rtt <= 0 || rtt > probe.Limit) {
				t.Errorf("%s: %v after %v, want %v", what, got, rtt, want)
			}
			return nil
		})
	}
	ask("an open port", there, open, probe.Answered)
	ask("a closed port", there, 10250, probe.Answered)
	ask("nobody", "192.0.2.3", 10250, probe.Failed)
	within(t, far, func() error { return down("eth0") })
	ask("a cable that is out", there, 10250, probe.Failed)
}

func raise(name, addr string) error {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if addr != "" {
		a, err := netlink.ParseAddr(addr + "/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(dev, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(dev)
}

func down(name string) error {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetDown(dev)
}

func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	made := make(chan netns.NsHandle, 1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		ns, err := netns.New()
		if err != nil {
			failed <- err
			return
		}
		made <- ns
	}()
	select {
	case err := <-failed:
		t.Fatal(err)
	case ns := <-made:
		t.Cleanup(func() { ns.Close() })
		return ns
	}
	return -1
}

// within runs f in a network namespace, on a thread of its own that ends with it.
func within(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		result <- errors.Join(netns.Set(ns), f())
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}
