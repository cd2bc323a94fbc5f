package peers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
)

const westURI = "spiffe://west.example/clustermesh"

func peer(name string, id Identity, cas ...*authority) *Peer {
	p := &Peer{Name: name, Identity: id, View: View{All: true}}
	for _, a := range cas {
		p.CAs = append(p.CAs, a.cert)
	}
	return p
}

func table(t *testing.T, list ...*Peer) *Table {
	t.Helper()
	tab, err := NewTable(list...)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestEachPeerIsFoundByItsOwnCAAndName(t *testing.T) {
	west, north, cilium, other := newAuthority(t, "CA"), newAuthority(t, "CA"), newAuthority(t, "CA"), newAuthority(t, "CA")
	tab := table(t,
		peer("west", Identity{URI: westURI}, west),
		peer("north", Identity{DNS: "agents.north.example"}, north),
		peer("old", Identity{CommonName: "remote"}, cilium),
		peer("older", Identity{CommonName: "remote"}, other))
	below := west.intermediate("issuing")
	for _, test := range []struct {
		chain []*x509.Certificate
		want  string
	}{
		{[]*x509.Certificate{west.leaf(withURI(westURI))}, "west"},
		{[]*x509.Certificate{west.leaf(withURI(westURI), withCN("root"), withDNS("x.example"))}, "west"},
		{[]*x509.Certificate{below.leaf(withURI(westURI)), below.cert}, "west"},
		{[]*x509.Certificate{north.leaf(withDNS("other.example", "agents.north.example"))}, "north"},
		{[]*x509.Certificate{cilium.leaf(withCN("remote"))}, "old"},
		{[]*x509.Certificate{other.leaf(withCN("remote"))}, "older"},
	} {
		p, until, err := tab.Authenticate(test.chain, time.Now())
		if err != nil || p.Name != test.want || !until.Equal(test.chain[0].NotAfter) {
			t.Errorf("%s: %v, until %v, %v", test.want, p, until, err)
		}
	}
}

func TestRefusedCertificates(t *testing.T) {
	west, north, stranger := newAuthority(t, "CA"), newAuthority(t, "CA"), newAuthority(t, "CA")
	revokedOne := west.leaf(withURI(westURI))
	wp := peer("west", Identity{URI: westURI}, west)
	wp.RevokedCertificates = append(wp.RevokedCertificates, sha256.Sum256(revokedOne.Raw))
	gone := newAuthority(t, "gone")
	gp := peer("gone", Identity{DNS: "gone.example"}, gone)
	gp.Revoked = true
	late := newAuthority(t, "late")
	lp := peer("late", Identity{DNS: "late.example"}, late)
	lp.Expires = time.Now().Add(-time.Second)
	tab := table(t, wp, gp, lp, peer("north", Identity{DNS: "north.example"}, north))
	server := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	anyUse := func(c *x509.Certificate) { c.ExtKeyUsage = nil }
	asCA := func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }
	old := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	soon := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }
	below := west.intermediate("below")
	unsigning := *caTemplate("cannot sign")
	unsigning.IsCA = false
	weak := &authority{t: t, key: newKey(t)}
	weak.cert = west.sign(&unsigning, weak.key.Public())
	for _, test := range []struct {
		name  string
		chain []*x509.Certificate
		want  Reason
	}{
		{"none", nil, NoCertificate},
		{"no name", []*x509.Certificate{west.leaf()}, WrongName},
		{"other peer's name", []*x509.Certificate{west.leaf(withDNS("north.example"))}, UnknownCA},
		{"other CA", []*x509.Certificate{stranger.leaf(withURI(westURI))}, UnknownCA},
		{"other peer's CA", []*x509.Certificate{north.leaf(withURI(westURI))}, UnknownCA},
		{"name in CN", []*x509.Certificate{west.leaf(withCN(westURI))}, WrongName},
		{"name in DNS", []*x509.Certificate{west.leaf(withDNS("west.example"))}, WrongName},
		{"longer URI", []*x509.Certificate{west.leaf(withURI(westURI + "/x"))}, WrongName},
		{"empty fragment", []*x509.Certificate{west.leaf(withURI(westURI + "?"))}, WrongName},
		{"two URIs", []*x509.Certificate{west.leaf(withURI(westURI, westURI+"2"))}, WrongName},
		{"wildcard", []*x509.Certificate{north.leaf(withDNS("*.example"))}, WrongName},
		{"upper case", []*x509.Certificate{north.leaf(withDNS("North.example"))}, WrongName},
		{"expired", []*x509.Certificate{west.leaf(withURI(westURI), old)}, Expired},
		{"not yet", []*x509.Certificate{west.leaf(withURI(westURI), soon)}, Expired},
		{"server's", []*x509.Certificate{west.leaf(withURI(westURI), server)}, WrongUsage},
		{"no usage", []*x509.Certificate{west.leaf(withURI(westURI), anyUse)}, WrongUsage},
		{"a CA", []*x509.Certificate{west.leaf(withURI(westURI), asCA)}, WrongUsage},
		{"the CA itself", []*x509.Certificate{west.cert}, WrongUsage},
		{"missing intermediate", []*x509.Certificate{below.leaf(withURI(westURI))}, UnknownCA},
		{"leaf as intermediate", []*x509.Certificate{weak.leaf(withURI(westURI)), weak.cert}, UnknownCA},
		{"long chain", append([]*x509.Certificate{west.leaf(withURI(westURI))}, stranger.cert, stranger.cert, stranger.cert, stranger.cert, stranger.cert), UnknownCA},
		{"revoked certificate", []*x509.Certificate{revokedOne}, Revoked},
		{"revoked peer", []*x509.Certificate{gone.leaf(withDNS("gone.example"))}, Revoked},
		{"expired peer", []*x509.Certificate{late.leaf(withDNS("late.example"))}, Expired},
	} {
		_, _, err := tab.Authenticate(test.chain, time.Now())
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Reason != test.want {
			t.Errorf("%s: %v, want %s", test.name, err, test.want)
		}
	}
}

