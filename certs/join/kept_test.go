package join

import (
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
	text := strings.Replace(string(was), fmt.Sprintf("accepts:\n  cluster-id: %d\n", west.ID), ours, 1)
	if text == string(was) {
		t.Fatalf("no accepts in %s", was)
	}
	must(t, os.WriteFile(path, []byte(text), 0o600))
	west.Replace, east.Replace = true, true
	east.View = View{Namespaces: []string{"shop"}}
	joinFiles(t, west, east)
	east.View = View{}
	joinFiles(t, west, east)
	now, err := os.ReadFile(path)
	must(t, err)
	for _, want := range []string{"expires: 2030-01-31T00:00:00Z\n", "  # theirs\n", "  pod-cidrs: [10.3.0.0/16]\n", fmt.Sprintf("  cluster-id: %d\n", west.ID)} {
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
}
