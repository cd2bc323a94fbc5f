package server

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// campaign returns how much of something a test does: a bounded amount, or all
// of it where the environment asks for the long version.
func campaign(short, long int) int {
	if os.Getenv("CLUSTERMESH_CAMPAIGN") != "" {
		return long
	}
	return short
}

// guest is a configured peer of a test and what makes its certificates.
type guest struct {
	ca   *authority
	peer *peers.Peer
}

func newGuest(t testing.TB, name string, id peers.Identity, v peers.View) guest {
	ca := newAuthority(t)
	return guest{ca: ca, peer: &peers.Peer{Name: name, CAs: []*x509.Certificate{ca.cert}, Identity: id, View: v}}
}

// again is the same peer in another state.
func (g guest) again(change func(*peers.Peer)) guest {
	p := &peers.Peer{
		Name: g.peer.Name, CAs: g.peer.CAs, Identity: g.peer.Identity, View: g.peer.View,
		Expires: g.peer.Expires, Revoked: g.peer.Revoked, SharesCAWith: g.peer.SharesCAWith,
	}
	change(p)
	g.peer = p
	return g
}

// identify puts an identity into a certificate.
func identify(id peers.Identity) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		if id.URI != "" {
			u, err := url.Parse(id.URI)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, u)
		}
		if id.DNS != "" {
			c.DNSNames = append(c.DNSNames, id.DNS)
		}
		c.Subject = pkix.Name{CommonName: id.CommonName}
	}
}

// cert issues a certificate of the peer; change may alter it afterwards.
func (g guest) cert(change ...func(*x509.Certificate)) tls.Certificate {
	return g.ca.client("", append([]func(*x509.Certificate){identify(g.peer.Identity)}, change...)...)
}

// with is the TLS configuration of a client with a certificate, for the world's
// server.
func (w *world) with(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: certs, RootCAs: w.ca.pool(), NextProtos: []string{"h2"}, ServerName: "127.0.0.1"}
}

func (w *world) dialWith(cfg *tls.Config, opts ...grpc.DialOption) *grpc.ClientConn {
	w.t.Helper()
	opts = append(opts, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	c, err := grpc.NewClient("passthrough:///"+w.s.Addr().String(), opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

func (w *world) dialAs(g guest, opts ...grpc.DialOption) *grpc.ClientConn {
	w.t.Helper()
	return w.dialWith(w.with(g.cert()), opts...)
}

// admit puts the guests in force.
func admit(t testing.TB, set *peers.Set, guests ...guest) {
	t.Helper()
	var list []*peers.Peer
	for _, g := range guests {
		list = append(list, g.peer)
	}
	table, err := peers.NewTable(list...)
	if err != nil {
		t.Fatal(err)
	}
	set.Replace(table)
}

// startPeers runs a server that admits the guests.
func startPeers(t testing.TB, guests []guest, change ...func(*Config)) (*world, *peers.Set) {
	t.Helper()
	set := peers.NewSet()
	admit(t, set, guests...)
	w := start(t, append([]func(*Config){func(c *Config) { c.Peers = set }}, change...)...)
	return w, set
}

var (
	everything = peers.View{All: true}
	shopOnly   = peers.View{Namespaces: []string{"shop"}, Services: []peers.Service{
		{Namespace: "web", Name: "api"}, {Namespace: "web", Name: longNames()[0]}, {Namespace: "web", Name: longNames()[2]},
	}, Nodes: true}
)

func westGuest(t testing.TB) guest {
	return newGuest(t, "west", peers.Identity{URI: "spiffe://west.example/clustermesh"}, everything)
}

func northGuest(t testing.TB) guest {
	return newGuest(t, "north", peers.Identity{DNS: "agents.north.example"}, shopOnly)
}

func ciliumGuest(t testing.TB) guest {
	return newGuest(t, "cilium", peers.Identity{CommonName: "remote"}, everything)
}

// class is a kind of valid certificate.
type class struct {
	name string
	conn *grpc.ClientConn
	sees func(key string) bool // written apart from the product's own filter
}

func remoteSees(key string) bool {
	for _, p := range []string{"cilium/.heartbeat", "cilium/state/", "cilium/synced/east/", "clustermesh/markers/east/"} {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return key == "cilium/cluster-config/east"
}

func localSees(key string) bool {
	for _, p := range []string{"cilium/cache/", "cilium/cluster-config/", "cilium/synced/", "clustermesh/"} {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return remoteSees(key)
}

// shopSees is what shopOnly means.
func shopSees(key string) bool {
	if !strings.HasPrefix(key, "cilium/state/") {
		return remoteSees(key)
	}
	parts := strings.Split(strings.TrimPrefix(key, "cilium/state/"), "/")
	if parts[0] == "nodes" {
		return len(parts) > 3 && parts[1] == "v1" && parts[2] == "east"
	}
	named := parts[0] == "services" || parts[0] == "serviceexports" || parts[0] == "endpointslices"
	if !named || len(parts) < 5 || parts[1] != "v1" || parts[2] != "east" {
		return false
	}
	if parts[3] == "shop" {
		return true
	}
	if parts[3] != "web" || len(parts) != 5 {
		return false
	}
	long := longNames()
	switch name := parts[4]; {
	case name == "api" || name == long[0] || name == long[2]:
		return true
	case parts[0] != "endpointslices" || len(name) < 6:
		return false
	default: // of the names that are made for slices of long[0], all could be another's
		service, suffix := name[:len(name)-6], name[len(name)-6:]
		return (service == "api" || service == long[2]) && suffix[0] == '-' && strings.Trim(suffix[1:], "bcdfghjklmnpqrstvwxz2456789") == ""
	}
}

// classes starts a server with peers and one without, and returns a connection
// for every class of certificate that they admit.
func classes(t testing.TB, change ...func(*Config)) (worlds []*world, all []class) {
	west, north, cilium := westGuest(t), northGuest(t), ciliumGuest(t)
	w, _ := startPeers(t, []guest{west, north, cilium}, change...)
	old := start(t, change...)
	return []*world{w, old}, []class{
		{"peer by URI", w.dialAs(west), remoteSees},
		{"peer by DNS, restricted", w.dialAs(north), shopSees},
		{"peer by common name", w.dialAs(cilium), remoteSees},
		{"own agent beside peers", w.dial("local-" + testCluster), localSees},
		{"remote", old.dial("remote"), remoteSees},
		{"remote-west", old.dial("remote-west"), remoteSees},
		{"own agent", old.dial("local-" + testCluster), localSees},
	}
}

// generous lifts the limits of requests, for tests of something else.
func generous(c *Config) {
	c.Limits.RequestsPerSecond, c.Limits.Peer.RequestsPerSecond = 1e9, 1e9
	c.Limits.CreatesPerSecond, c.Limits.Peer.CreatesPerSecond = 1e9, 1e9
	patient(c)
}

// patient gives everybody all the processor time there is, for tests of what else
// holds.
func patient(c *Config) {
	l := &c.Limits
	l.HandshakeBurst, l.Burst, l.Peer.Burst, l.Peer.PeakShare = time.Hour, time.Hour, time.Hour, 1
}

func rangeOf(key, end string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)}
}

// peerMetric returns how often a peer was refused for a reason.
func (w *world) peerMetric(peer, reason string) float64 {
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "clustermesh_gateway_peer_refusals_total" && hasLabel(m, peer) && hasLabel(m, reason) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}