func TestWeakKeys(t *testing.T) {
	west := newAuthority(t, "CA")
	tab := table(t, peer("west", Identity{URI: westURI}, west))
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := func() *x509.Certificate {
		c := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		withURI(westURI)(c)
		return c
	}
	weakCA := &authority{t: t, key: p224}
	weakCA.cert = west.sign(caTemplate("weak"), p224.Public())
	for name, chain := range map[string][]*x509.Certificate{
		"RSA 1024": {west.sign(tmpl(), small.Public())},
		"P-224":    {west.sign(tmpl(), p224.Public())},
		"weak CA":  {weakCA.leaf(withURI(westURI)), weakCA.cert},
	} {
		_, _, err := tab.Authenticate(chain, time.Now())
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Reason != WeakKey {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAccessEndsWithTheFirstOfItsReasons(t *testing.T) {
	now := time.Now()
	west := newAuthority(t, "CA")
	soon := now.Add(10 * time.Minute).Truncate(time.Second)
	below := &authority{t: t, key: newKey(t)}
	short := caTemplate("short")
	short.NotAfter = soon
	below.cert = west.sign(short, below.key.Public())
	p := peer("west", Identity{URI: westURI}, west)
	_, until, err := table(t, p).Authenticate([]*x509.Certificate{below.leaf(withURI(westURI)), below.cert}, now)
	if err != nil || !until.Equal(soon) {
		t.Errorf("with a CA that ends first: %v, %v", until, err)
	}
	q := peer("west", Identity{URI: westURI}, west)
	q.Expires = now.Add(time.Minute)
	_, until, err = table(t, q).Authenticate([]*x509.Certificate{west.leaf(withURI(westURI))}, now)
	if err != nil || !until.Equal(q.Expires) {
		t.Errorf("with a peer that ends first: %v, %v", until, err)
	}
}

func TestSharedCAs(t *testing.T) {
	ca := newAuthority(t, "CA")
	below := ca.intermediate("below")
	again := *ca
	again.cert = nil
	again.cert = again.sign(caTemplate("renewed"), ca.key.Public())
	shares := func(p *Peer, with string) *Peer { p.SharesCAWith = []string{with}; return p }
	a, b := Identity{URI: "x://a/"}, Identity{URI: "x://b/"}
	for _, test := range []struct {
		name string
		p, q *Peer
		want string
	}{
		{"same", peer("p", a, ca), peer("q", b, ca), "trusts it too"},
		{"same key", peer("p", a, ca), peer("q", b, &again), "trusts it too"},
		{"one signed the other", peer("p", a, ca), peer("q", b, below), "trusts it too"},
		{"one signed the other, turned", peer("p", a, below), peer("q", b, ca), "trusts it too"},
		{"one side says so", shares(peer("p", a, ca), "q"), peer("q", b, ca), "trusts it too"},
		{"both say so", shares(peer("p", a, ca), "q"), shares(peer("q", b, ca), "p"), ""},
		{"same name too", shares(peer("p", a, ca), "q"), shares(peer("q", a, ca), "p"), "name of its own"},
		{"same peer name", peer("p", a, ca), peer("p", b, newAuthority(t, "CA")), "used twice"},
		{"equal subjects only", peer("p", a, ca), peer("q", b, newAuthority(t, "CA")), ""},
	} {
		_, err := NewTable(test.p, test.q)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	tab := table(t, shares(peer("p", a, ca), "q"), shares(peer("q", Identity{DNS: "q.example"}, ca), "p"))
	_, _, err := tab.Authenticate([]*x509.Certificate{ca.leaf(withURI("x://a/"), withDNS("q.example"))}, time.Now())
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Reason != Ambiguous {
		t.Errorf("a certificate of two peers: %v", err)
	}
}
