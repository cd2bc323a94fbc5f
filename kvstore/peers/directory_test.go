package peers

import (
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 15 * time.Second

// folder is a directory of peers in a test.
type folder struct {
	t    *testing.T
	path string
	d    *Directory
}

func newFolder(t *testing.T) *folder {
	path := t.TempDir()
	return &folder{t: t, path: path, d: NewDirectory(path, nil, nil)}
}

func (f *folder) write(name, text string) {
	f.t.Helper()
	temporary := filepath.Join(f.path, ".new")
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(f.path, name)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) load() {
	f.t.Helper()
	if err := f.d.Load(); err != nil {
		f.t.Fatal(err)
	}
}

// run follows the directory until the test ends.
func (f *folder) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- f.d.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Error(err)
		}
	})
}

// until waits for a table with which ok holds.
func (f *folder) until(what string, ok func(names string) bool) {
	f.t.Helper()
	timeout := time.After(patience)
	for {
		tab, changed := f.d.Set().Current()
		if ok(names(tab)) {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			f.t.Fatalf("not reached: %s; there are %q and problems %q", what, names(tab), f.d.Problems())
		}
	}
}

func names(t *Table) string {
	var s []string
	for _, p := range t.Peers() {
		s = append(s, p.Name)
	}
	return strings.Join(s, " ")
}

