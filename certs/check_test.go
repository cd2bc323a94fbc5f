package certs

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// checkDir is Check of everything in the directory of a bench, now.
func checkDir(t *testing.T, dir string) []Finding {
	t.Helper()
	links, err := DirLinks(dir)
	must(t, err)
	return Check(links, time.Now())
}

func broken(list []Finding) []string {
	var out []string
	for _, f := range list {
		if f.Broken {
			out = append(out, f.Link+": "+f.Problem)
		}
	}
	return out
}

func TestCheckNamesWhatIsBroken(t *testing.T) {
	b := withCRL(t, newBench(t))
	if got := broken(checkDir(t, b.dir)); got != nil {
		t.Errorf("a sound directory is said to be broken: %q", got)
	}
	other := newBench(t)
	cases := []struct {
		want string
		do   func(dir string, b bench)
	}{
		{"remote-west: .*key .*does not match", func(_ string, b bench) { copyTo(t, b.server.Key, b.client.Key) }},
		{"foreign: .*does not verify", func(dir string, _ bench) { copyTo(t, other.client.Cert, filepath.Join(dir, "foreign.crt")) }},
		{"server-east: .*no complete PEM", func(_ string, b bench) { must(t, os.WriteFile(b.server.Cert, []byte("x"), 0o600)) }},
		{"expired: .*expired on", func(_ string, b bench) {
			b.forge(t, "expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}},
		{"early: .*not valid before", func(_ string, b bench) {
			b.forge(t, "early", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
		}},
		{"admin: .*serves neither", func(_ string, b bench) {
			b.forge(t, "admin", func(c *x509.Certificate) {
				c.Subject.CommonName, c.ExtKeyUsage = "admin-east", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			})
		}},
		{"remote-west: .*revoked", func(dir string, b bench) {
			_, err := Revoke(dir, RevokeRequest{Files: []string{b.client.Cert}})
			must(t, err)
		}},
		{"CA: .*does not match", func(dir string, b bench) { copyTo(t, other.dir+"/ca.key", dir+"/ca.key") }},
		{"CA bundle: .*is not a CA", func(dir string, b bench) {
			must(t, os.WriteFile(dir+"/ca.crt", append(read1(t, dir+"/ca.crt"), read1(t, b.client.Cert)...), 0o600))
		}},
	}
	for _, tc := range cases {
		b := withCRL(t, newBench(t))
		tc.do(b.dir, b)
		got := broken(checkDir(t, b.dir))
		name, text, _ := strings.Cut(tc.want, ": .*")
		if !slices.ContainsFunc(got, func(s string) bool {
			return strings.HasPrefix(s, name+": ") && strings.Contains(s, strings.SplitN(text, ".*", 2)[0])
		}) {
			t.Errorf("want %q among %q", tc.want, got)
		}
	}
}

func TestCheckVerifiesTheNamesClientsAskFor(t *testing.T) {
	b := newBench(t)
	l := Link{Name: "to east", Kind: Server, Cert: b.server.Cert, CA: b.client.CA, Hosts: []string{"east.mesh.cilium.io", "127.0.0.1"}}
	if got := broken(Check([]Link{l}, time.Now())); got != nil {
		t.Errorf("broken: %q", got)
	}
	l.Hosts = append(l.Hosts, "192.0.2.9")
	if got := broken(Check([]Link{l}, time.Now())); len(got) != 1 || !strings.Contains(got[0], "192.0.2.9") {
		t.Errorf("a name the certificate lacks: %q", got)
	}
	l.Kind, l.Hosts = Remote, nil
	if got := broken(Check([]Link{l}, time.Now())); len(got) != 1 || !strings.Contains(got[0], "not meant for TLS clients") {
		t.Errorf("a server certificate as client: %q", got)
	}
	l.CA = filepath.Join(b.dir, "missing")
	if got := broken(Check([]Link{l}, time.Now())); len(got) != 3 {
		t.Errorf("without CA: %q", got)
	}
}

func TestCheckTellsWhichLinkBreaksWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "pki")
		must(t, InitCA(dir, CAOptions{Validity: 100 * day}))
		for cluster, life := range map[string]time.Duration{"a": 30 * day, "b": 10 * day, "c": 365 * day} {
			_, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: cluster, Validity: life})
			must(t, err)
		}
		var got []string
		for _, f := range checkDir(t, dir) {
			got = append(got, f.Link+" "+time.Until(f.At).String())
		}
		want := []string{"remote-b 240h0m0s", "remote-a 720h0m0s", "CA 2400h0m0s", "CA bundle 2400h0m0s", "remote-c 2400h0m0s"}
		if !slices.Equal(got, want) {
			t.Errorf("findings\n got %q\nwant %q", got, want)
		}
		// What Check foretells is what happens.
		for _, f := range checkDir(t, dir)[:2] {
			time.Sleep(time.Until(f.At))
			if b := broken(checkDir(t, dir)); slices.ContainsFunc(b, func(s string) bool { return strings.HasPrefix(s, f.Link+":") }) {
				t.Errorf("%s is broken already: %q", f.Link, b)
			}
			time.Sleep(time.Second)
			if b := broken(checkDir(t, dir)); !slices.ContainsFunc(b, func(s string) bool { return strings.HasPrefix(s, f.Link+":") }) {
				t.Errorf("%s is not broken after %s: %q", f.Link, f.At, b)
			}
		}
	})
}

// TestCheckSeesWhatARotationWouldBreak: a bundle whose CA ends while a link
// still needs it breaks with that CA, although the file goes on.
func TestCheckSeesWhatARotationWouldBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "pki")
		must(t, InitCA(dir, CAOptions{Validity: 100 * day}))
		_, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "a"})
		must(t, err)
		_, err = PrepareCA(dir, RotateOptions{CA: CAOptions{Validity: 1000 * day}})
		must(t, err)
		harmless := 0
		for _, f := range checkDir(t, dir) {
			if f.Harmless {
				harmless++
			}
			if f.Link == "remote-a" && time.Until(f.At) != 100*day {
				t.Errorf("remote-a breaks in %s: %+v", time.Until(f.At), f)
			}
		}
		if harmless != 1 {
			t.Errorf("%d CAs end without harm, want the old one", harmless)
		}
	})
}
