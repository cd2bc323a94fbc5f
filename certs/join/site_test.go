package join

import (
	"bytes"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newSite is a cluster with a CA of its own.
func newSite(t testing.TB, cluster string) Site {
	t.Helper()
	s := Site{Dir: filepath.Join(t.TempDir(), cluster), Cluster: cluster, ID: idOf(cluster), Endpoints: []string{"https://192.0.2.1:2379"}}
	must(t, certs.InitCA(s.Dir, certs.CAOptions{Name: cluster + " CA"}))
	return s
}

// idOf is another id for each name that the tests use.
func idOf(cluster string) uint32 {
	return uint32(crc32.ChecksumIEEE([]byte(cluster))%255) + 1
}

func nothing(Peer) error { return nil }

// keep is an install that remembers the peer.
func keep(into *Peer) func(Peer) error {
	return func(p Peer) error {
		*into = p
		return nil
	}
}

func wantReason(t *testing.T, err error, reason Reason) {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Reason != reason {
		t.Errorf("error %v, want a refusal with reason %s", err, reason)
	}
}

// exchange carries files between two sites and returns what each has of the
// other.
func exchange(t *testing.T, west, east Site) (ofEast, ofWest Peer) {
	t.Helper()
	sent, err := west.Request(0)
	must(t, err)
	request, err := DecodeRequest(Encode(sent))
	must(t, err)
	signed, err := east.Approve(request, nothing)
	must(t, err)
	approval, _, err := DecodeAnswer(Encode(signed))
	must(t, err)
	made, err := west.AcceptApproval(*approval, keep(&ofEast))
	must(t, err)
	_, confirmation, err := DecodeAnswer(Encode(*made))
	must(t, err)
	must(t, east.AcceptConfirmation(*confirmation, keep(&ofWest)))
	return ofEast, ofWest
}

func TestFilesMakePeers(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	ofEast, ofWest := exchange(t, west, east)
	for _, row := range []struct {
		home  Site
		other Site
		peer  Peer
	}{{west, east, ofEast}, {east, west, ofWest}} {
		dir := filepath.Join(t.TempDir(), "clusters")
		must(t, Home{Clusters: dir}.Install(row.peer))
		file, _, err := clusterfile.Read(filepath.Join(dir, row.other.Cluster))
		must(t, err)
		if file.Endpoints[0] != row.other.Endpoints[0] {
			t.Errorf("endpoints %q", file.Endpoints)
		}
		role := certs.Role{Kind: certs.Remote, Cluster: row.home.Cluster}
		bundle, _, err := certs.Bundle(row.other.Dir)
		must(t, err)
		must(t, certs.CheckSigned(row.peer.Cert, row.peer.Key, bundle, role))
		if !bytes.Equal(row.peer.CA, bundle) {
			t.Error("the CA of the other side is not its ca.crt")
		}
		if err := (Home{Clusters: dir}).Install(row.peer); err == nil {
			t.Error("a cluster was replaced unasked")
		}
		row.peer.Replace = true
		must(t, Home{Clusters: dir}.Install(row.peer))
	}
	keys, err := filepath.Glob(filepath.Join(filepath.Dir(west.Dir), "*", "join", "*.key"))
	must(t, err)
	if len(keys) != 0 {
		t.Errorf("keys of finished exchanges lie about: %q", keys)
	}
}

// TestMessagesHoldNoSecret looks for each key of both sides in all messages.
func TestMessagesHoldNoSecret(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, func(Peer) error { return nil })
	must(t, err)
	for _, m := range []any{request, approval, *confirmation} {
		if bytes.Contains(Encode(m), []byte("PRIVATE")) {
			t.Errorf("%T holds a private key", m)
		}
	}
}

// TestInstallThatFailsMayBeRepeated: the exchange is over only when the peer's
// files are where they belong.
func TestInstallThatFailsMayBeRepeated(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	full := errors.New("disk is full")
	fail := func(Peer) error { return full }
	if _, err := west.AcceptApproval(approval, fail); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	var peer Peer
	confirmation, err := west.AcceptApproval(approval, keep(&peer))
	must(t, err)
	if err := east.AcceptConfirmation(*confirmation, fail); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	must(t, east.AcceptConfirmation(*confirmation, keep(&peer)))
	wantReason(t, east.AcceptConfirmation(*confirmation, keep(&peer)), Replayed)
}

