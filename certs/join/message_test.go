package join

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/cost"
)

func TestDecodeRefuses(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	good, err := west.Request(0)
	must(t, err)
	leaf, err := certs.SignRequest(east.Dir, []byte(good.CSR), certs.Role{Kind: certs.Remote, Cluster: "west"}, 0)
	must(t, err)
	for name, change := range map[string]func(*Request){
		"kind":               func(r *Request) { r.Kind = kindApproval },
		"version":            func(r *Request) { r.Version = 2 },
		"no name":            func(r *Request) { r.From.Cluster = "" },
		"path as name":       func(r *Request) { r.From.Cluster = "../x" },
		"name of another":    func(r *Request) { r.From.Cluster = "north" },
		"no id":              func(r *Request) { r.From.ID = 0 },
		"large id":           func(r *Request) { r.From.ID = 256 },
		"limit":              func(r *Request) { r.From.MaxClusters = 300 },
		"name of all":        func(r *Request) { r.From.Cluster = "local" },
		"no CSR":             func(r *Request) { r.CSR = "" },
		"certificate as CSR": func(r *Request) { r.CSR = string(leaf) },
		"no CA":              func(r *Request) { r.From.CA = "" },
		"leaf as CA":         func(r *Request) { r.From.CA = string(leaf) },
		"many CAs":           func(r *Request) { r.From.CA = strings.Repeat(r.From.CA, 9) },
		"plain text":         func(r *Request) { r.From.Endpoints = []string{"http://192.0.2.1:2379"} },
		"line break":         func(r *Request) { r.From.Endpoints = []string{"https://192.0.2.1:2379\nkey-file: /etc/shadow"} },
		"user":               func(r *Request) { r.From.Endpoints = []string{"https://a@192.0.2.1:2379"} },
		"path":               func(r *Request) { r.From.Endpoints = []string{"https://192.0.2.1:2379/x"} },
		"no port":            func(r *Request) { r.From.Endpoints = []string{"https://192.0.2.1"} },
		"comment":            func(r *Request) { r.From.Endpoints = []string{"https://a:1 #"} },
		"many endpoints":     func(r *Request) { r.From.Endpoints = make([]string, 9) },
		"no expiry":          func(r *Request) { r.Expires = r.Expires.AddDate(-2020, 0, 0) },
	} {
		bad := good
		change(&bad)
		if _, err := DecodeRequest(Encode(bad)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	text := string(Encode(good))
	for name, bad := range map[string]string{
		"cut off":       text[:len(text)/2],
		"two":           text + text,
		"unknown field": strings.Replace(text, `"from"`, `"role":"admin","from"`, 1),
		"large":         text + strings.Repeat(" ", maxMessage),
		"array":         "[" + text + "]",
		"empty":         "",
	} {
		if _, err := DecodeRequest([]byte(bad)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestFingerprintTellsFilesApart(t *testing.T) {
	a, b := FingerprintOf([]byte("{}\n")), FingerprintOf([]byte("{} "))
	if a != b || a == FingerprintOf([]byte("[]")) || len(a) != 24 {
		t.Errorf("fingerprints %s and %s", a, b)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	r, err := newSite(f, "west").Request(0)
	must(f, err)
	f.Add(Encode(r))
	f.Add([]byte(`{"kind":"ClusterMeshJoinRequest","version":1,"from":{"cluster":"a","endpoints":["https://b:1"]},"csr":"","expires":"2030-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Request
		var err error
		cost.Bounded(t, len(data), 0, func() { r, err = DecodeRequest(data) })
		if err != nil {
			return
		}
		again, err := DecodeRequest(Encode(r))
		if err != nil || again.ID() != r.ID() {
			t.Errorf("%q does not survive: %v", data, err)
		}
		if len(r.From.Endpoints) > 0 {
			readsAsClusterFile(t, r.From)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	west, east := newSite(f, "west"), newSite(f, "east")
	r, err := west.Request(0)
	must(f, err)
	a, err := east.Approve(r, nothing)
	must(f, err)
	f.Add(Encode(a))
	f.Add(Encode(Confirmation{Header: Header{kindConfirmation, messageVersion}, Request: r.ID(), Certificate: a.Certificate}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var a *Approval
		var c *Confirmation
		var err error
		cost.Bounded(t, len(data), 0, func() { a, c, err = DecodeAnswer(data) })
		switch {
		case err != nil:
		case (a == nil) == (c == nil):
			t.Errorf("%q is neither or both", data)
		case a != nil:
			readsAsClusterFile(t, a.From)
		}
	})
}

// FuzzEndpoint: whatever is taken for an endpoint means the same in a cluster
// file, and nothing besides.
func FuzzEndpoint(f *testing.F) {
	for _, seed := range []string{"https://192.0.2.1:2379", "https://[2001:db8::1]:2379", "https://mesh.example.com:1", "https://a:1\n- x", "https://a%31:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, endpoint string) {
		var err error
		cost.Bounded(t, len(endpoint), 0, func() { err = checkEndpoint(endpoint) })
		if err == nil {
			readsAsClusterFile(t, Party{Cluster: "east", Endpoints: []string{endpoint}})
		}
	})
}

func readsAsClusterFile(t *testing.T, p Party) {
	t.Helper()
	if len(p.Endpoints) == 0 {
		return
	}
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, p.peer("", nil, false).Files("")[p.Cluster], 0o600))
	file, _, err := clusterfile.Read(path)
	if err != nil || strings.Join(file.Endpoints, " ") != strings.Join(p.Endpoints, " ") || filepath.Base(file.KeyFile) != p.Cluster+".etcd-client.key" {
		t.Errorf("%q reads as %+v, %v", p.Endpoints, file, err)
	}
}

// TestConfirmationFollowsNoLink: it is written where somebody happens to stand.
func TestConfirmationFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	victim, link, path := filepath.Join(dir, "victim"), filepath.Join(dir, "link"), filepath.Join(dir, "confirmation.json")
	must(t, os.WriteFile(victim, []byte("mine"), 0o600))
	must(t, os.Symlink(victim, link))
	c := Confirmation{Header: Header{kindConfirmation, messageVersion}, Request: strings.Repeat("a", 32)}
	if err := c.WriteFile(link); err == nil || !strings.Contains(err.Error(), "--confirmation") {
		t.Errorf("error %v, want one that names --confirmation", err)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "mine" {
		t.Errorf("the file behind the link says %q, error %v", text, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().IsRegular() {
		t.Errorf("the link is %v, error %v", info, err)
	}
	for range 2 {
		must(t, c.WriteFile(path))
	}
	text, err := os.ReadFile(path)
	must(t, err)
	if _, again, err := DecodeAnswer(text); err != nil || *again != c {
		t.Errorf("read back %+v, error %v", again, err)
	}
}
