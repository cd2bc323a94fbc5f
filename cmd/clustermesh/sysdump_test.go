//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/clustermesh/clustermesh/certs"
)

// unpack returns the files of an archive.
func unpack(t *testing.T, path string) (files map[string]string, order []string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	zipped, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for archive := tar.NewReader(zipped); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(h.Name, "clustermesh-sysdump/")
		files[name], order = string(text), append(order, name)
	}
}

// spellings are the ways in which a secret could be written.
func spellings(secret []byte) []string {
	all := []string{hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)), base64.StdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret)}
	all = append(all, base64.StdEncoding.EncodeToString([]byte(all[2])), colons(secret))
	if utf8.Valid(secret) {
		quoted, _ := json.Marshal(string(secret))
		all = append(all, string(secret), strings.Trim(string(quoted), `"`))
	}
	return all
}

// colons is how openssl prints a key.
func colons(secret []byte) string {
	var out []string
	for _, b := range secret {
		out = append(out, hex.EncodeToString([]byte{b}))
	}
	return strings.Join(out, ":")
}

// keysOf are the private keys of a file: their PEM, its lines, and their bytes.
func keysOf(t *testing.T, path string) (secrets [][]byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no key in %s", path)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-----") && len(line) > 30 {
			secrets = append(secrets, []byte(line))
		}
	}
	return append(secrets, text, block.Bytes, block.Bytes[36:68])
}

// TestSysdumpHoldsNoSecrets: keys, tokens and passwords in every file that it
// reads and in what agent and cluster files say, however they are written.
func TestSysdumpHoldsNoSecrets(t *testing.T) {
	w := newWorld(t)
	w.pair()
	w.node()
	w.awaitSynced()
	foreign := w.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "other"})
	var secrets [][]byte
	for _, path := range []string{w.path("pki", "ca.key"), w.path("pki", "local-east.key"), w.path("pki", "remote-east.key"), foreign.Key} {
		secrets = append(secrets, keysOf(t, path)...)
	}
	random := make([]byte, 32)
	rand.Read(random)
	token := "cmjoin1-" + base64.RawURLEncoding.EncodeToString(append(random, random...))
	jwt := "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString(random) + "." + base64.RawURLEncoding.EncodeToString(random)
	secrets = append(secrets, random, []byte(token), []byte(jwt))
	var planted strings.Builder
	for _, s := range secrets {
		for _, text := range spellings(s) {
			fmt.Fprintf(&planted, "level=warn msg=\"something\" err=\"at %s and so on\"\nvalue: '%s'\n", text, text)
		}
	}
	fmt.Fprintf(&planted, "password: hunter2hunter2\nAuthorization: Bearer hunter2hunter2\n")
	w.write(harmless+planted.String(), "agent.log")
	w.write(harmless+"key: |\n  "+strings.ReplaceAll(string(keysOf(t, foreign.Key)[len(keysOf(t, foreign.Key))-3]), "\n", "\n  "), "config.yaml")
	// A cluster file that is wrong, and says so with what is in it.
	w.write("endpoints: [\"https://"+token+"\"]\nkey-file: x\n", "clusters", "north")
	w.write("endpoints: [https://192.0.2.1:1]\nca-file: "+foreign.Key+"\ncert-file: "+foreign.Key+"\nkey-file: "+foreign.Key+"\n", "clusters", "south")
	out, code := w.say("clustermesh sysdump -o DIR/dump.tar.gz --api-socket SOCKET --clusters CLUSTERS --agent-http http://127.0.0.1:1 --apiserver APISERVER-west --log DIR/agent.log --config-file DIR/config.yaml --log DIR/missing.log --timeout 10s")
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	files, _ := unpack(t, w.path("dump.tar.gz"))
	for name, content := range files {
		for _, s := range secrets {
			for _, text := range spellings(s) {
				if strings.Contains(content, text) {
					t.Errorf("%s holds %.40q", name, text)
				}
			}
		}
		if strings.Contains(content, "PRIVATE KEY-----") || strings.Contains(content, "hunter2") {
			t.Errorf("%s speaks of a private key", name)
		}
	}
	if strings.Contains(out, token) {
		t.Errorf("the output holds the token:\n%s", out)
	}
	for name, want := range map[string]string{
		"agent/status.json": `"cluster": "east"`, "agent/maps.json": `"10.96.0.10"`, "agent/services.json": `"cart"`, "clusters/west.json": `"https://west.mesh.cilium.io:`,
		"certificates.json": `"serial": "`, "findings.json": `"check": "agent-answers"`, "apiserver/metrics.txt": "clustermesh_", "apiserver/readyz.txt": "ready\n",
		"logs/0-agent.log": harmless, "config/0-config.yaml": harmless, "kernel/proc/version.txt": "Linux",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q: %.300q", name, want, files[name])
		}
	}
	checkManifest(t, files)
}

