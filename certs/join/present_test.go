package join

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// printing is an install that prints the Secrets, as for kubectl apply.
func printing(into *[]byte, o SecretOptions) func(Peer) error {
	return func(p Peer) (err error) {
		*into, err = p.Secrets(o)
		return err
	}
}

// applied are the peers' files of the Secret in a manifest, in a directory.
func applied(t *testing.T, manifest []byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for doc := range bytes.SplitSeq(manifest, []byte("---\n")) {
		var s struct {
			Metadata struct{ Name string }
			Data     map[string][]byte
		}
		must(t, yaml.Unmarshal(doc, &s))
		for name, data := range s.Data {
			if s.Metadata.Name == "clustermesh-peers" {
				must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
			}
		}
	}
	return dir
}

// presentIn is the Secret of the peers' files of a directory.
func presentIn(t *testing.T, dir string) string {
	t.Helper()
	files, err := ReadPeers(dir)
	must(t, err)
	path := filepath.Join(t.TempDir(), "peers.yaml")
	must(t, os.WriteFile(path, bytes.TrimPrefix(secret("clustermesh-peers", "mesh", files), []byte("---\n")), 0o600))
	return path
}

// joinPrinting makes west a peer of east, whose files go to the Secret.
func joinPrinting(t *testing.T, west, east *side, o SecretOptions) (manifest []byte, err error) {
	t.Helper()
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, west.home.Install)
	must(t, err)
	err = east.AcceptConfirmation(*confirmation, printing(&manifest, o))
	return manifest, err
}

func rewrite(t *testing.T, path, from, to string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	if !strings.Contains(string(text), from) {
		t.Fatalf("no %q in\n%s", from, text)
	}
	must(t, os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o600))
}

