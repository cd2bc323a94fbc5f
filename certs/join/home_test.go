package join

import (
	"bytes"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// trustOf is what an apiserver asks of its own CA.
func trustOf(t *testing.T, dir string) *certs.Trust {
	t.Helper()
	trust, err := certs.NewTrust(certs.ServerFiles{ClientCA: filepath.Join(dir, "ca.crt")}, nil)
	must(t, err)
	return trust
}

// table is what an apiserver makes of a directory of peers, with the CA of its own
// directory or else with the one beside that of the peers.
func table(t *testing.T, dir string, own ...string) *peers.Table {
	t.Helper()
	if len(own) == 0 {
		beside, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "*", "ca.crt"))
		must(t, err)
		if len(beside) == 0 { // who has which certificate is not the question
			beside = []string{filepath.Join(newSite(t, "nobody").Dir, "ca.crt")}
		}
		own = []string{filepath.Dir(beside[0])}
	}
	d := peers.NewDirectory(dir, trustOf(t, own[0]), nil)
	must(t, d.Load())
	if p := d.Problems(); len(p) > 0 {
		t.Errorf("peers' files are not taken: %q", p)
	}
	table, _ := d.Set().Current()
	return table
}

func leafOf(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return c
}

func owner(t *testing.T, tab *peers.Table, cert []byte) string {
	t.Helper()
	p, _, err := tab.Authenticate([]*x509.Certificate{leafOf(t, cert)}, time.Now())
	if err != nil {
		return err.Error()
	}
	return p.Name
}

// TestPeersOfOneCAAreToldApart: the own CA signs for everybody who joins, and
// each is known by its name. What the operator wrote into a file stays.
func TestPeersOfOneCAAreToldApart(t *testing.T) {
	east := newSide(t, "east", nil)
	certOf := map[string][]byte{}
	joinAs := func(name string) {
		t.Helper()
		s := newSide(t, name, nil)
		joinFiles(t, s, east)
		cert, err := os.ReadFile(filepath.Join(s.home.Clusters, "east.etcd-client.crt"))
		must(t, err)
		certOf[name] = cert
	}
	joinAs("west")
	joinAs("north")
	path := filepath.Join(east.home.Peers, "west.yaml")
	text, err := os.ReadFile(path)
	must(t, err)
	text = bytes.Replace(text, []byte("sees: all\n"), []byte("sees:\n  namespaces: [shop] # agreed with them\n"), 1)
	must(t, os.WriteFile(path, text, 0o600))
	must(t, os.Chmod(path, 0o640))
	joinAs("south")
	tab := table(t, east.home.Peers)
	for name, cert := range certOf {
		if got := owner(t, tab, cert); got != name {
			t.Errorf("the certificate of %s is that of %s", name, got)
		}
	}
	text, err = os.ReadFile(path)
	must(t, err)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 || !bytes.Contains(text, []byte("# agreed with them")) {
		t.Errorf("the operator's changes are gone: %v, %v\n%s", info.Mode(), err, text)
	}
	if _, err := Leave(east.Dir, east.home, "north"); err != nil {
		t.Fatal(err)
	}
	tab = table(t, east.home.Peers)
	if got := []string{owner(t, tab, certOf["west"]), owner(t, tab, certOf["south"])}; !slices.Equal(got, []string{"west", "south"}) {
		t.Errorf("the others are %q", got)
	}
	if got := owner(t, tab, certOf["north"]); !strings.Contains(got, "wrong name") {
		t.Errorf("the one that left is %q", got)
	}
}

// TestOldCertificateOfAPeerThatReturnsIsRefused: it has the name and the CA that
// count again.
func TestOldCertificateOfAPeerThatReturnsIsRefused(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	now := func() []byte {
		cert, err := os.ReadFile(filepath.Join(west.home.Clusters, "east.etcd-client.crt"))
		must(t, err)
		return cert
	}
	joinFiles(t, west, east)
	old := now()
	for _, s := range []*side{west, east} {
		for _, other := range []string{"west", "east"} {
			_, err := Leave(s.Dir, s.home, other)
			must(t, err)
		}
	}
	joinFiles(t, west, east)
	tab := table(t, east.home.Peers)
	if got := owner(t, tab, old); !strings.Contains(got, "revoked") {
		t.Errorf("the old certificate is that of %q", got)
	}
	if got := owner(t, tab, now()); got != "west" {
		t.Errorf("the new certificate is that of %q", got)
	}
	west.Endpoints = nil
	again(west, east)
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, east.home.Install)
	must(t, err)
	_, err = west.AcceptApproval(approval, west.home.Install)
	must(t, err) // what was revoked is remembered without the file
}