// harmless is what a dump is useless without.
const harmless = `time=2026-11-29T21:50:00Z level=INFO msg="cluster connected" cluster=west endpoint=https://west.mesh.cilium.io:2379 file=/etc/clustermesh/pki/remote-west.crt pod=rebel-base-7d9c5b8f6d-x2x4z
`

func checkManifest(t *testing.T, files map[string]string) {
	t.Helper()
	var m dumpManifest
	if err := json.Unmarshal([]byte(files["manifest.json"]), &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Files) != len(files)-1 || m.Redacted == 0 || m.Node == "" {
		t.Errorf("manifest of %d files, %d redacted, node %q; there are %d", len(m.Files), m.Redacted, m.Node, len(files))
	}
	for _, f := range m.Files {
		if sum := sha256.Sum256([]byte(files[f.Name])); hex.EncodeToString(sum[:]) != f.SHA256 || f.Bytes != len(files[f.Name]) {
			t.Errorf("%s is not as the manifest says", f.Name)
		}
	}
	missing := map[string]string{}
	for _, f := range m.Missing {
		missing[f.Name] = f.Why
	}
	for name, why := range map[string]string{"agent/metrics.txt": "refused", "logs/1-missing.log": "no such file"} {
		if !strings.Contains(missing[name], why) {
			t.Errorf("%s is missing because of %q, want %q", name, missing[name], why)
		}
	}
}

// TestSysdumpIsBoundedAndStable: the same content makes the same bytes, in order;
// what is too large is cut or left out, and said to be.
func TestSysdumpIsBoundedAndStable(t *testing.T) {
	dir := t.TempDir()
	pack := func(name string) {
		d := newDump("n1", testTime)
		d.json("a.json", map[string]any{"list": []string(nil), "text": "x"}, nil)
		large := make([]byte, maxEntry+1)
		for i := range 12 {
			d.add(fmt.Sprintf("logs/%02d", i), large)
		}
		d.miss("b.json", errors.New("not there"))
		if err := d.write(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	pack("one")
	pack("two")
	one, _ := os.ReadFile(dir + "/one")
	two, _ := os.ReadFile(dir + "/two")
	if !bytes.Equal(one, two) {
		t.Error("the same content makes different archives")
	}
	files, order := unpack(t, dir+"/one")
	if order[0] != "manifest.json" || !slices.IsSorted(order[1:]) {
		t.Errorf("files come as %q", order)
	}
	var m dumpManifest
	if err := json.Unmarshal([]byte(files["manifest.json"]), &m); err != nil || len(m.Files) != 7+1 || !m.Files[1].Cut || len(m.Missing) != 5+1 {
		t.Errorf("%v: %+v", err, m)
	}
	if err := newDump("n1", testTime).write(dir + "/one"); err == nil {
		t.Error("an archive is written over")
	}
}

func TestRedaction(t *testing.T) {
	random := make([]byte, 32)
	rand.Read(random)
	r := &redactor{}
	for text, kept := range map[string]bool{
		harmless: true, "": true, "10.244.1.17:8080": true, "cluster west: x509: certificate signed by unknown authority": true,
		"/tmp/TestWorld123/001/clusters/west": true, "cilium/state/services/v1/west/shop/cart-of-the-customer-service-v2": true,
		base64.StdEncoding.EncodeToString(random): false, hex.EncodeToString(random): false, "secret: abcdef": false, `{"token":"abcdef"}`: false, "cmjoin1-abc": false,
	} {
		if got := r.text(text); (got == text) != kept {
			t.Errorf("%q becomes %q", text, got)
		}
	}
}

var testTime = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// TestNoSpellingOfAKeySurvives, wherever it lies in a text, whole or as any part
// that is long enough to be told.
func TestNoSpellingOfAKeySurvives(t *testing.T) {
	around := rapid.SampledFrom([]string{"", " ", "=", "key ", "\"", "'", "\n", "/", "/etc/pki/", "a", "Zz9", "err=", "&"})
	rapid.Check(t, func(t *rapid.T) {
		key := make([]byte, 32)
		rand.Read(key)
		r := &redactor{}
		r.knowBytes(append(bytes.Repeat([]byte{7}, headerLength), key...))
		text := rapid.SampledFrom(spellings(key)).Draw(t, "spelling")
		if rapid.Bool().Draw(t, "part") && text != string(key) {
			from := rapid.IntRange(0, len(text)-3*partLength/2).Draw(t, "from")
			if text = text[from : from+3*partLength/2]; !r.knows(text) {
				return // of the spellings that are told by their length
			}
		}
		whole := around.Draw(t, "before") + text + around.Draw(t, "behind")
		if got := r.text(whole); strings.Contains(got, text) {
			t.Errorf("%q stays in %q", text, got)
		}
	})
}
