package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

func mustCerts(t *testing.T, path string) []*x509.Certificate {
	t.Helper()
	found, err := readCerts(path)
	must(t, err)
	return found
}

// withCRL gives both sides of the bench an empty revocation list.
func withCRL(t *testing.T, b bench) bench {
	t.Helper()
	_, err := Revoke(b.dir, RevokeRequest{})
	must(t, err)
	b.server.CRL = filepath.Join(b.dir, crlFile)
	b.client.CRL = b.server.CRL
	return b
}

func TestRevokedClientIsRefusedLive(t *testing.T) {
	b := withCRL(t, newBench(t))
	srv, err := ServerTLS(b.server, nil)
	must(t, err)
	addr := serve(t, srv)
	bad := rawClient(t, b, rawPair(t, b.client.Cert, b.client.Key))
	must(t, dial(addr, bad))
	_, err = Issue(b.dir, IssueRequest{Kind: Remote, Cluster: "north"})
	must(t, err)
	good := rawClient(t, b, rawPair(t, filepath.Join(b.dir, "remote-north.crt"), filepath.Join(b.dir, "remote-north.key")))

	gone, err := Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	if len(gone) != 1 || gone[0].Name != "remote-west" {
		t.Errorf("revoked %+v", gone)
	}
	if err := dial(addr, bad); err == nil {
		t.Error("a revoked client got in")
	}
	must(t, dial(addr, good))
	_, err = Revoke(b.dir, RevokeRequest{Files: []string{filepath.Join(b.dir, "remote-north.crt")}})
	must(t, err)
	for _, cfg := range []*tls.Config{bad, good} {
		if err := dial(addr, cfg); err == nil {
			t.Error("the second revocation forgot one")
		}
	}
	if mode := leafMode(t, b.server.CRL); mode != disk.CertMode {
		t.Errorf("mode %s", mode)
	}
	must(t, os.Remove(b.server.CRL))
	if err := dial(addr, bad); err == nil {
		t.Error("removing the list let a revoked client in")
	}
}

func leafMode(t *testing.T, path string) os.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	return st.Mode().Perm()
}

func TestRevokedServerIsRefusedLive(t *testing.T) {
	for _, name := range []string{"east.mesh.cilium.io", ""} {
		b := withCRL(t, newBench(t))
		b.client.ServerName = name
		srv, err := ServerTLS(b.server, nil)
		must(t, err)
		addr := serve(t, srv)
		cli, err := ClientTLS(b.client, nil)
		must(t, err)
		cli = cli.Clone()
		cli.ServerName = "east.mesh.cilium.io"
		must(t, dial(addr, cli))
		_, err = Revoke(b.dir, RevokeRequest{Serials: []string{serialOf(leafOf(t, b.server.Cert))}})
		must(t, err)
		if err := dial(addr, cli); !errors.Is(err, ErrRevoked) {
			t.Errorf("name %q: a revoked server: %v", name, err)
		}
	}
}

func TestTrustTellsWhoWouldBeRefused(t *testing.T) {
	b := withCRL(t, newBench(t))
	files, err := Issue(b.dir, IssueRequest{Kind: Remote, Cluster: "short", Validity: time.Hour})
	must(t, err)
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	state := func(path string) tls.ConnectionState {
		return tls.ConnectionState{PeerCertificates: mustCerts(t, path)}
	}
	west := state(b.client.Cert)
	must(t, trust.CheckClient(west))
	must(t, trust.CheckClient(state(files.Cert)))
	if trust.CheckClient(state(b.server.Cert)) == nil || trust.CheckClient(tls.ConnectionState{}) == nil || trust.CheckClient(state(newBench(t).client.Cert)) == nil {
		t.Error("a server, nobody, or a stranger would be let in")
	}
	_, err = Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	if err := trust.CheckClient(west); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked while connected: %v", err)
	}
	rest := newBench(t)
	copyTo(t, rest.server.ClientCA, b.server.ClientCA)
	_, err = Revoke(rest.dir, RevokeRequest{})
	must(t, err)
	copyTo(t, filepath.Join(rest.dir, crlFile), b.server.CRL)
	if trust.CheckClient(state(files.Cert)) == nil {
		t.Error("a client of a CA that was withdrawn would be let in")
	}
}

