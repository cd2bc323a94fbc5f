package server

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// forge makes certificate chains link by link, without the checks of an honest
// CA.
type forge struct {
	t    testing.TB
	tmpl *x509.Certificate // of the leaf
	key  crypto.Signer     // of the leaf
	// links are what lies between leaf and root, from the leaf up.
	links []*x509.Certificate
	root  *authority
	sent  func(chain [][]byte) [][]byte // last change of what is sent
	hold  crypto.Signer                 // the key that the client really has; nil: the leaf's
}

func newForge(t testing.TB, g guest) *forge {
	f := &forge{t: t, root: g.ca, key: newKey(t), tmpl: &x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}}
	identify(g.peer.Identity)(f.tmpl)
	return f
}

func linkTemplate(change ...func(*x509.Certificate)) *x509.Certificate {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: "link"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		SubjectKeyId: []byte(rand.Text()),
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// complete sets what a template left open.
func complete(c *x509.Certificate) {
	c.SerialNumber = big.NewInt(mrand.Int64())
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
}

// build signs everything from the root down.
func (f *forge) build() (tls.Certificate, error) {
	parent, signer := f.root.cert, crypto.Signer(f.root.key)
	var chain [][]byte
	all := append(slices.Clone(f.links), nil)
	slices.Reverse(all) // nil, the place of the root, is first
	for i, tmpl := range append(all[1:], f.tmpl) {
		key := f.key
		if i < len(f.links) {
			key = newKey(f.t)
		}
		complete(tmpl)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
		if err != nil {
			return tls.Certificate{}, err
		}
		if parent, err = x509.ParseCertificate(der); err != nil {
			return tls.Certificate{}, err
		}
		signer, chain = key, append([][]byte{der}, chain...)
	}
	if f.sent != nil {
		chain = f.sent(chain)
	}
	if f.hold == nil {
		f.hold = f.key
	}
	return tls.Certificate{Certificate: chain, PrivateKey: f.hold}, nil
}

// flaw is one thing that is wrong with a certificate or its chain.
type flaw struct {
	name string
	do   func(f *forge)
}

func onLeaf(name string, do func(*x509.Certificate)) flaw {
	return flaw{name, func(f *forge) { do(f.tmpl) }}
}

// flaws lists all kinds of bad certificates for a guest; other is another one.
func flaws(g, other guest, w *world) []flaw {
	all := append(timeFlaws(), usageFlaws()...)
	all = append(all, nameFlaws(other)...)
	all = append(all, chainFlaws()...)
	all = append(all, sentFlaws(g)...)
	return append(all, rootFlaws(g, other, w)...)
}

func timeFlaws() (all []flaw) {
	for _, ago := range []time.Duration{time.Second, time.Minute, time.Hour, 24 * time.Hour, 365 * 24 * time.Hour} {
		all = append(all,
			onLeaf(fmt.Sprintf("expired %v ago", ago), func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(-2*ago-time.Hour), time.Now().Add(-ago)
			}),
			onLeaf(fmt.Sprintf("valid in %v", ago+time.Minute), func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(ago+time.Minute), time.Now().Add(2*ago+time.Hour)
			}))
	}
	return all
}

func usageFlaws() (all []flaw) {
	for _, u := range [][]x509.ExtKeyUsage{
		nil, {x509.ExtKeyUsageServerAuth}, {x509.ExtKeyUsageAny}, {x509.ExtKeyUsageCodeSigning}, {x509.ExtKeyUsageEmailProtection},
		{x509.ExtKeyUsageOCSPSigning, x509.ExtKeyUsageServerAuth}, {x509.ExtKeyUsageTimeStamping}, {x509.ExtKeyUsageIPSECUser},
	} {
		all = append(all, onLeaf(fmt.Sprintf("usages %v", u), func(c *x509.Certificate) { c.ExtKeyUsage = u }))
	}
	for _, u := range []x509.KeyUsage{x509.KeyUsageCertSign, x509.KeyUsageKeyEncipherment, x509.KeyUsageCRLSign, x509.KeyUsageKeyAgreement} {
		all = append(all, onLeaf(fmt.Sprintf("key usage %d", u), func(c *x509.Certificate) { c.KeyUsage = u }))
	}
	return append(all,
		onLeaf("is a CA", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
		onLeaf("is a CA that signs", func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}),
		onLeaf("unknown critical extension", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}),
		flaw{"RSA 1024", func(f *forge) { f.key = must(rsa.GenerateKey(rand.Reader, 1024)) }},
		flaw{"RSA 1536", func(f *forge) { f.key = must(rsa.GenerateKey(rand.Reader, 1536)) }},
		flaw{"P-224", func(f *forge) { f.key = must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)) }},
	)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// nameFlaws are names that are nearly right.
