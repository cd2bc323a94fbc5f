package bpf

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/bpf/bpftest"
	"github.com/clustermesh/clustermesh/bpf/layout"
)

// place is where the sockets of some cases are: in the node's own network
// namespace, as those of its processes and of pods on its network, or in a pod's.
type place struct {
	name   string
	host   bool
	client *client
}

const (
	hostAddr4, hostAddr6 = "10.3.0.1", "fd00:3::1"
	podAddr4, podAddr6   = "10.3.0.2", "fd00:3::2"
	// nodePort is also where a pod serves on its own loopback.
	nodePort = "30080"
)

// newPlaces makes a pod beside the node, which is this test's network namespace.
func (f *fixture) newPlaces() []place {
	f.Helper()
	pod := newNS(f.TB)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "topod"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(pod))}
	if err := netlink.LinkAdd(veth); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			f.Error(err)
		}
	})
	if err := dress("topod", hostAddr4+"/24", hostAddr6+"/64"); err != nil {
		f.Fatal(err)
	}
	places := []place{{name: "host", host: true, client: f.startClient(f.opts.Cgroup)}, {name: "pod"}}
	inNS(f.TB, pod, func() error {
		if err := dress("eth0", podAddr4+"/24", podAddr6+"/64"); err != nil {
			return err
		}
		places[1].client = f.startClient(f.opts.Cgroup) // a child of this thread
		f.awaitLocal(podAddr6)
		return nil
	})
	f.awaitLocal(hostAddr6)
	f.servePod(pod)
	return places
}

// awaitLocal waits until an address of IPv6 is usable, which is some time after
// both ends of its link are up.
func (f *fixture) awaitLocal(addr string) {
	f.Helper()
	bpftest.Eventually(f.TB, addr+" is a local address", func() error {
		routes, err := netlink.RouteGet(net.ParseIP(addr))
		if err == nil && (len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL) {
			err = fmt.Errorf("routes %v", routes)
		}
		return err
	})
}

// servePod answers as "pod" on the node port of the pod's own loopback.
func (f *fixture) servePod(pod netns.NsHandle) {
	f.Helper()
	inNS(f.TB, pod, func() error {
		for _, host := range []string{"127.0.0.1", "::1"} {
			at := net.JoinHostPort(host, nodePort)
			f.backend("pod", at, tcp)
			f.backend("pod", at, udp)
		}
		return nil
	})
}

// destination is a frontend of a case, by wire family.
type destination struct {
	name string
	addr map[string]string
	// pod is who answers a pod: the backend, or what is there without us.
	pod string
}

func destinations() []destination {
	both := func(v4, v6, port string) map[string]string {
		return map[string]string{"v4": net.JoinHostPort(v4, port), "v6": net.JoinHostPort(v6, port)}
	}
	return []destination{
		{"cluster-ip", both("10.97.0.1", "fd00:97::1", "53"), "backend"},
		{"node-port", both(hostAddr4, hostAddr6, nodePort), "backend"},
		{"node-port-on-loopback", both("127.0.0.1", "::1", nodePort), "pod"},
	}
}

// insert makes a frontend of a scope.
func (f *fixture) insert(addr string, proto, scope uint8, backends ...layout.Backend) {
	f.Helper()
	id := f.nextID
	f.nextID++
	f.next = f.publish(id, f.next, backends)
	k := key(addr, proto)
	k.Scope = scope
	if err := f.dp.InsertFrontend(k, id); err != nil {
		f.Fatal(err)
	}
}

// fillDestinations gives every destination its backend. What is for packets of
// clients outside names another, which no socket may get.
func (f *fixture) fillDestinations() {
	f.Helper()
	for family, host := range map[string]string{"v4": hostAddr4, "v6": hostAddr6} {
		for _, proto := range []uint8{tcp, udp} {
			b := f.backend("backend", net.JoinHostPort(host, "0"), proto)
			wrong := f.backend("for clients outside", net.JoinHostPort(host, "0"), proto)
			for _, d := range destinations() {
				if d.pod == "pod" {
					f.insert(d.addr[family], proto, layout.ScopeHost, b)
					continue
				}
				f.insert(d.addr[family], proto, layout.ScopeAny, b)
				f.insert(d.addr[family], proto, layout.ScopeOutside, wrong)
			}
		}
	}
}

// TestTableOfNamespaces: every hook in the node's network namespace and in a
// pod's, for every family and protocol. Cluster IPs and the node's addresses lead
// to backends from both. The loopback addresses are the node's in the one, where
// they have its node ports, and the pod's own in the other.
func TestTableOfNamespaces(t *testing.T) {
	f := newPlace(t)
	cookie, err := netnsCookie()
	if err != nil {
		t.Fatal(err)
	}
	f.opts.HostNetns = cookie
	f.load()
	places := f.newPlaces()
	f.fillDestinations()
	count := 0
	for _, p := range places {
		for _, kind := range socketKinds() {
			for _, d := range destinations() {
				count++
				t.Run(strings.Join([]string{p.name, d.name, kind.family, kind.protocol, kind.hooks}, "/"), func(t *testing.T) {
					p.try(t, kind, d)
				})
			}
		}
	}
	if count != 2*9*3 {
		t.Errorf("%d cases", count)
	}
}

func (p place) try(t *testing.T, kind tableKind, d destination) {
	t.Helper()
	addr := d.addr[strings.TrimSuffix(kind.family, "-mapped")]
	shown, who := addr, "backend"
	if kind.family == "v4-mapped" {
		shown = mapped(addr)
	}
	if !p.host {
		who = d.pod
	}
	var steps []string
	for _, s := range kind.steps {
		steps = append(steps, strings.ReplaceAll(s, "%s", addr))
	}
	r, err := p.client.ask(request{Socket: kind.socket, Steps: steps, N: 5})
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(kind.answers, shown, who); r.Outcomes[want] != 5 {
		t.Errorf("outcomes %v, want %q", r.Outcomes, want)
	}
}

// TestTheInitialNamespaceIsTheNodes unless the loader is told otherwise: this
// test is in another one.
func TestTheInitialNamespaceIsTheNodes(t *testing.T) {
	f := newFixture(t)
	b := f.backend("b", "127.0.0.2:0", tcp)
	f.insert("127.0.0.1:"+nodePort, tcp, layout.ScopeHost, b)
	f.only(f.run(3, "4 tcp", "connect 127.0.0.1:"+nodePort), "ECONNREFUSED")
	if n := f.counters(); n.Hits != 0 || n.Misses != 3 {
		t.Errorf("counters %+v, want 3 misses", n)
	}
}