// TestWithdrawnCAWithTheOnlyList: that the list beside it is nobody's any more
// does not keep a CA in force.
func TestWithdrawnCAWithTheOnlyList(t *testing.T) {
	b, other := withCRL(t, newBench(t)), newBench(t)
	own, theirs, list := read1(t, b.server.ClientCA), read1(t, other.server.ClientCA), read1(t, b.server.CRL)
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, append(append([]byte(nil), own...), theirs...)))
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	state := func(path string) tls.ConnectionState {
		return tls.ConnectionState{PeerCertificates: mustCerts(t, path)}
	}
	must(t, trust.CheckClient(state(b.client.Cert)))
	must(t, trust.CheckClient(state(other.client.Cert)))
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, theirs))
	if trust.CheckClient(state(b.client.Cert)) == nil {
		t.Error("a client of a CA that was withdrawn would be let in")
	}
	must(t, trust.CheckClient(state(other.client.Cert)))
	must(t, os.Remove(b.server.CRL)) // together with its list
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, append(append([]byte(nil), own...), theirs...)))
	if trust.CheckClient(state(b.client.Cert)) == nil {
		t.Error("a client of a CA that came without its list would be let in")
	}
	must(t, disk.Replace(b.server.CRL, disk.CertMode, list))
	must(t, trust.CheckClient(state(b.client.Cert)))
	must(t, os.Remove(b.server.CRL))
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, theirs))
	if trust.CheckClient(state(b.client.Cert)) == nil {
		t.Error("a client of a CA that was withdrawn with its list would be let in")
	}
	must(t, trust.CheckClient(state(other.client.Cert)))
	must(t, disk.Replace(b.server.CRL, disk.CertMode, list))
	// What comes back waits for a list that fits.
	third := newBench(t)
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, append(append([]byte(nil), theirs...), read1(t, third.server.ClientCA)...)))
	if trust.CheckClient(state(third.client.Cert)) == nil {
		t.Error("a client of a CA that came without a list that fits would be let in")
	}
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, append(append([]byte(nil), theirs...), own...)))
	must(t, trust.CheckClient(state(b.client.Cert)))
}

// TestListOfOneCALost: the other CA's list does not stand for it.
func TestListOfOneCALost(t *testing.T) {
	b, other := withCRL(t, newBench(t)), withCRL(t, newBench(t))
	_, err := Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	theirs := read1(t, other.server.CRL)
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, append(read1(t, b.server.ClientCA), read1(t, other.server.ClientCA)...)))
	must(t, disk.Replace(b.server.CRL, disk.CertMode, append(read1(t, b.server.CRL), theirs...)))
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	must(t, disk.Replace(b.server.CRL, disk.CertMode, theirs))
	if err := trust.CheckClient(tls.ConnectionState{PeerCertificates: mustCerts(t, b.client.Cert)}); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked in the list that is gone: %v", err)
	}
}

// TestLostListIsMadeAgain: what was taken back stays so.
func TestLostListIsMadeAgain(t *testing.T) {
	b := withCRL(t, newBench(t))
	_, err := Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	must(t, os.Remove(b.server.CRL))
	withCRL(t, b)
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	if err := trust.CheckClient(tls.ConnectionState{PeerCertificates: mustCerts(t, b.client.Cert)}); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked before the list got lost: %v", err)
	}
}

func TestTrustTellsExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := newCADir(t)
		files, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "short", Validity: time.Hour})
		must(t, err)
		trust, err := NewTrust(ServerFiles{ClientCA: files.CA}, nil)
		must(t, err)
		cs := tls.ConnectionState{PeerCertificates: mustCerts(t, files.Cert)}
		must(t, trust.CheckClient(cs))
		time.Sleep(time.Hour + time.Second)
		if trust.CheckClient(cs) == nil {
			t.Error("an expired client would be let in")
		}
	})
}

