package join

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestJoiningAgainKeepsRestrictions: what the operator wrote, and what the
// cluster may see, hold on when it joins again.
func TestJoiningAgainKeepsRestrictions(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	joinFiles(t, west, east)
	path := filepath.Join(east.home.Peers, "west.yaml")
	was, err := os.ReadFile(path)
	must(t, err)
	ours := "expires: 2030-01-31T00:00:00Z\naccepts:\n  # theirs\n  pod-cidrs: [10.3.0.0/16]\n  cluster-id: 77\n"
	gone := strings.Repeat("ab", 32)
	text := strings.Replace(string(was), fmt.Sprintf("accepts:\n  cluster-id: %d\n", west.ID), ours, 1)
	text = strings.Replace(text, "revoked-certificates: []\n", "revoked-certificates: ["+gone+"]\n", 1)
	if !strings.Contains(text, ours) || !strings.Contains(text, gone) {
		t.Fatalf("no accepts in %s", was)
	}
	must(t, os.WriteFile(path, []byte(text), 0o600))
	again(west, east)
	east.View = View{Namespaces: []string{"shop"}}
	joinFiles(t, west, east)
	east.View = View{}
	joinFiles(t, west, east)
	now, err := os.ReadFile(path)
	must(t, err)
	for _, want := range []string{"expires: 2030-01-31T00:00:00Z\n", "  # theirs\n", gone, "  pod-cidrs: [10.3.0.0/16]\n", fmt.Sprintf("  cluster-id: %d\n", west.ID)} {
		if strings.Count(string(now), want) != 1 {
			t.Errorf("%q is not there once:\n%s", want, now)
		}
	}
	if v := table(t, east.home.Peers).Peers()[0].View; v.All || len(v.Namespaces) != 1 {
		t.Errorf("sees %+v after it joined again without a choice", v)
	}
	secret, err := east.PeersSecret(SecretOptions{})
	must(t, err)
	if known, err := east.Peers(); err != nil || len(known) != 1 || len(known[0].View.Namespaces) != 1 || len(secret) == 0 {
		t.Errorf("the Secret is made of %+v, %v", known, err)
	}

	closer := bytes.Replace(now, []byte("  namespaces: [\"shop\"]\n"), []byte("  services: [shop/cart]\n"), 1)
	if bytes.Equal(closer, now) {
		t.Fatalf("no namespaces in\n%s", now)
	}
	must(t, os.WriteFile(path, closer, 0o600))
	joinFiles(t, west, east)
	if v := table(t, east.home.Peers).Peers()[0].View; len(v.Services) != 1 || len(v.Namespaces) != 0 {
		t.Errorf("sees %+v, and its file said services alone", v)
	}
}

// TestJoiningAgainLetsNobodyIn: who was shut out by his file stays so, and an
// attempt that failed for it is no way to see more.
func TestJoiningAgainLetsNobodyIn(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	east.View = View{Namespaces: []string{"shop"}}
	joinFiles(t, west, east)
	east.View = View{}
	again(west, east)
	path := filepath.Join(east.home.Peers, "west.yaml")
	now, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, append(now, "revoked: true\n"...), 0o600))
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, east.home.Install)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, west.home.Install)
	must(t, err)
	if err := east.AcceptConfirmation(*confirmation, east.home.Install); err == nil || !strings.Contains(err.Error(), "revoked: true") {
		t.Errorf("a peer that is shut out joined again: %v", err)
	}
	must(t, os.Remove(path)) // as the error says
	must(t, east.AcceptConfirmation(*confirmation, east.home.Install))
	if v := table(t, east.home.Peers).Peers()[0].View; v.All || len(v.Namespaces) != 1 {
		t.Errorf("sees %+v after an attempt that failed", v)
	}
}

// TestLosingAccessKeepsWhatIsAccepted: agents would accept anything of a cluster
// whose file is gone.
func TestLosingAccessKeepsWhatIsAccepted(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	joinFiles(t, west, east)
	path := filepath.Join(east.home.Peers, "west.yaml")
	now, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, bytes.Replace(now, []byte("accepts:\n"), []byte("accepts:\n  pod-cidrs: [10.3.0.0/16]\n"), 1), 0o600))
	if err := east.home.Install(Peer{Cluster: "west", ID: west.ID, Replace: true}); err == nil || !strings.Contains(err.Error(), "remove the member accepts") {
		t.Errorf("what was accepted of a cluster went with its access: %v", err)
	}
}

// TestLosingAccessKeepsWhatWasRestricted: with the file would go what its operator
// wrote into it, and who comes back with more would see more.
func TestLosingAccessKeepsWhatWasRestricted(t *testing.T) {
	for member, text := range map[string]string{
		"sees":                 "sees: {namespaces: [shop]}\n",
		"expires":              "sees: all\nexpires: 2090-01-31T00:00:00Z\n",
		"revoked-certificates": "sees: all\n",
	} {
		west, east := newSide(t, "west", nil), newSide(t, "east", nil)
		joinFiles(t, west, east)
		path := filepath.Join(east.home.Peers, "west.yaml")
		rewrite(t, path, "sees: all\n", text)
		if member == "revoked-certificates" {
			rewrite(t, path, "revoked-certificates: []\n", "revoked-certificates: ["+strings.Repeat("ab", 32)+"]\n")
		}
		was, err := os.ReadFile(path)
		must(t, err)
		err = east.home.Install(Peer{Cluster: "west", ID: west.ID, Replace: true, Again: true})
		wantReason(t, err, NameTaken)
		if err != nil && !strings.Contains(err.Error(), "remove the member "+member) {
			t.Errorf("%s: error %v", member, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, was) {
			t.Errorf("%s: the file is now %s, error %v", member, now, err)
		}
	}
}
