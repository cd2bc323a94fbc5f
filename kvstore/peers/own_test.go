package peers

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"
)

// ownCAs stand for the CAs of the cluster itself, which change while it runs.
type ownCAs struct{ now []*authority }

func (o *ownCAs) Chains(chain []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	roots := x509.NewCertPool()
	for _, a := range o.now {
		roots.AddCert(a.cert)
	}
	return chain[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

const ownFile = "ca: own\nsees: all\nidentity: {common-name: remote-"

// TestOwnCAIsThatOfTheMoment: peers of the own CA need not say that they share
// it, are told apart by their names, and follow the CA when it is replaced.
func TestOwnCAIsThatOfTheMoment(t *testing.T) {
	first, second := newAuthority(t, "own"), newAuthority(t, "own")
	own := &ownCAs{now: []*authority{first}}
	f := newFolder(t)
	f.d = NewDirectory(f.path, own, nil)
	for _, name := range []string{"west", "north"} {
		f.write(name+".yaml", ownFile+name+"}\n")
	}
	south := newAuthority(t, "south")
	f.write("south.yaml", goodFile(south, "common-name: remote-south"))
	f.load()
	if p := f.d.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
	tab, _ := f.d.Set().Current()
	wantOwner := func(when string, a *authority, name, want string) {
		t.Helper()
		got := ""
		if p, until, err := tab.Authenticate([]*x509.Certificate{a.leaf(withCN("remote-" + name))}, time.Now()); err == nil {
			got = p.Name
			if until.After(a.cert.NotAfter) {
				t.Errorf("%s: %s may read until %v, its CA ends at %v", when, name, until, a.cert.NotAfter)
			}
		}
		if got != want {
			t.Errorf("%s: %s is %q, want %q", when, name, got, want)
		}
	}
	for _, name := range []string{"west", "north"} {
		wantOwner("first CA", first, name, name)
		wantOwner("CA that is none of ours", second, name, "")
		wantOwner("CA of another peer", south, name, "")
	}
	wantOwner("own CA for a peer with one of its own", first, "south", "")
	wantOwner("own CA for nobody", first, "east", "")
	own.now = []*authority{second}
	wantOwner("second CA", second, "west", "west")
	wantOwner("withdrawn CA", first, "west", "")
}

// TestOwnCAIsRefusedWhereItMeansNothing, and where it would mean two peers.
func TestOwnCAIsRefusedWhereItMeansNothing(t *testing.T) {
	f := newFolder(t)
	ca := newAuthority(t, "west")
	f.write("west.yaml", goodFile(ca, "common-name: remote-west"))
	f.load()
	f.write("west.yaml", ownFile+"west}\n")
	f.load()
	if p := f.d.Problems(); len(p) != 1 || !strings.Contains(p[0], "west.yaml: ca: own: ") || !strings.Contains(p[0], "--tls-client-ca") {
		t.Errorf("without own CAs: %q", p)
	}
	if tab, _ := f.d.Set().Current(); len(tab.Peers()) != 1 || len(tab.Peers()[0].CAs) != 1 {
		t.Error("the last good state is gone")
	}

	f = newFolder(t)
	f.d = NewDirectory(f.path, &ownCAs{now: []*authority{ca}}, nil)
	f.write("west.yaml", ownFile+"west}\n")
	f.load()
	f.write("double.yaml", ownFile+"west}\n")
	f.load()
	if p := f.d.Problems(); len(p) != 1 || !strings.Contains(p[0], `double.yaml: identity: peer "west" has the same name and ca: own too`) {
		t.Errorf("two of one name: %q", p)
	}
	if tab, _ := f.d.Set().Current(); names(tab) != "west" {
		t.Errorf("in force: %s", names(tab))
	}
	f.write("double.yaml", goodFile(ca, "common-name: remote-west"))
	f.load()
	tab, _ := f.d.Set().Current()
	_, _, err := tab.Authenticate([]*x509.Certificate{ca.leaf(withCN("remote-west"))}, time.Now())
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Reason != Ambiguous {
		t.Errorf("a certificate of the own CA and of a peer's copy of it: %v", err)
	}
}

// TestOwnCAWithWhatTheOperatorTakesBack: the other members mean what they mean
// with a CA in the file.
func TestOwnCAWithWhatTheOperatorTakesBack(t *testing.T) {
	ca := newAuthority(t, "own")
	leaf := ca.leaf(withCN("remote-west"))
	sum := sha256.Sum256(leaf.Raw)
	for more, want := range map[string]Reason{
		"revoked: true\n": Revoked,
		"revoked-certificates: [\"" + hex.EncodeToString(sum[:]) + "\"]\n": Revoked,
		"expires: 2001-01-31T00:00:00Z\n":                                  Expired,
	} {
		f := newFolder(t)
		f.d = NewDirectory(f.path, &ownCAs{now: []*authority{ca}}, nil)
		f.write("west.yaml", ownFile+"west}\n"+more)
		f.load()
		tab, _ := f.d.Set().Current()
		_, _, err := tab.Authenticate([]*x509.Certificate{leaf}, time.Now())
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Reason != want || refused.Peer != "west" {
			t.Errorf("%s: %v; problems %q", more, err, f.d.Problems())
		}
	}
}
