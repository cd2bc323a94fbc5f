package mesh_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/agent/mesh"
)

// TestDeniedAddresses: an address that means something else here never becomes
// a backend; the others of the same record do.
func TestDeniedAddresses(t *testing.T) {
	for _, bad := range []string{
		"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.8.8.8", "169.254.0.1", "169.254.169.254", "224.0.0.1", "239.1.1.1", "255.255.255.255",
		"::", "::1", "::10.0.0.9", "fe80::1", "ff02::1", "fd00:ec2::254", "10.96.0.17", "10.0.3.4",
	} {
		cfg := config()
		cfg.Deny = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("::ffff:10.0.0.0/112")}
		m := joined(t, cfg, remote)
		m.Apply(remote, []mesh.Change{far(remote, "cart", bad, "10.1.0.2")})
		wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.2")
		if got := rejections(status(m, remote)); got != "address keys=1 total=1" {
			t.Errorf("%s: %s", bad, got)
		}
		if !strings.Contains(status(m, remote).Rejections[0].Last, netip.MustParseAddr(bad).String()) {
			t.Errorf("%s is not named", bad)
		}
	}
}

// TestAddressesOfASpecialMeaning: what leads to this host, to a link, to a cloud's
// metadata, or by a translator to any of these is denied whatever the
// configuration; what is merely unusual and that pods have somewhere is not.
func TestAddressesOfASpecialMeaning(t *testing.T) {
	for _, bad := range []string{
		"64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "2002:7f00:1::", "2002:a9fe:a9fe::1",
		"2001::1", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "::ffff:0:127.0.0.1", "::ffff:0:169.254.169.254", "fec0::1", "feff::1",
		"192.0.0.1", "192.0.0.170", "192.0.0.192", "168.63.129.16", "100.100.100.200", "fd20:ce::254", "fd00:ec2::254", "255.255.255.255",
	} {
		m := joined(t, config(), remote)
		m.Apply(remote, []mesh.Change{far(remote, "cart", bad, "10.1.0.2")})
		wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.2")
		if m.AdmitsNode(remote, netip.MustParseAddr(bad)) {
			t.Errorf("%s is admitted as a node", bad)
		}
	}
	for _, good := range []string{
		"100.64.0.1", "100.100.100.199", "100.127.255.254", "168.63.129.17", "192.0.1.1", "198.18.0.1", "240.0.0.1", "255.255.255.254",
		"64:ff9a::1", "64:ff9b:2::1", "2001:1::1", "2003::1", "fd20:ce::1", "fd00:ec2::1", "fd00:1::1", "2001:db8::1",
	} {
		m := joined(t, config(), remote)
		m.Apply(remote, []mesh.Change{far(remote, "cart", good)})
		wantBackends(t, m, "east:10.0.0.1", "west:"+good)
	}
}

func TestPolicyOfACluster(t *testing.T) {
	m := joined(t, config())
	m.AddCluster(remote, mesh.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Namespaces: []string{"shop"}})
	m.Connected(remote, announce(remote))
	m.Apply(remote, []mesh.Change{
		far(remote, "cart", "10.1.0.1", "10.2.0.1"),
		farIn(remote, lb.ServiceName{Namespace: "bank", Name: "cart"}, "10.1.0.1"),
	})
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
	if got := rejections(status(m, remote)); got != "policy keys=1 total=1; address keys=1 total=1" {
		t.Error(got)
	}
}

func TestProtectedServices(t *testing.T) {
	for _, n := range []lb.ServiceName{{Namespace: "default", Name: "kubernetes"}, {Namespace: "kube-system", Name: "kube-dns"}} {
		m := joined(t, config(), remote)
		m.Apply(own, []mesh.Change{localIn(n)})
		m.Apply(remote, []mesh.Change{farIn(remote, n, "10.1.0.66")})
		if got := backends(m, n); len(got) != 1 || got[0] != "east:10.0.0.1" {
			t.Errorf("%s has %v", n, got)
		}
	}
}

func localIn(n lb.ServiceName) mesh.Change {
	ch := local(n.Name)
	ch.Key = keyOf(own, n)
	ch.Value = []byte(strings.Replace(string(ch.Value), `"shop"`, `"`+n.Namespace+`"`, 1))
	return ch
}

// TestRejectionsAreRemembered: per reason, with what is refused now, how often
// anything was, and the latest example; mending a key takes it off.
func TestRejectionsAreRemembered(t *testing.T) {
	m := joined(t, config(), remote)
	good := far(remote, "cart", "10.1.0.1")
	foreign := far("north", "cart", "10.3.0.1")
	foreign.Key = good.Key
	other := far(remote, "cart", "10.1.0.1")
	other.Key = keyOf("north", svc("cart"))
	m.Apply(remote, []mesh.Change{{Key: good.Key, Value: []byte("{")}})
	wantBackends(t, m, "east:10.0.0.1")
	m.Apply(remote, []mesh.Change{{Key: good.Key, Value: []byte("[]")}, foreign, other})
	if got, want := rejections(status(m, remote)), "key keys=1 total=1; value keys=0 total=2; owner keys=1 total=1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	m.Apply(remote, []mesh.Change{good, {Key: other.Key, Deleted: true}})
	if got, want := rejections(status(m, remote)), "key keys=0 total=1; value keys=0 total=2; owner keys=0 total=1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	wantBackends(t, m, "east:10.0.0.1", "west:10.1.0.1")
}

// TestLimitsOfACluster: what one cluster may fill is bounded; what fits stays.
func TestLimitsOfACluster(t *testing.T) {
	cfg := config()
	cfg.MaxServices, cfg.MaxBackends = 2, 3
	m := joined(t, cfg, remote, "north")
	m.Apply(remote, []mesh.Change{far(remote, "a", "10.1.0.1"), far(remote, "b", "10.1.0.1"), far(remote, "cart", "10.1.0.1", "10.1.0.2", "10.1.0.3")})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
	s := status(m, remote)
	if s.Services != 1 || s.Backends != 1 || rejections(s) != "limit keys=2 total=2" {
		t.Errorf("%d services, %d backends, %s", s.Services, s.Backends, rejections(s))
	}
	m.Apply(remote, []mesh.Change{far(remote, "cart", "10.1.0.1", "10.1.0.2")})
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1", "west:10.1.0.2")
}

// TestHostileClusterTouchesNobody: a cluster that floods names, zones and bad
// keys leaves nothing behind, and no other service becomes dirty.
func TestHostileClusterTouchesNobody(t *testing.T) {
	m := joined(t, config(), remote, "north")
	for i := range 3000 {
		m.Apply(remote, []mesh.Change{
			far(remote, fmt.Sprintf("junk-%d", i), "10.1.0.1"),
			{Key: keyOf(remote, svc(fmt.Sprintf("bad-%d", i))), Value: []byte(strings.Repeat("x", i%100))},
			{Key: fmt.Sprintf("cilium/elsewhere/%d", i), Value: []byte("{}")},
		})
	}
	if dirty := m.Dirty(); dirty != nil {
		t.Errorf("dirty %v", dirty)
	}
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1", "west:10.1.0.1")
	m.RemoveCluster(remote)
	wantBackends(t, m, "east:10.0.0.1", "north:10.3.0.1")
}

func TestConfigReportsEveryProblem(t *testing.T) {
	err := mesh.Config{LocalCluster: "UPPER", LocalID: 300, MaxClusters: 255, MaxServices: -1, Deny: make([]netip.Prefix, 1)}.Validate()
	for _, want := range []string{"LocalCluster", "LocalID", "MaxServices", "Deny[0]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if err := config().Validate(); err != nil {
		t.Error(err)
	}
}