func nameFlaws(other guest) (all []flaw) {
	set := func(name string, id peers.Identity) {
		all = append(all, onLeaf("name "+name, func(c *x509.Certificate) {
			c.URIs, c.DNSNames, c.Subject = nil, nil, pkix.Name{}
			identify(id)(c)
		}))
	}
	set("missing", peers.Identity{})
	set("of another peer", other.peer.Identity)
	for _, u := range []string{
		"spiffe://west.example/clustermesh/", "spiffe://west.example/clustermes", "spiffe://west.example//clustermesh", "spiffe://west.example/Clustermesh",
		"spiffe://west.example", "spiffe://evil.example/clustermesh", "spiffe://west.example.evil/clustermesh", "spiffe://west.example:1/clustermesh",
		"spiffe://x@west.example/clustermesh", "https://west.example/clustermesh", "spiffe://west.example/clustermesh?", "spiffe://west.example/./clustermesh",
		"spiffe://west.example/%63lustermesh", "spiffe://WEST.example/clustermesh",
	} {
		set(u, peers.Identity{URI: u})
	}
	for _, d := range []string{"*.north.example", "north.example", "agents.north.example.", "Agents.north.example", "x.agents.north.example", "agents.north.exampl", "*", "west.example"} {
		set(d, peers.Identity{DNS: d})
	}
	for _, cn := range []string{
		"root", "admin-east", "remote-", "remote ", " remote", "Remote", "remote-west", "local", "local-east", "local-west", "remote\x00", "remote,CN=remote", "remotе",
		"spiffe://west.example/clustermesh", "agents.north.example",
	} {
		set("CN "+cn, peers.Identity{CommonName: cn})
	}
	for _, ip := range []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(192, 0, 2, 7), net.IPv6loopback} {
		all = append(all, onLeaf("address "+ip.String()+" instead of a name", func(c *x509.Certificate) {
			c.URIs, c.DNSNames, c.Subject = nil, nil, pkix.Name{}
			c.IPAddresses = []net.IP{ip}
		}))
	}
	return append(all,
		onLeaf("two common names", func(c *x509.Certificate) {
			c.URIs, c.DNSNames = nil, nil
			c.Subject = pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: commonNameOID(), Value: "root"}, {Type: commonNameOID(), Value: "remote"}}}
		}),
		onLeaf("URI names of two peers", func(c *x509.Certificate) {
			c.DNSNames, c.Subject = nil, pkix.Name{}
			identify(peers.Identity{URI: "spiffe://west.example/clustermesh"})(c)
			identify(peers.Identity{URI: "spiffe://x.example/y"})(c)
		}),
		onLeaf("name in the e-mail address", func(c *x509.Certificate) {
			c.URIs, c.DNSNames, c.Subject = nil, nil, pkix.Name{}
			c.EmailAddresses = []string{"remote@west.example"}
		}))
}

func commonNameOID() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 4, 3} }