func peerOf(t *testing.T, tab *peers.Table, name string) *peers.Peer {
	t.Helper()
	for _, p := range tab.Peers() {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no peer %s in %+v", name, tab.Peers())
	return nil
}

// TestSecretKeepsWhatItsOperatorWrote: the Secret is printed whole whenever a
// cluster comes or goes, and the others stay restricted as they are.
func TestSecretKeepsWhatItsOperatorWrote(t *testing.T) {
	east, west, south, north := newSide(t, "east", nil), newSide(t, "west", nil), newSide(t, "south", nil), newSide(t, "north", nil)
	_, err := joinPrinting(t, west, east, SecretOptions{})
	must(t, err)
	manifest, err := joinPrinting(t, south, east, SecretOptions{})
	must(t, err)
	now := applied(t, manifest)
	rewrite(t, filepath.Join(now, "west.yaml"), "sees: all\n", "revoked: true\nsees:\n  namespaces: [shop] # agreed\n")
	rewrite(t, filepath.Join(now, "south.yaml"), "sees: all\n", "sees: {nodes: all}\n")
	rewrite(t, filepath.Join(now, "south.yaml"), "revoked-certificates: []\n", "revoked-certificates: ["+strings.Repeat("ab", 32)+"]\nexpires: 2090-01-31T00:00:00Z\n")
	check := func(when string, manifest []byte) {
		t.Helper()
		tab := table(t, applied(t, manifest))
		if p := peerOf(t, tab, "west"); !p.Revoked || p.View.All || !slices.Equal(p.View.Namespaces, []string{"shop"}) {
			t.Errorf("%s: west is %+v", when, p)
		}
		if p := peerOf(t, tab, "south"); p.View.All || !p.View.Nodes || p.Expires.Year() != 2090 || len(p.RevokedCertificates) != 1 {
			t.Errorf("%s: south is %+v", when, p)
		}
	}
	for _, path := range []string{now, presentIn(t, now)} {
		var o SecretOptions
		o.Present, err = ReadPeers(path)
		must(t, err)
		manifest, err = joinPrinting(t, north, east, o)
		must(t, err)
		check("joined", manifest)
		north.For, north.Replace, east.For, east.Replace = "east", true, "north", true
		if manifest, err = east.PeersSecret(o); err != nil {
			t.Fatal(err)
		}
		check("printed", manifest)
	}
	_, err = Leave(east.Dir, Home{}, "north")
	must(t, err)
	files, err := ReadPeers(applied(t, manifest))
	must(t, err)
	list, err := east.Peers()
	must(t, err)
	if got := (SecretOptions{Present: files}).Strays(list); !slices.Equal(got, []string{"north.yaml"}) {
		t.Errorf("of nobody are %q", got)
	}
	// Who is shut out does not get in by joining again, as with files.
	east.For, west.For, west.Replace = "west", "east", true
	_, err = joinPrinting(t, west, east, SecretOptions{Present: files})
	wantReason(t, err, NameTaken)
}

// withCopy makes a peer's file one of an older version, with the text of the own
// CA and who shares it.
func withCopy(t *testing.T, dir, cluster, shares string, ca []byte) {
	t.Helper()
	text := "shares-ca-with: [" + shares + "]\nca: |\n"
	for line := range strings.Lines(string(ca)) {
		text += "  " + line
	}
	rewrite(t, filepath.Join(dir, cluster+".yaml"), "ca: own\n", text)
}

// TestSecretLeavesCopiesReadable: an apiserver that is older than this command
// knows the text of a CA alone. Who comes or goes must not shut out the others.
func TestSecretLeavesCopiesReadable(t *testing.T) {
	east, west, south, north := newSide(t, "east", nil), newSide(t, "west", nil), newSide(t, "south", nil), newSide(t, "north", nil)
	_, err := joinPrinting(t, west, east, SecretOptions{})
	must(t, err)
	manifest, err := joinPrinting(t, south, east, SecretOptions{})
	must(t, err)
	now := applied(t, manifest)
	before, err := os.ReadFile(filepath.Join(east.Dir, "ca.crt"))
	must(t, err)
	withCopy(t, now, "west", "south", before)
	withCopy(t, now, "south", "west", before)
	_, err = certs.PrepareCA(east.Dir, certs.RotateOptions{})
	must(t, err)
	bundle, err := os.ReadFile(filepath.Join(east.Dir, "ca.crt"))
	must(t, err)
	var o SecretOptions
	o.Present, err = ReadPeers(now)
	must(t, err)
	manifest, err = joinPrinting(t, north, east, o)
	must(t, err)
	printed, err := east.PeersSecret(o)
	must(t, err)
	want, err := certs.ParseBundle(bundle)
	must(t, err)
	for when, manifest := range map[string][]byte{"joined": manifest, "printed": printed} {
		tab := table(t, applied(t, manifest), east.Dir)
		for _, name := range []string{"west", "south"} {
			if p := peerOf(t, tab, name); p.Own != nil || len(p.CAs) != 2 || !slices.EqualFunc(p.CAs, want, (*x509.Certificate).Equal) {
				t.Errorf("%s: %s has the own CA %v and %d CAs, want the text of both", when, name, p.Own != nil, len(p.CAs))
			}
		}
		if when == "joined" && peerOf(t, tab, "north").Own == nil {
			t.Error("who joins is given a copy")
		}
	}
}

// TestSecretTakesNoOthersCopy: a CA that is not ours, or not any more, does not
// stay; and a file that the Secret does not carry on is taken in.
func TestSecretTakesNoOthersCopy(t *testing.T) {
	east, west := newSide(t, "east", nil), newSide(t, "west", nil)
	manifest, err := joinPrinting(t, west, east, SecretOptions{})
	must(t, err)
	for name, row := range map[string]struct {
		dir  string
		copy bool
	}{"the own CA": {east.Dir, true}, "another CA": {west.Dir, false}} {
		ca, err := os.ReadFile(filepath.Join(row.dir, "ca.crt"))
		must(t, err)
		now := applied(t, manifest)
		rewrite(t, filepath.Join(now, "west.yaml"), "ca: own\n", "ca-file: mesh.crt\n")
		var o SecretOptions
		o.Present, err = ReadPeers(now)
		must(t, err)
		o.Present["mesh.crt"] = ca
		printed, err := east.PeersSecret(o)
		must(t, err)
		if p := peerOf(t, table(t, applied(t, printed), east.Dir), "west"); (p.Own == nil) != row.copy {
			t.Errorf("%s: a copy is kept: %v", name, p.Own == nil)
		}
	}
}

// TestSecretHoldsWhatWasRevokedSince: revoking a certificate reaches the Secret
// when it is printed next, for whatever cluster.
func TestSecretHoldsWhatWasRevokedSince(t *testing.T) {
	east, west, north := newSide(t, "east", nil), newSide(t, "west", nil), newSide(t, "north", nil)
	_, err := joinPrinting(t, west, east, SecretOptions{})
	must(t, err)
	_, err = certs.Revoke(east.Dir, certs.RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	cert, err := os.ReadFile(filepath.Join(west.home.Clusters, "east.etcd-client.crt"))
	must(t, err)
	joined, err := joinPrinting(t, north, east, SecretOptions{})
	must(t, err)
	printed, err := east.PeersSecret(SecretOptions{})
	must(t, err)
	for when, manifest := range map[string][]byte{"north joined": joined, "printed": printed} {
		if got := owner(t, table(t, applied(t, manifest), east.Dir), cert); !strings.Contains(got, "revoked") {
			t.Errorf("%s: a certificate that was revoked is that of %q", when, got)
		}
	}
}

// TestReadPeersRefuses what is none, and too much of it.
func TestReadPeersRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"nothing":     "",
		"a list":      "kind: List\nitems: []\n",
		"no base64":   "kind: Secret\ndata: {west.yaml: '*'}\n",
		"a bomb":      "kind: Secret\ndata: &a {west.yaml: YQ==}\nmore: *a\n",
		"a large one": "kind: Secret\ndata: {west.yaml: " + strings.Repeat("A", maxSecret) + "}\n",
	} {
		path := filepath.Join(dir, "peers")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if files, err := ReadPeers(path); err == nil {
			t.Errorf("%s: read as %q", name, files)
		}
	}
	if _, err := ReadPeers(os.DevNull); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("what can be read once only: %v", err)
	}
	if _, err := ReadPeers(filepath.Join(dir, "missing")); err == nil {
		t.Error("what is missing was read")
	}
	must(t, os.WriteFile(filepath.Join(dir, "west.yaml"), bytes.Repeat([]byte("a"), maxReader+1), 0o600))
	if _, err := ReadPeers(dir); err == nil {
		t.Error("a large file was read")
	}
	o := SecretOptions{Present: map[string][]byte{"west.yaml": []byte("identity: [")}}
	ca, err := os.ReadFile(filepath.Join(newSite(t, "east").Dir, "ca.crt"))
	must(t, err)
	if _, err := o.readers([]Known{{Cluster: "west"}}, ca, nil); err == nil || !strings.Contains(err.Error(), "west.yaml") {
		t.Errorf("a broken file was dropped: %v", err)
	}
}