// TestSecretsHoldWhatIsInstalled compares the two ways out.
func TestSecretsHoldWhatIsInstalled(t *testing.T) {
	north, west, east := newSide(t, "north", nil), newSide(t, "west", nil), newSide(t, "east", nil)
	var manifest []byte
	print := func(p Peer) error {
		var err error
		manifest, err = p.Secrets(SecretOptions{})
		must(t, err)
		return east.home.Install(p)
	}
	for _, s := range []*side{north, west} {
		request, err := s.Request(0)
		must(t, err)
		approval, err := east.Approve(request, nothing)
		must(t, err)
		confirmation, err := s.AcceptApproval(approval, s.home.Install)
		must(t, err)
		must(t, east.AcceptConfirmation(*confirmation, print))
	}
	got := map[string]map[string][]byte{}
	for doc := range bytes.SplitSeq(manifest, []byte("---\n")) {
		var s struct {
			Metadata struct{ Name string }
			Data     map[string][]byte
		}
		must(t, yaml.Unmarshal(doc, &s))
		got[s.Metadata.Name] = s.Data
	}
	if !slices.Equal(slices.Sorted(maps.Keys(got)), []string{"", "clustermesh-peers", "clustermesh-west"}) {
		t.Fatalf("Secrets %v", slices.Sorted(maps.Keys(got)))
	}
	for name, data := range got["clustermesh-west"] {
		if has, err := os.ReadFile(filepath.Join(east.home.Clusters, name)); err != nil || !bytes.Equal(has, data) {
			t.Errorf("%s differs: %v", name, err)
		}
	}
	dir := t.TempDir()
	for name, data := range got["clustermesh-peers"] {
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	for i, p := range table(t, dir, east.Dir).Peers() {
		if q := table(t, east.home.Peers).Peers()[i]; p.Name != q.Name || p.Identity != q.Identity || !p.View.Equal(q.View) || p.Own == nil || q.Own == nil {
			t.Errorf("peer %+v, in the directory %+v", p, q)
		}
	}
	again, err := east.PeersSecret(SecretOptions{})
	must(t, err)
	if !bytes.HasSuffix(manifest, again) {
		t.Errorf("the Secret of peers is later another one:\n%s", again)
	}
}

// TestViewsReachThePeersFile: a choice in the invitation, the approval or at the
// end.
func TestViewsReachThePeersFile(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	shown := View{Namespaces: []string{"shop", "no"}, Services: []string{"web/api"}, Kinds: []string{"nodes"}}
	chosen := east.Site
	chosen.View = shown
	i := invite(t, chosen, "east:1", InviteOptions{})
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Redeem(i.Secret, request, nothing)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, west.home.Install)
	must(t, err)
	must(t, east.AcceptConfirmation(*confirmation, east.home.Install))
	v := table(t, east.home.Peers).Peers()[0].View
	want := peers.View{Namespaces: shown.Namespaces, Services: []peers.Service{{Namespace: "web", Name: "api"}}, Nodes: true}
	if !v.Equal(want) {
		t.Errorf("view %+v, want %+v", v, want)
	}
	for _, bad := range []View{{Namespaces: []string{"a b"}}, {Namespaces: []string{"a\nsees: all"}}, {Services: []string{"web"}}, {Kinds: []string{"all"}}, {Namespaces: make([]string, 1025)}} {
		if bad.Validate() == nil {
			t.Errorf("%+.100v was taken", bad)
		}
	}
}