// chainFlaws are wrong links between leaf and root.
func chainFlaws() (all []flaw) {
	link := func(name string, links ...*x509.Certificate) {
		all = append(all, flaw{"link " + name, func(f *forge) {
			f.links = nil
			for _, l := range links {
				c := *l // each build signs its own
				f.links = append(f.links, &c)
			}
		}})
	}
	link("is no CA", linkTemplate(func(c *x509.Certificate) { c.IsCA = false }))
	link("has no basic constraints", linkTemplate(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false }))
	link("may not sign", linkTemplate(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }))
	link("expired", linkTemplate(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}))
	link("not yet valid", linkTemplate(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	}))
	link("for servers only", linkTemplate(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }))
	link("for other names", linkTemplate(func(c *x509.Certificate) {
		c.PermittedDNSDomainsCritical = true
		c.PermittedDNSDomains, c.PermittedURIDomains = []string{"elsewhere.example"}, []string{"elsewhere.example"}
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}} // for peers by common name
	}))
	link("below one that allows none", linkTemplate(), linkTemplate(func(c *x509.Certificate) { c.MaxPathLenZero = true }))
	link("unknown critical extension", linkTemplate(func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
	}))
	link("too many", linkTemplate(), linkTemplate(), linkTemplate(), linkTemplate(), linkTemplate())
	return all
}

// sentFlaws change what goes over the wire.
func sentFlaws(g guest) (all []flaw) {
	send := func(name string, change func([][]byte) [][]byte) {
		all = append(all, flaw{"sent " + name, func(f *forge) { f.sent = change }})
	}
	flip := func(where func(n int) int) func([][]byte) [][]byte {
		return func(c [][]byte) [][]byte {
			c[0] = slices.Clone(c[0])
			c[0][where(len(c[0]))] ^= 1
			return c
		}
	}
	send("with a changed signature", flip(func(n int) int { return n - 5 }))
	send("with a changed body", flip(func(int) int { return 20 }))
	send("with changed extensions", flip(func(n int) int { return n * 2 / 3 }))
	send("the CA first", func(c [][]byte) [][]byte { return append([][]byte{g.ca.cert.Raw}, c...) })
	send("the CA alone", func([][]byte) [][]byte { return [][]byte{g.ca.cert.Raw} })
	send("cut off", func(c [][]byte) [][]byte { return [][]byte{c[0][:len(c[0])-1]} })
	send("with something behind", func(c [][]byte) [][]byte { return [][]byte{append(slices.Clone(c[0]), 0)} })
	send("as an empty certificate", func([][]byte) [][]byte { return [][]byte{{}} })
	send("as no certificate", func([][]byte) [][]byte { return nil })
	send("with the CA ten times", func(c [][]byte) [][]byte { return append(c, slices.Repeat([][]byte{g.ca.cert.Raw}, 10)...) })
	return append(all,
		flaw{"another's key", func(f *forge) { f.hold = newKey(f.t) }},
		flaw{"without its link", func(f *forge) {
			f.links, f.sent = []*x509.Certificate{linkTemplate()}, func(c [][]byte) [][]byte { return c[:1] }
		}})
}

// rootFlaws are chains that end elsewhere.
func rootFlaws(g, other guest, w *world) (all []flaw) {
	root := func(name string, a *authority, more ...[]byte) {
		all = append(all, flaw{"root " + name, func(f *forge) {
			f.root = a
			f.sent = func(c [][]byte) [][]byte { return append(c, more...) }
		}})
	}
	stranger := newAuthority(w.t)
	sameName := newAuthority(w.t)
	root("of a stranger", stranger)
	root("of a stranger, beside ours", stranger, g.ca.cert.Raw)
	root("of a stranger, sent along", stranger, stranger.cert.Raw)
	root("with our CA's name", sameName, sameName.cert.Raw)
	root("of another peer", other.ca)
	root("of another peer, beside ours", other.ca, g.ca.cert.Raw)
	root("of our own agents", w.ca)
	return append(all, flaw{"root none: signed by itself", func(f *forge) {
		self := &authority{t: f.t, key: f.key.(*ecdsa.PrivateKey), cert: f.tmpl}
		f.root = self
	}})
}

