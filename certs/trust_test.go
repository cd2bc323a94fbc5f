package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// TestOlderListIsRefused: a list that is put back does not put back what was
// revoked since, and that it is there is said with what to do.
func TestOlderListIsRefused(t *testing.T) {
	b := withCRL(t, newBench(t))
	logs := &syncBuffer{}
	trust, err := NewTrust(b.server, slog.New(slog.NewTextHandler(logs, nil)))
	must(t, err)
	west := tls.ConnectionState{PeerCertificates: mustCerts(t, b.client.Cert)}
	must(t, trust.CheckClient(west))
	empty := read1(t, b.server.CRL)
	_, err = Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	wantRevoked := func(when string) {
		t.Helper()
		if err := trust.CheckClient(west); !errors.Is(err, ErrRevoked) {
			t.Errorf("%s: %v", when, err)
		}
	}
	wantRevoked("revoked")
	must(t, disk.Replace(b.server.CRL, disk.CertMode, empty))
	wantRevoked("the list before was put back")
	wantRevoked("and looked at again")
	if n := strings.Count(logs.String(), "which was in force before"); n != 1 || !strings.Contains(logs.String(), "clustermesh certs revoke --dir DIR") {
		t.Errorf("said %d times, want once with a remedy:\n%s", n, logs)
	}
	// The CA's directory has the old list too, yet knows what it revoked.
	_, err = Issue(b.dir, IssueRequest{Kind: Remote, Cluster: "north"})
	must(t, err)
	_, err = Revoke(b.dir, RevokeRequest{Names: []string{"remote-north"}})
	must(t, err)
	wantRevoked("after the remedy")
	north := tls.ConnectionState{PeerCertificates: mustCerts(t, filepath.Join(b.dir, "remote-north.crt"))}
	if err := trust.CheckClient(north); !errors.Is(err, ErrRevoked) {
		t.Errorf("the list that is the remedy does not count: %v", err)
	}
}

// TestListMadeAnewIsNotOlder: whoever follows the file takes what is made again
// after it was lost.
func TestListMadeAnewIsNotOlder(t *testing.T) {
	b := withCRL(t, newBench(t))
	for _, name := range []string{"a", "b", "c"} {
		_, err := Issue(b.dir, IssueRequest{Kind: Remote, Cluster: name})
		must(t, err)
		_, err = Revoke(b.dir, RevokeRequest{Names: []string{"remote-" + name}})
		must(t, err)
	}
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	must(t, os.Remove(b.server.CRL))
	_, err = Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	if err := trust.CheckClient(tls.ConnectionState{PeerCertificates: mustCerts(t, b.client.Cert)}); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked in the list that was made anew: %v", err)
	}
}

// TestEditionsOfOthersTools: some write no number, RFC 5280 or not.
func TestEditionsOfOthersTools(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	of := func(number int64, at time.Time) edition {
		e := edition{at: at}
		if number > 0 {
			e.number = big.NewInt(number)
		}
		return e
	}
	later := now.Add(time.Second)
	for _, row := range []struct {
		name string
		a, b edition
		want bool
	}{
		{"lower number, later", of(1, later), of(2, now), true},
		{"higher number, earlier", of(2, now), of(1, later), false},
		{"same number, earlier", of(1, now), of(1, later), true},
		{"the same", of(1, now), of(1, now), false},
		{"no numbers, earlier", of(0, now), of(0, later), true},
		{"no numbers, later", of(0, later), of(0, now), false},
		{"number lost, later", of(0, later), of(9, now), false},
		{"number lost, earlier", of(0, now), of(9, later), true},
		{"the first", of(1, now), edition{}, false},
	} {
		if got := row.a.olderThan(row.b); got != row.want {
			t.Errorf("%s: older is %v", row.name, got)
		}
	}
}

// TestEarlierListOfTheSameNumberIsRefused: what a tool that does not count writes.
func TestEarlierListOfTheSameNumberIsRefused(t *testing.T) {
	b := withCRL(t, newBench(t))
	ca, err := pairIssuer(filepath.Join(b.dir, caCertFile), filepath.Join(b.dir, caKeyFile))
	must(t, err)
	west := mustCerts(t, b.client.Cert)
	list := func(at time.Time, gone ...x509.RevocationListEntry) []byte {
		template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: at, NextUpdate: at.Add(time.Hour), RevokedCertificateEntries: gone}
		der, err := x509.CreateRevocationList(rand.Reader, template, ca.cert, ca.key)
		must(t, err)
		return pem.EncodeToMemory(&pem.Block{Type: pemCRL, Bytes: der})
	}
	now := time.Now()
	must(t, disk.Replace(b.server.CRL, disk.CertMode, list(now, x509.RevocationListEntry{SerialNumber: west[0].SerialNumber, RevocationTime: now})))
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	must(t, disk.Replace(b.server.CRL, disk.CertMode, list(now.Add(-time.Minute))))
	if err := trust.CheckClient(tls.ConnectionState{PeerCertificates: west}); !errors.Is(err, ErrRevoked) {
		t.Errorf("a list of the minute before: %v", err)
	}
}

// TestWithdrawnCAIsRemembered by its key, until it is back.
func TestWithdrawnCAIsRemembered(t *testing.T) {
	b, other := newBench(t), newBench(t)
	own, theirs := read1(t, b.server.ClientCA), read1(t, other.server.ClientCA)
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	west, stranger := mustCerts(t, b.client.Cert), mustCerts(t, other.client.Cert)
	check := func(when string, refused bool, chain []*x509.Certificate) {
		t.Helper()
		var unknown x509.UnknownAuthorityError
		if err := trust.Revoked(chain); errors.As(err, &unknown) != refused {
			t.Errorf("%s: %v", when, err)
		}
		if _, err := trust.Chains(chain, time.Now()); refused && err == nil {
			t.Errorf("%s: it leads to a CA", when)
		}
	}
	check("its CA is there", false, west)
	check("its CA was never there", false, stranger)
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, theirs))
	check("its CA is withdrawn", true, west)
	check("its CA came", false, stranger)
	third := newBench(t)
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, read1(t, third.server.ClientCA)))
	check("its CA was withdrawn before the last change", true, west)
	check("its CA is withdrawn too", true, stranger)
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, own))
	check("its CA is back", false, west)
}

