package certs

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestInitCACreatesPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	must(t, InitCA(dir, CAOptions{}))
	wantMode(t, dir, 0o700)
	wantMode(t, filepath.Join(dir, "ca.key"), 0o600)
	wantMode(t, filepath.Join(dir, "ca.crt"), 0o644)
	ca := leafOf(t, filepath.Join(dir, "ca.crt"))
	if !ca.IsCA || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || !ca.MaxPathLenZero {
		t.Errorf("not a plain CA: IsCA=%v usage=%v", ca.IsCA, ca.KeyUsage)
	}
	if years := time.Until(ca.NotAfter).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("CA is valid for %.2f years, want 10", years)
	}
	wantNoLeftovers(t, dir, "ca.crt", "ca.key")
}

func TestInitCANeverOverwrites(t *testing.T) {
	for _, present := range []string{"ca.crt", "ca.key"} {
		dir := t.TempDir()
		must(t, os.Chmod(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, present), []byte("precious"), 0o600))
		err := InitCA(dir, CAOptions{})
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("InitCA beside %s = %v, want an ErrExist that says what to do", present, err)
		}
		wantNoLeftovers(t, dir, present)
		if got, _ := os.ReadFile(filepath.Join(dir, present)); string(got) != "precious" {
			t.Errorf("%s was overwritten", present)
		}
	}
}

func TestInitCARaceHasOneWinner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	const racers = 8
	errs := make(chan error, racers)
	for range racers {
		go func() { errs <- InitCA(dir, CAOptions{}) }()
	}
	won := 0
	for range racers {
		if err := <-errs; err == nil {
			won++
		} else if !errors.Is(err, fs.ErrExist) {
			t.Errorf("loser got %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d InitCA calls succeeded, want 1", won)
	}
	if _, err := Issue(dir, IssueRequest{Kind: Remote}); err != nil {
		t.Errorf("the pair left behind does not work: %v", err)
	}
}

func TestDirectoryWritableByOthersIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777))
	err := InitCA(dir, CAOptions{})
	if err == nil || !strings.Contains(err.Error(), "chmod 0700") {
		t.Errorf("InitCA in a 0777 directory = %v", err)
	}
}

func TestIssue(t *testing.T) {
	dir := newCADir(t)
	cases := []struct {
		req  IssueRequest
		base string
		cn   string
		use  x509.ExtKeyUsage
		sans []string
	}{
		{IssueRequest{Kind: Server, Cluster: "east", Hosts: []string{"Mesh.Example.com", "192.0.2.7", "2001:db8::7", "localhost"}}, "server-east",
			"clustermesh-apiserver.east", x509.ExtKeyUsageServerAuth,
			[]string{"east.mesh.cilium.io", "localhost", "mesh.example.com", "127.0.0.1", "::1", "192.0.2.7", "2001:db8::7"}},
		{IssueRequest{Kind: Remote, Cluster: "east"}, "remote-east", "remote-east", x509.ExtKeyUsageClientAuth, nil},
		{IssueRequest{Kind: Remote}, "remote", "remote", x509.ExtKeyUsageClientAuth, nil},
		{IssueRequest{Kind: Local, Cluster: "east"}, "local-east", "local-east", x509.ExtKeyUsageClientAuth, nil},
	}
	for _, tc := range cases {
		t.Run(tc.base, func(t *testing.T) {
			files, err := Issue(dir, tc.req)
			must(t, err)
			if want := filepath.Join(dir, tc.base); files.Cert != want+".crt" || files.Key != want+".key" {
				t.Errorf("files = %+v, want %s.crt and .key", files, want)
			}
			wantMode(t, files.Key, 0o600)
			c := leafOf(t, files.Cert)
			if c.Subject.CommonName != tc.cn || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{tc.use}) || c.IsCA {
				t.Errorf("CN %q, usages %v, CA %v", c.Subject.CommonName, c.ExtKeyUsage, c.IsCA)
			}
			if got := sans(c); !slices.Equal(got, tc.sans) {
				t.Errorf("SANs\n got %q\nwant %q", got, tc.sans)
			}
			if d := time.Until(c.NotAfter); d > 366*day || d < 364*day {
				t.Errorf("valid for %s, want a year", d)
			}
		})
	}
}

func TestIssueNeverOutlivesCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	must(t, InitCA(dir, CAOptions{Validity: time.Hour}))
	files, err := Issue(dir, IssueRequest{Kind: Remote})
	must(t, err)
	if ca, leaf := leafOf(t, files.CA), leafOf(t, files.Cert); !leaf.NotAfter.Equal(ca.NotAfter) || !files.NotAfter.Equal(ca.NotAfter) {
		t.Errorf("leaf ends %s (reported %s), CA %s", leaf.NotAfter, files.NotAfter, ca.NotAfter)
	}
}

func TestIssueRequestReportsAllProblems(t *testing.T) {
	err := IssueRequest{Kind: "admin", Cluster: "East_1", Hosts: []string{"https://x:2379", "ok.example"}, Validity: -1}.Validate()
	for _, want := range []string{`kind "admin"`, `cluster name "East_1"`, "hosts are for server", `host "https://x:2379"`, "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
	for _, kind := range []Kind{Server, Local} {
		if err := (IssueRequest{Kind: kind}).Validate(); err == nil {
			t.Errorf("%s without cluster passed", kind)
		}
	}
}

func TestIssueWithoutCASaysHowToGetOne(t *testing.T) {
	_, err := Issue(filepath.Join(t.TempDir(), "none"), IssueRequest{Kind: Remote})
	if err == nil || !strings.Contains(err.Error(), "certs init --dir") {
		t.Errorf("error %v does not name the remedy", err)
	}
}

func TestInspect(t *testing.T) {
	dir := newCADir(t)
	for _, req := range []IssueRequest{{Kind: Server, Cluster: "east"}, {Kind: Remote, Cluster: "east"}, {Kind: Local, Cluster: "east"}} {
		files, err := Issue(dir, req)
		must(t, err)
		infos, err := Inspect(files.Cert)
		must(t, err)
		if len(infos) != 1 || infos[0].Kind != req.Kind || infos[0].Issuer != "CN=clustermesh CA" || !infos[0].Valid(time.Now()) || infos[0].SelfSigned {
			t.Errorf("Inspect(%s) = %+v", files.Cert, infos)
		}
	}
	infos, err := Inspect(filepath.Join(dir, "ca.crt"))
	must(t, err)
	if infos[0].Kind != CA || !infos[0].SelfSigned || len(infos[0].Fingerprint) != 64 {
		t.Errorf("CA inspected as %+v", infos[0])
	}
	if _, err := Inspect(filepath.Join(dir, "ca.key")); err == nil || !strings.Contains(err.Error(), "EC PRIVATE KEY") {
		t.Errorf("Inspect of a key = %v", err)
	}
}

func newCADir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	must(t, InitCA(dir, CAOptions{}))
	return dir
}

func leafOf(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	if got := st.Mode().Perm(); got != want {
		t.Errorf("%s has mode %04o, want %04o", path, got, want)
	}
}

func wantNoLeftovers(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("directory holds %q, want %q", got, want)
	}
}