func TestApproveRefuses(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	request, err := west.Request(time.Hour)
	must(t, err)
	old := request
	old.Expires = time.Now().Add(-time.Second)
	_, err = east.Approve(old, nothing)
	wantReason(t, err, Expired)
	namesake := newSite(t, "west")
	_, err = namesake.Approve(request, nothing)
	wantReason(t, err, BadRequest)
	deaf := east
	deaf.Endpoints = nil
	mute := request
	mute.From.Endpoints = nil
	_, err = deaf.Approve(mute, nothing)
	wantReason(t, err, BadRequest)
	first, err := east.Approve(request, nothing)
	must(t, err)
	again, err := east.Approve(request, nothing)
	must(t, err)
	if !bytes.Equal(Encode(first), Encode(again)) {
		t.Error("a request that was approved and not confirmed got another approval")
	}
	moved := east
	moved.Endpoints = []string{"https://192.0.2.9:2379"}
	_, err = moved.Approve(request, nothing)
	wantReason(t, err, Replayed)
	confirmation, err := west.AcceptApproval(first, nothing)
	must(t, err)
	must(t, east.AcceptConfirmation(*confirmation, nothing))
	_, err = east.Approve(request, nothing)
	wantReason(t, err, Replayed)

	// An impostor with the name of a cluster that has joined.
	impostor, err := newSite(t, "west").Request(0)
	must(t, err)
	_, err = east.Approve(impostor, nothing)
	wantReason(t, err, NameTaken)
	_, err = Leave(east.Dir, Home{}, "west")
	must(t, err)
	_, err = east.Approve(impostor, nothing)
	must(t, err)
}

// TestAnswersOfOthersAreRefused: an approval and a confirmation only count if
// they were made for the key that waits, by the CA that the other side named.
func TestAnswersOfOthersAreRefused(t *testing.T) {
	west, east, mallory := newSite(t, "west"), newSite(t, "east"), newSite(t, "mallory")
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	other, err := newSite(t, "west").Request(0)
	must(t, err)
	foreign, err := mallory.Approve(other, nothing)
	must(t, err)

	never := func(Peer) error { t.Error("installed"); return nil }
	for name, change := range map[string]func(*Approval){
		"unknown exchange":    func(a *Approval) { a.Request = strings.Repeat("0", 32) },
		"path":                func(a *Approval) { a.Request = "../../etc" },
		"certificate for all": func(a *Approval) { a.Certificate = foreign.Certificate },
		"CA of another":       func(a *Approval) { a.From.CA = foreign.From.CA },
		"same name":           func(a *Approval) { a.From.Cluster = "west" },
	} {
		bad := approval
		change(&bad)
		if _, err := west.AcceptApproval(bad, never); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	var peer Peer
	confirmation, err := west.AcceptApproval(approval, keep(&peer))
	must(t, err)
	stranger, err := certs.SignRequest(mallory.Dir, []byte(approval.CSR), certs.Role{Kind: certs.Remote, Cluster: "east"}, 0)
	must(t, err)
	bad := *confirmation
	bad.Certificate = string(stranger)
	if err := east.AcceptConfirmation(bad, never); err == nil {
		t.Error("a certificate of another CA was accepted")
	}
	bad.Certificate = string(peer.Cert)
	if err := east.AcceptConfirmation(bad, never); err == nil {
		t.Error("a certificate for another key was accepted")
	}
	must(t, east.AcceptConfirmation(*confirmation, keep(&peer)))
}

func TestLeave(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	_, ofWest := exchange(t, west, east)
	clusters := filepath.Join(t.TempDir(), "clusters")
	home := Home{Clusters: clusters}
	must(t, home.Install(ofWest))
	for _, want := range []bool{true, false} {
		found, err := Leave(east.Dir, home, "west")
		must(t, err)
		if found != want {
			t.Errorf("found something to end: %v, want %v", found, want)
		}
	}
	left, err := os.ReadDir(clusters)
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	list, err := certs.IssuedBy(east.Dir)
	must(t, err)
	if len(list) != 1 || !list[0].Revoked {
		t.Errorf("issued: %+v", list)
	}
	if _, err := Leave(east.Dir, home, "../x"); err == nil {
		t.Error("a path was left")
	}
}

// TestSecretHoldsTheSameFiles reads the manifest back as Kubernetes would.
func TestSecretHoldsTheSameFiles(t *testing.T) {
	p := Peer{Cluster: "east", Endpoints: []string{"https://192.0.2.1:2379"}, CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}
	var secret struct {
		Kind     string
		Metadata struct{ Name, Namespace string }
		Data     map[string][]byte
	}
	manifest, err := p.Secrets(SecretOptions{Namespace: "mesh", Mount: "/pki"})
	must(t, err)
	must(t, yaml.Unmarshal(manifest, &secret))
	if secret.Kind != "Secret" || secret.Metadata.Name != "clustermesh-east" || secret.Metadata.Namespace != "mesh" {
		t.Errorf("secret %+v", secret)
	}
	want := p.Files("/pki")
	if len(secret.Data) != len(want) || !strings.Contains(string(want["east"]), "key-file: /pki/east.etcd-client.key\n") {
		t.Errorf("files %q", want)
	}
	for name, data := range want {
		if !bytes.Equal(secret.Data[name], data) {
			t.Errorf("%s is %q, want %q", name, secret.Data[name], data)
		}
	}
	p.Endpoints = nil
	if p.Files("") != nil {
		t.Error("a peer that is not connected to has files")
	}
}