// TestStaleListHoldsUpNoCA: a rotation hands out ca.crt with the new CA, and the
// ca.crl beside it may be one of the day before. Whoever has been renewed gets in,
// and what was revoked stays revoked.
func TestStaleListHoldsUpNoCA(t *testing.T) {
	b := withCRL(t, newBench(t))
	served := b.server
	served.ClientCA, served.CRL = copyTo(t, b.server.ClientCA, filepath.Join(t.TempDir(), "ca.crt")), copyTo(t, b.server.CRL, filepath.Join(t.TempDir(), "ca.crl"))
	stale := read1(t, b.server.CRL)
	_, err := Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	copyTo(t, b.server.CRL, served.CRL)
	logs := &syncBuffer{}
	trust, err := NewTrust(served, slog.New(slog.NewTextHandler(logs, nil)))
	must(t, err)
	west := tls.ConnectionState{PeerCertificates: mustCerts(t, b.client.Cert)}
	_, err = PrepareCA(b.dir, RotateOptions{})
	must(t, err)
	_, err = ActivateCA(b.dir, RotateOptions{Force: true})
	must(t, err)
	_, err = Issue(b.dir, IssueRequest{Kind: Remote, Cluster: "north"})
	must(t, err)
	north := tls.ConnectionState{PeerCertificates: mustCerts(t, filepath.Join(b.dir, "remote-north.crt"))}
	for _, row := range []struct {
		name string
		list []byte
	}{{"stale", stale}, {"of somebody else", read1(t, withCRL(t, newBench(t)).server.CRL)}, {"stale again", stale}} {
		must(t, disk.Replace(served.CRL, disk.CertMode, row.list))
		copyTo(t, b.server.ClientCA, served.ClientCA)
		if err := trust.CheckClient(north); err != nil {
			t.Errorf("the list is %s: the new CA is not trusted: %v", row.name, err)
		}
		if err := trust.CheckClient(west); !errors.Is(err, ErrRevoked) {
			t.Errorf("the list is %s: %v", row.name, err)
		}
	}
	if !strings.Contains(logs.String(), "which was in force before") || !strings.Contains(logs.String(), "restart") {
		t.Errorf("it is not said, or not with all that helps:\n%s", logs)
	}
	copyTo(t, b.server.CRL, served.CRL)
	if err := trust.CheckClient(west); !errors.Is(err, ErrRevoked) {
		t.Errorf("the list is right: %v", err)
	}
}

// TestCAThatIsBackKeepsItsList: it was out of the bundle for a while, and comes
// with a list of before that, or with none.
func TestCAThatIsBackKeepsItsList(t *testing.T) {
	b, other := withCRL(t, newBench(t)), withCRL(t, newBench(t))
	own, theirs := read1(t, b.server.ClientCA), read1(t, other.server.ClientCA)
	empty, ofOther := read1(t, b.server.CRL), read1(t, other.server.CRL)
	_, err := Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	for name, list := range map[string][]byte{"an older list": slices.Concat(empty, ofOther), "no list": ofOther} {
		must(t, disk.Replace(b.server.CRL, disk.CertMode, ofOther))
		must(t, disk.Replace(b.server.ClientCA, disk.CertMode, theirs))
		must(t, trust.CheckClient(tls.ConnectionState{PeerCertificates: mustCerts(t, other.client.Cert)}))
		must(t, disk.Replace(b.server.CRL, disk.CertMode, list))
		must(t, disk.Replace(b.server.ClientCA, disk.CertMode, slices.Concat(own, theirs)))
		if err := trust.CheckClient(tls.ConnectionState{PeerCertificates: mustCerts(t, b.client.Cert)}); !errors.Is(err, ErrRevoked) {
			t.Errorf("back with %s: %v", name, err)
		}
	}
}

// TestCrossSignedCAOutlivesTheOneThatSignedIt: the old CA's signature of the new
// one, which some send along, says nothing against the new one.
func TestCrossSignedCAOutlivesTheOneThatSignedIt(t *testing.T) {
	b := newBench(t)
	old, err := pairIssuer(filepath.Join(b.dir, caCertFile), filepath.Join(b.dir, caKeyFile))
	must(t, err)
	next := newBench(t)
	root := mustCerts(t, next.server.ClientCA)[0]
	cross := *root
	cross.SerialNumber, cross.Raw, cross.AuthorityKeyId = big.NewInt(77), nil, nil
	der, err := x509.CreateCertificate(rand.Reader, &cross, old.cert, root.PublicKey, old.key)
	must(t, err)
	bridge, err := x509.ParseCertificate(der)
	must(t, err)
	trust, err := NewTrust(b.server, nil)
	must(t, err)
	sent := []*x509.Certificate{mustCerts(t, next.client.Cert)[0], bridge}
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, read1(t, next.server.ClientCA)))
	if err := trust.Revoked(sent); err != nil {
		t.Errorf("a certificate of a CA that is trusted: %v", err)
	}
	third := newBench(t)
	must(t, disk.Replace(b.server.ClientCA, disk.CertMode, read1(t, third.server.ClientCA)))
	if err := trust.Revoked(sent); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("a certificate that leads to withdrawn CAs alone: %v", err)
	}
}