// TestA07_BadCertificates tries every flaw for every kind of identity, and in the
// campaign pairs of them; none may be accepted, and every good one is.
func TestA07_BadCertificates(t *testing.T) {
	west, north, cilium := westGuest(t), northGuest(t), ciliumGuest(t)
	w, _ := startPeers(t, []guest{west, north, cilium}, patient, func(c *Config) { c.Log = nil })
	guests := []guest{west, north, cilium}
	agents := guest{ca: w.ca, peer: &peers.Peer{Identity: peers.Identity{CommonName: "local-" + testCluster}}}
	bad, unmade := 0, 0
	try := func(g guest, some ...flaw) {
		f := newForge(t, g)
		var name []string
		for _, s := range some {
			s.do(f)
			name = append(name, s.name)
		}
		cert, err := f.build()
		if err != nil { // so wrong that it cannot be encoded
			unmade++
			return
		}
		bad++
		if rightAfterAll(cert, append(guests, agents)) {
			bad--
			return
		}
		if err := shake(w, w.with(cert)); err == nil {
			t.Errorf("%s: accepted with %s", g.peer.Name, strings.Join(name, " and "))
		}
	}
	for i, g := range guests {
		all := flaws(g, guests[(i+1)%3], w)
		for _, one := range all {
			try(g, one)
		}
		r := mrand.New(mrand.NewPCG(7, uint64(i)))
		for range campaign(0, 3_500) {
			try(g, all[r.IntN(len(all))], all[r.IntN(len(all))])
		}
	}
	good := goodCertificates(t, w, guests)
	t.Logf("%d bad certificates and chains (%d more could not be encoded): 0 accepted; %d good ones: all accepted", bad, unmade, good)
	if bad < 200 {
		t.Errorf("only %d bad certificates", bad)
	}
}

// rightAfterAll finds the few that a flaw made right: a name that is exactly
// that of a peer whose CA signed it.
func rightAfterAll(cert tls.Certificate, guests []guest) bool {
	if len(cert.Certificate) == 0 {
		return false
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil || leaf.IsCA {
		return false
	}
	for _, g := range guests {
		id, named := g.peer.Identity, false
		for _, u := range leaf.URIs {
			named = named || id.URI != "" && u.String() == id.URI && len(leaf.URIs) == 1
		}
		named = named || id.DNS != "" && slices.Contains(leaf.DNSNames, id.DNS) || id.CommonName != "" && leaf.Subject.CommonName == id.CommonName && len(leaf.Subject.Names) == 1
		flawless := slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && leaf.KeyUsage == x509.KeyUsageDigitalSignature &&
			time.Now().Before(leaf.NotAfter) && time.Now().After(leaf.NotBefore) && len(leaf.UnhandledCriticalExtensions) == 0
		if ours := leaf.CheckSignatureFrom(g.ca.cert) == nil; ours && named && flawless && strongKey(leaf) {
			return holdsKey(cert, leaf)
		}
	}
	return false
}

func holdsKey(cert tls.Certificate, leaf *x509.Certificate) bool {
	have, err := x509.MarshalPKIXPublicKey(cert.PrivateKey.(crypto.Signer).Public())
	return err == nil && sha256.Sum256(have) == sha256.Sum256(leaf.RawSubjectPublicKeyInfo) && len(cert.Certificate) <= 5
}

func strongKey(c *x509.Certificate) bool {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048
	case *ecdsa.PublicKey:
		return k.Params().BitSize >= 256
	}
	return true
}

// goodCertificates tries every kind of key, with and without links.
func goodCertificates(t *testing.T, w *world, guests []guest) (n int) {
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{
		"P-256": newKey(t), "P-384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), "P-521": must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		"RSA 2048": must(rsa.GenerateKey(rand.Reader, 2048)), "Ed25519": edwards,
	}
	for _, g := range guests {
		for kind, key := range keys {
			for links := range 3 {
				f := newForge(t, g)
				f.key = key
				for range links {
					f.links = append(f.links, linkTemplate())
				}
				if err := shake(w, w.with(must(f.build()))); err != nil {
					t.Errorf("%s: %s with %d links is refused: %v", g.peer.Name, kind, links, err)
				}
				n++
			}
		}
	}
	if err := shake(w, w.with(w.ca.client("local-"+testCluster))); err != nil {
		t.Errorf("own agent is refused: %v", err)
	}
	return n + 1
}
