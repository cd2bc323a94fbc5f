package certs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs/internal/disk"
)

// at is the CA directory as a command finds it whose clock says t.
func at(t *testing.T, dir string, now time.Time) *authority {
	t.Helper()
	ca, err := loadIssuer(dir, now)
	must(t, err)
	return &authority{dir: dir, issuer: ca, now: now}
}

// TestClockAheadForgetsNothing: one command with a wrong clock takes everything
// for expired. When the clock is right again, what was issued before can still
// be revoked, and what was issued meanwhile is renewed.
func TestClockAheadForgetsNothing(t *testing.T) {
	b := newBench(t)
	ahead := at(t, b.dir, time.Now().Add(3*365*day))
	for _, name := range []string{"remote-north", "remote-south"} {
		like := ahead.successor(leafOf(t, b.client.Cert))
		like.Subject.CommonName = name
		_, err := ahead.issueFiles(name, like)
		must(t, err)
	}
	must(t, remember(b.dir, []Issued{{Name: "remote-gone", Serial: "1", Issuer: keyID(ahead.issuer.cert), NotAfter: ahead.now}}))
	if list, err := issuedBy(b.dir, ahead.now); err != nil || slices.ContainsFunc(list, func(i Issued) bool { return i.Name == "remote-west" }) {
		t.Errorf("with the clock ahead: %v, %v", list, err)
	}

	// The files of the certificate are elsewhere: nothing but the record knows it.
	must(t, disk.Remove(b.client.Cert, b.client.Key))
	gone, err := Revoke(b.dir, RevokeRequest{Names: []string{"remote-west"}})
	if err != nil || len(gone) != 1 {
		t.Errorf("revoked %v, %v", gone, err)
	}
	list, err := Renew(b.dir, RenewOptions{})
	must(t, err)
	if got := renewed(list); !slices.Equal(got, []string{"remote-north", "remote-south"}) {
		t.Errorf("renewed %q", got)
	}
	if c := leafOf(t, filepath.Join(b.dir, "remote-north.crt")); c.NotBefore.After(time.Now()) {
		t.Errorf("begins at %v", c.NotBefore)
	}
	if again, err := Renew(b.dir, RenewOptions{}); err != nil || len(renewed(again)) > 0 {
		t.Errorf("renewed %q once more, %v", renewed(again), err)
	}
}

// TestRecordIsBounded: certificates of a short life do not fill it for good, nor
// do those of a CA that nobody believes any more; what is valid stays.
func TestRecordIsBounded(t *testing.T) {
	b := newBench(t)
	now := time.Now()
	ca := keyID(at(t, b.dir, now).issuer.cert)
	var list []Issued
	for i := range maxExpired + 10 {
		list = append(list, Issued{Name: "old", Serial: fmt.Sprintf("%x", i), Issuer: ca, NotAfter: now.Add(time.Duration(i-2*maxExpired) * time.Second)})
	}
	list = append(list, Issued{Name: "of another CA", Serial: "a", Issuer: "x", NotAfter: now.Add(-time.Second)},
		Issued{Name: "valid of another CA", Serial: "b", Issuer: "x", NotAfter: now.Add(day)}, Issued{Name: "valid", Serial: "c", Issuer: ca, NotAfter: now.Add(day)})
	must(t, writeIssued(b.dir, list))
	_, err := Issue(b.dir, IssueRequest{Kind: Remote, Cluster: "new"})
	must(t, err)
	kept, err := readIssued(b.dir)
	must(t, err)
	if len(kept) != maxExpired+3 || kept[0].Serial != "a" {
		t.Fatalf("%d are kept, the first is %+v", len(kept), kept[0])
	}
	var names []string
	for _, i := range kept[maxExpired:] {
		names = append(names, i.Name)
	}
	if !slices.Equal(names, []string{"valid of another CA", "valid", "remote-new"}) {
		t.Errorf("the last ones are %q", names)
	}
	if info, err := os.Stat(filepath.Join(b.dir, issuedFile)); err != nil || info.Size() > 2<<20 {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}