func indent(s string) string { return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ") }

func goodFile(ca *authority, identity string) string {
	return "ca: |\n" + indent(ca.pem()) + "\nidentity: {" + identity + "}\nsees: all\n"
}

func TestFileFormat(t *testing.T) {
	f := newFolder(t)
	ca := newAuthority(t, "CA")
	f.write("west-ca.crt", ca.pem())
	f.write("west.yaml", `
ca-file: west-ca.crt
identity:
  uri: spiffe://west.example/clustermesh
sees:
  namespaces: [shop]
  services: [web/api]
  nodes: all
  addresses: none
expires: 2130-01-31T00:00:00Z
revoked-certificates: ["`+strings.Repeat("ab", 32)+`"]
shares-ca-with: [north]
`)
	f.write("north.yaml", goodFile(newAuthority(t, "north"), "dns: north.example"))
	f.load()
	if p := f.d.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
	tab, _ := f.d.Set().Current()
	if names(tab) != "north west" {
		t.Fatal(names(tab))
	}
	p := tab.Peers()[1]
	want := View{Namespaces: []string{"shop"}, Services: []Service{{"web", "api"}}, Nodes: true}
	if !p.View.Equal(want) || p.Identity != (Identity{URI: westURI}) || p.Expires.Year() != 2130 || p.Revoked ||
		p.RevokedCertificates[0][0] != 0xab || len(p.CAs) != 1 || p.SharesCAWith[0] != "north" {
		t.Errorf("got %+v", p)
	}
	if q := tab.Peers()[0]; !q.View.All || q.Identity.DNS != "north.example" {
		t.Errorf("got %+v", q)
	}
}

func TestProblemsNameFileFieldValueAndRemedy(t *testing.T) {
	ca := newAuthority(t, "CA")
	good := goodFile(ca, "uri: "+westURI)
	leaf := ca.leaf(withCN("leaf"))
	for _, test := range []struct{ change, to, want string }{
		{"identity", "identities", `member "identities" is not known; the members are`},
		{"uri: ", "url: ", `member "identity.url" is not known`},
		{"sees: all", "sees: everything", `sees "everything": write all`},
		{"sees: all", "sees: {namespace: [a]}", `member "sees.namespace" is not known`},
		{"sees: all", "sees: {namespaces: [A_b]}", `sees.namespaces "A_b"`},
		{"sees: all", "sees: {services: [api]}", `sees.services "api/": not a service; write namespace/name`},
		{"sees: all", "sees: {nodes: some}", `"some" is neither all nor none`},
		{"sees: all", "sees: {}", "sees: nothing; write all"},
		{"sees: all", "", "sees: nothing; write all"},
		{"sees: all", "sees: [all]", "write all, or members"},
		{"uri: " + westURI, "uri: west", `identity.uri "west": not usable; write scheme://`},
		{"uri: " + westURI, "dns: '*.west.example'", `identity.dns "*.west.example"`},
		{"uri: " + westURI, "common-name: admin", `identity.common-name "admin": not usable; write remote`},
		{"uri: " + westURI, "common-name: local-east", `identity.common-name "local-east"`},
		{"uri: " + westURI, "uri: " + westURI + ", dns: a.b", "exactly one of uri, dns, common-name"},
		{"uri: " + westURI, "", "0 names are set"},
		{"sees: all", "sees: all\nexpires: tomorrow", `expires "tomorrow": not a time; write it like`},
		{"sees: all", "sees: all\nexpires: ''", `expires "": not a time`},
		{"sees: all", "sees: all\nexpires:", `member "expires" has no value`},
		{"sees: all", "sees: all\nrevoked: maybe", "maybe"},
		{"sees: all", "sees: all\nrevoked-certificates: [12]", `revoked-certificates "12": not a SHA-256 sum`},
		{"sees: all", "sees: all\nshares-ca-with: [west]", `shares-ca-with "west": not the name of another`},
		{"sees: all", "sees: all\nca-file: x", "ca, ca-file: set exactly one"},
		{"sees: all", "sees: all\n---\nsees: all", "one per file"},
		{"BEGIN CERTIFICATE", "BEGIN EC PRIVATE KEY", "ca: entry 1 is"},
		{good, "", "it is empty"},
		{good, "ca-file: none.crt\nidentity: {uri: x://y/}\nsees: all", `ca-file "none.crt": `},
		{good, "- a\n", "write the members"},
		{good, "{", "parse YAML"},
		{good, "ca: |\n" + indent(strings.ReplaceAll(ca.pem(), "-----END", "")) + "\nidentity: {uri: x://y/}\nsees: all", "no complete PEM block"},
		{good, goodFile(&authority{cert: leaf}, "uri: x://y/"), "not a CA certificate; give"},
	} {
		f := newFolder(t)
		f.write("west.yaml", strings.Replace(good, test.change, test.to, 1))
		f.load()
		p := f.d.Problems()
		if len(p) != 1 || !strings.Contains(p[0], test.want) || !strings.Contains(p[0], "west.yaml: ") {
			t.Errorf("%q instead of %q: got %q, want %q", test.to, test.change, p, test.want)
		}
		if tab, _ := f.d.Set().Current(); len(tab.Peers()) != 0 {
			t.Errorf("%q instead of %q: the peer is in force", test.to, test.change)
		}
	}
}

func TestReservedAndBadNames(t *testing.T) {
	for _, name := range []string{"local", "other", "West", "a_b", "-a", strings.Repeat("a", 64)} {
		f := newFolder(t)
		f.write(name+".yaml", goodFile(newAuthority(t, "CA"), "dns: a.b"))
		f.load()
		if p := f.d.Problems(); len(p) != 1 || !strings.Contains(p[0], `name "`+name+`": not usable`) {
			t.Errorf("%q: %v", name, p)
		}
	}
}

func TestFilesThatOthersMayChangeAreRefused(t *testing.T) {
	f := newFolder(t)
	f.write("west.yaml", goodFile(newAuthority(t, "CA"), "dns: a.b"))
	if err := os.Chmod(filepath.Join(f.path, "west.yaml"), 0o666); err != nil {
		t.Fatal(err)
	}
	f.load()
	if p := f.d.Problems(); len(p) != 1 || !strings.Contains(p[0], "chmod o-w") {
		t.Error(p)
	}
}

func TestLastGoodStateOfABadFileStays(t *testing.T) {
	f := newFolder(t)
	ca := newAuthority(t, "CA")
	f.write("west.yaml", goodFile(ca, "dns: one.example"))
	f.write("north.yaml", goodFile(newAuthority(t, "CA"), "dns: north.example"))
	f.run()
	f.until("both", func(n string) bool { return n == "north west" })
	f.write("west.yaml", "ca: half a fi")
	f.write("north.yaml", goodFile(newAuthority(t, "CA"), "dns: two.example"))
	f.untilIdentity("north", "two.example")
	if p := f.d.Problems(); len(p) != 1 || !strings.Contains(p[0], "west.yaml") {
		t.Fatal(p)
	}
	f.untilIdentity("west", "one.example")
	f.write("west.yaml", goodFile(ca, "dns: three.example"))
	f.untilIdentity("west", "three.example")
	if p := f.d.Problems(); len(p) != 0 {
		t.Fatal(p)
	}
}

func (f *folder) untilIdentity(peer, dns string) {
	f.t.Helper()
	f.until(peer+" is "+dns, func(string) bool {
		tab, _ := f.d.Set().Current()
		for _, p := range tab.Peers() {
			if p.Name == peer {
				return p.Identity.DNS == dns
			}
		}
		return false
	})
}

func TestRemovedFileRemovesThePeer(t *testing.T) {
	f := newFolder(t)
	f.write("west.yaml", goodFile(newAuthority(t, "CA"), "dns: a.b"))
	f.run()
	f.until("west", func(n string) bool { return n == "west" })
	begin := time.Now()
	if err := os.Remove(filepath.Join(f.path, "west.yaml")); err != nil {
		t.Fatal(err)
	}
	f.until("nobody", func(n string) bool { return n == "" })
	if d := time.Since(begin); d < removalGrace {
		t.Errorf("removed after %v: a file replaced in two steps would cut its peer", d)
	}
}

func TestCAFileIsFollowed(t *testing.T) {
	f := newFolder(t)
	elsewhere := t.TempDir()
	at := filepath.Join(elsewhere, "ca.crt")
	one, two := newAuthority(t, "one"), newAuthority(t, "two")
	put := func(text string) {
		if err := os.WriteFile(at+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(at+".new", at); err != nil {
			t.Fatal(err)
		}
	}
	put(one.pem())
	f.write("west.yaml", "ca-file: "+at+"\nidentity: {dns: a.b}\nsees: all\n")
	f.run()
	accepts := func(a *authority) func(string) bool {
		leaf := a.leaf(withDNS("a.b"))
		return func(string) bool {
			tab, _ := f.d.Set().Current()
			_, _, err := tab.Authenticate([]*x509.Certificate{leaf}, time.Now())
			return err == nil
		}
	}
	f.until("first CA", accepts(one))
	put(one.pem() + two.pem())
	f.until("both CAs", func(n string) bool { return accepts(one)(n) && accepts(two)(n) })
	put(two.pem())
	f.until("second CA only", func(n string) bool { return !accepts(one)(n) && accepts(two)(n) })
}

// TestConflictsKeepWhatIsInForce adds a file that claims another peer's CA.
func TestConflictsKeepWhatIsInForce(t *testing.T) {
	f := newFolder(t)
	a, b := newAuthority(t, "A"), newAuthority(t, "B")
	f.write("north.yaml", goodFile(a, "dns: north.example"))
	f.load()
	f.write("east.yaml", goodFile(a, "dns: east.example"))
	f.load()
	if tab, _ := f.d.Set().Current(); names(tab) != "north" {
		t.Fatalf("in force are %q", names(tab))
	}
	if p := f.d.Problems(); len(p) != 1 || !strings.Contains(p[0], "east.yaml") || !strings.Contains(p[0], "shares-ca-with: [north]") {
		t.Fatal(p)
	}
	f.write("north.yaml", goodFile(b, "dns: north.example"))
	f.load()
	if tab, _ := f.d.Set().Current(); names(tab) != "east north" || len(f.d.Problems()) != 0 {
		t.Fatalf("in force are %q, problems %q", names(tab), f.d.Problems())
	}
	// Both swap at once: neither stands in the other's way.
	f.write("north.yaml", goodFile(a, "dns: north.example"))
	f.write("east.yaml", goodFile(b, "dns: east.example"))
	f.load()
	if tab, _ := f.d.Set().Current(); len(f.d.Problems()) != 0 || tab.Peers()[0].CAs[0].Subject.CommonName != "B" {
		t.Fatalf("problems %q", f.d.Problems())
	}
}

func TestConflictAmongNewFilesRefusesBoth(t *testing.T) {
	f := newFolder(t)
	a := newAuthority(t, "A")
	f.write("north.yaml", goodFile(a, "dns: north.example"))
	f.write("east.yaml", goodFile(a, "dns: east.example"))
	f.write("west.yaml", goodFile(newAuthority(t, "W"), "dns: west.example"))
	f.load()
	if tab, _ := f.d.Set().Current(); names(tab) != "west" || len(f.d.Problems()) != 2 {
		t.Fatalf("in force are %q, problems %q", names(tab), f.d.Problems())
	}
	f.write("north.yaml", goodFile(a, "dns: north.example")+"shares-ca-with: [east]\n")
	f.write("east.yaml", goodFile(a, "dns: east.example")+"shares-ca-with: [north]\n")
	f.load()
	if tab, _ := f.d.Set().Current(); names(tab) != "east north west" {
		t.Fatalf("in force are %q, problems %q", names(tab), f.d.Problems())
	}
}

func TestDirectoryThatIsGoneKeepsAllPeers(t *testing.T) {
	f := newFolder(t)
	f.write("west.yaml", goodFile(newAuthority(t, "CA"), "dns: a.b"))
	f.run()
	f.until("west", func(n string) bool { return n == "west" })
	if err := os.Rename(f.path, f.path+".away"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for len(f.d.Problems()) == 0 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	if tab, _ := f.d.Set().Current(); names(tab) != "west" || len(f.d.Problems()) != 1 {
		t.Fatalf("in force are %q, problems %q", names(tab), f.d.Problems())
	}
	if err := os.Rename(f.path+".away", f.path); err != nil {
		t.Fatal(err)
	}
	f.write("north.yaml", goodFile(newAuthority(t, "CA"), "dns: n.b"))
	f.until("both", func(n string) bool { return n == "north west" })
	err := NewDirectory(filepath.Join(f.path, "none"), nil, nil).Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "create it or correct the setting") {
		t.Error(err)
	}
}

// TestWithdrawnAccessIsNotHeldUpByAConflict: what a file takes back counts at
// once, also if another file that is written with it claims the same CA.
func TestWithdrawnAccessIsNotHeldUpByAConflict(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct {
		was, more string
		counts    func(p *Peer) bool
	}{
		"revoked":             {"sees: all\n", "sees: all\nrevoked: true\n", func(p *Peer) bool { return p.Revoked }},
		"certificate revoked": {"sees: all\n", "sees: all\nrevoked-certificates: [" + strings.Repeat("ab", 32) + "]\n", func(p *Peer) bool { return len(p.RevokedCertificates) == 1 }},
		"expires":             {"sees: all\n", "sees: all\nexpires: " + now.Add(time.Hour).Format(time.RFC3339) + "\n", func(p *Peer) bool { return !p.Expires.IsZero() }},
		"narrower view":       {"sees: all\n", "sees: {namespaces: [shop]}\n", func(p *Peer) bool { return !p.View.All }},
	} {
		f := newFolder(t)
		a := newAuthority(t, "A")
		file := func(more string) string {
			return "ca: |\n" + indent(a.pem()) + "\nidentity: {dns: west.example}\n" + more
		}
		f.write("west.yaml", file(test.was))
		f.load()
		f.write("west.yaml", file(test.more))
		f.write("west2.yaml", goodFile(a, "dns: west2.example"))
		for range 2 {
			f.load()
			tab, _ := f.d.Set().Current()
			if names(tab) != "west" || !test.counts(tab.Peers()[0]) {
				t.Errorf("%s: in force are %q, %+v", name, names(tab), tab.Peers()[0])
			}
			if p := f.d.Problems(); len(p) != 1 || !strings.Contains(p[0], "west2.yaml") {
				t.Errorf("%s: problems %q", name, p)
			}
		}
	}
}

// TestRefusedFileStillWithdraws: a file that claims what it must not have keeps
// the last good state in force, without the access that it takes back.
func TestRefusedFileStillWithdraws(t *testing.T) {
	f := newFolder(t)
	a, b := newAuthority(t, "A"), newAuthority(t, "B")
	sum := func(digits string) string { return "revoked-certificates: [" + strings.Repeat(digits, 32) + "]\n" }
	f.write("west.yaml", goodFile(a, "dns: west.example")+"expires: 2130-01-31T00:00:00Z\n"+sum("ab"))
	f.write("north.yaml", goodFile(b, "dns: north.example"))
	f.load()
	in := func() *Peer {
		tab, _ := f.d.Set().Current()
		return tab.Peers()[1]
	}
	claims := goodFile(b, "dns: west.example") // the CA of north
	f.write("west.yaml", claims+"expires: 2129-01-31T00:00:00Z\n"+sum("cd"))
	f.load()
	if p := in(); p.CAs[0].Subject.CommonName != "A" || p.Expires.Year() != 2129 || len(p.RevokedCertificates) != 2 || p.Revoked || len(f.d.Problems()) != 1 {
		t.Errorf("in force is %+v, problems %q", p, f.d.Problems())
	}
	before, changed := f.d.Set().Current()
	f.load()
	select {
	case <-changed:
		t.Errorf("put in force again without a change: %v", before)
	default:
	}
	f.write("west.yaml", claims+"revoked: true\n")
	f.load()
	if p := in(); p.CAs[0].Subject.CommonName != "A" || !p.Revoked || p.Expires.Year() != 2129 {
		t.Errorf("in force is %+v", p)
	}
	f.write("west.yaml", goodFile(a, "dns: west.example"))
	f.load()
	if p := in(); p.Revoked || !p.Expires.IsZero() || len(p.RevokedCertificates) != 0 || len(f.d.Problems()) != 0 {
		t.Errorf("in force is %+v, problems %q", p, f.d.Problems())
	}
}