// TestClusterWhoseSecretIsAnothers: its name would let it replace that.
func TestClusterWhoseSecretIsAnothers(t *testing.T) {
	for _, name := range []string{"peers", "server-cert", "local-cert", "ca"} {
		p := Peer{Cluster: name, Endpoints: []string{"https://192.0.2.1:2379"}}
		_, err := p.Secrets(SecretOptions{})
		wantReason(t, err, NameTaken)
		if err != nil && !strings.Contains(err.Error(), "--secret-name") {
			t.Errorf("%v names no remedy", err)
		}
		if _, err := p.Secrets(SecretOptions{Name: "mesh-" + name}); err != nil {
			t.Errorf("%s under another name: %v", name, err)
		}
	}
	wantReason(t, SecretOptions{PeersName: "clustermesh-west"}.Check("west"), NameTaken)
	must(t, SecretOptions{}.Check("west"))

	// All that deploy gives such a name to is known.
	used := regexp.MustCompile(`(?m)(?:secretName: |kind: (?:ConfigMap|Secret)\nmetadata:\n  name: |configMap(?:KeyRef)?: \{name: )(clustermesh-[-a-z]+)`)
	paths, err := filepath.Glob("../../deploy/testdata/golden/*.yaml")
	must(t, err)
	more, err := filepath.Glob("../../deploy/kustomize/*/*.yaml")
	must(t, err)
	found := 0
	for _, path := range append(paths, more...) {
		text, err := os.ReadFile(path)
		must(t, err)
		for _, m := range used.FindAllStringSubmatch(string(text), -1) {
			if found++; !slices.Contains(reserved(), m[1]) {
				t.Errorf("%s has %s: is it reserved?", path, m[1])
			}
		}
	}
	if found == 0 {
		t.Error("deploy names no Secret")
	}
}