// TestInstallRefusesWhatItWouldBreak: files that somebody else wrote.
func TestInstallRefusesWhatItWouldBreak(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	joinFiles(t, west, east)
	bundle, _, err := certs.Bundle(east.Dir)
	must(t, err)
	p := Peer{Cluster: "north", ID: 9, Reads: true, Trust: bundle}
	other := filepath.Join(east.home.Peers, "other.yaml")
	for name, text := range map[string]string{
		"the same name and CA": "identity: {common-name: remote-north}\nca-file: " + filepath.Join(east.Dir, "ca.crt") + "\n",
		"no YAML":              "identity: [",
		"a list":               "- a\n",
		"empty":                "",
		"CA that is missing":   "ca-file: nowhere\n",
	} {
		must(t, os.WriteFile(other, []byte(text), 0o600))
		if err := east.home.Install(p); err == nil {
			t.Errorf("%s: installed beside it", name)
		}
		if _, err := os.Stat(filepath.Join(east.home.Peers, "north.yaml")); err == nil {
			t.Errorf("%s: the peer's file is there", name)
		}
	}
	must(t, os.WriteFile(other, []byte("identity: {common-name: remote-other}\nca-file: "+filepath.Join(west.Dir, "ca.crt")+"\n"), 0o600))
	must(t, east.home.Install(p))
	text, err := os.ReadFile(other)
	must(t, err)
	if bytes.Contains(text, []byte("north")) {
		t.Errorf("a peer of another CA was changed: %s", text)
	}
}

// TestLeftoversOfKilledWritersGo: they may hold keys.
func TestLeftoversOfKilledWritersGo(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	joinFiles(t, west, east)
	left := []string{filepath.Join(east.home.Clusters, ".west.etcd-client.key.123"), filepath.Join(east.home.Clusters, ".west.1"), filepath.Join(east.home.Peers, ".west.yaml.9")}
	kept := filepath.Join(east.home.Clusters, ".west-1.2")
	for _, path := range append(left, kept) {
		must(t, os.WriteFile(path, nil, 0o600))
	}
	_, err := Leave(east.Dir, east.home, "west")
	must(t, err)
	for _, path := range left {
		if exists(path) {
			t.Errorf("%s is left", path)
		}
	}
	if !exists(kept) {
		t.Error("a file of another cluster was removed")
	}
}

// TestFilesOfPeersHoldNoCopyOfTheCA: what joining writes goes on to work when the
// CA has been replaced, and no longer lets in whom the CA before has signed for.
// A file with a copy, as it was written once, does not stand in the way of others.
func TestFilesOfPeersHoldNoCopyOfTheCA(t *testing.T) {
	west, north, east := newSide(t, "west", nil), newSide(t, "north", nil), newSide(t, "east", nil)
	joinFiles(t, west, east)
	cert := func(s *side) []byte {
		data, err := os.ReadFile(filepath.Join(s.home.Clusters, "east.etcd-client.crt"))
		must(t, err)
		return data
	}
	text, err := os.ReadFile(filepath.Join(east.home.Peers, "west.yaml"))
	must(t, err)
	if want := "ca: own\n"; !bytes.HasSuffix(text, []byte(want)) || bytes.Contains(text, []byte("CERTIFICATE")) || bytes.Contains(text, []byte("shares-ca-with")) {
		t.Errorf("want %q and no copy in\n%s", want, text)
	}
	ca, err := os.ReadFile(filepath.Join(east.Dir, "ca.crt"))
	must(t, err)
	copied := "ca: |\n  " + strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n  ") + "\n"
	must(t, os.WriteFile(filepath.Join(east.home.Peers, "west.yaml"), bytes.Replace(text, []byte("ca: own\n"), []byte(copied), 1), 0o600))
	joinFiles(t, north, east)
	tab := table(t, east.home.Peers)
	if got := []string{owner(t, tab, cert(west)), owner(t, tab, cert(north))}; !slices.Equal(got, []string{"west", "north"}) {
		t.Errorf("with a copy in one file the peers are %q", got)
	}

	before := cert(north)
	for _, step := range []func(string, certs.RotateOptions) (certs.Rotation, error){certs.PrepareCA, certs.ActivateCA, certs.RetireCA} {
		_, err := step(east.Dir, certs.RotateOptions{Force: true})
		must(t, err)
	}
	if got := owner(t, table(t, east.home.Peers), before); got == "north" {
		t.Error("the certificate of the retired CA counts")
	}
}

// TestNameOfAnotherFileIsTaken, whether that says so with a copy of the CA or not.
func TestNameOfAnotherFileIsTaken(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	must(t, os.MkdirAll(east.home.Peers, 0o700))
	must(t, os.WriteFile(filepath.Join(east.home.Peers, "other.yaml"), []byte("ca: own\nidentity: {common-name: remote-west}\nsees: all\n"), 0o600))
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, west.home.Install)
	must(t, err)
	wantReason(t, east.AcceptConfirmation(*confirmation, east.home.Install), NameTaken)
}