// TestRevocationListMustBeUsable: a list that is cut off, foreign or changed
// must neither start a server nor replace the list in force.
func TestRevocationListMustBeUsable(t *testing.T) {
	b, other := withCRL(t, newBench(t)), withCRL(t, newBench(t))
	_, err := Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	whole := read1(t, b.server.CRL)
	srv, err := ServerTLS(b.server, nil)
	must(t, err)
	addr := serve(t, srv)
	bad := rawClient(t, b, rawPair(t, b.client.Cert, b.client.Key))
	forged := append([]byte(nil), whole...)
	forged[len(forged)/2] ^= 1
	damaged := append(bytes.Replace(whole, []byte("-----BEGIN X509 CRL-----\n"), []byte("-----BEGIN X509 CRL-----\n!"), 1), whole...)
	for name, data := range map[string][]byte{
		"damaged before a whole one": damaged,
		"empty":                      nil, "cut off": whole[:len(whole)/2], "of another CA": read1(t, other.server.CRL), "a certificate": read1(t, b.server.Cert), "changed": forged,
	} {
		must(t, disk.Replace(b.server.CRL, disk.CertMode, data))
		if _, err := ServerTLS(b.server, nil); err == nil {
			t.Errorf("%s: a server started with it", name)
		}
		if err := dial(addr, bad); err == nil {
			t.Errorf("%s: let a revoked client in", name)
		}
		if _, err := Revoke(b.dir, RevokeRequest{Names: []string{"server-east"}}); err == nil {
			t.Errorf("%s: was replaced by a new list that forgot the old entries", name)
		}
	}
	must(t, os.Remove(b.server.CRL))
	_, err = ServerTLS(b.server, nil)
	wantError(t, err, "clustermesh certs revoke")
}

func TestRevokeSaysWhatItDoesNotKnow(t *testing.T) {
	b, other := newBench(t), newBench(t)
	_, err := Revoke(b.dir, RevokeRequest{Names: []string{"remote-nobody"}, Serials: []string{"abc"}, Files: []string{other.client.Cert, "missing.crt"}})
	for _, want := range []string{`name "remote-nobody"`, `serial "abc"`, "was not issued by the CA", "missing.crt"} {
		wantError(t, err, want)
	}
	if _, err := os.Stat(filepath.Join(b.dir, crlFile)); err == nil {
		t.Error("a list was written although nothing was revoked")
	}
}

// TestRevocationOutlivesRotation: what the old CA issued and took back stays
// refused while the old CA is believed.
func TestRevocationOutlivesRotation(t *testing.T) {
	b := withCRL(t, newBench(t))
	srv, err := ServerTLS(b.server, nil)
	must(t, err)
	addr := serve(t, srv)
	bad := rawPair(t, b.client.Cert, b.client.Key)
	_, err = Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	for _, step := range []func(string, RotateOptions) (Rotation, error){PrepareCA, ActivateCA, RetireCA} {
		_, err := step(b.dir, RotateOptions{Force: true})
		must(t, err)
		_, err = Renew(b.dir, RenewOptions{Names: []string{"server-east"}})
		must(t, err)
		cfg := rawClient(t, b, bad)
		cfg.RootCAs = poolOf(mustCerts(t, b.client.CA))
		if err := dial(addr, cfg); err == nil {
			t.Error("a revoked client got in during the rotation")
		}
		fresh, err := Issue(b.dir, IssueRequest{Kind: Remote, Cluster: "north"})
		must(t, err)
		cfg = rawClient(t, b, rawPair(t, fresh.Cert, fresh.Key))
		cfg.RootCAs = poolOf(mustCerts(t, b.client.CA))
		must(t, dial(addr, cfg))
	}
}
