package join

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/clustermesh/clustermesh/certs"
)

// filesIn is what lies below the directories, by path.
func filesIn(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			out[path] = string(data)
			return err
		})
		must(t, err)
	}
	return out
}

// requireSame reports what differs between two results of filesIn.
func requireSame(t *testing.T, when string, was, now map[string]string) {
	t.Helper()
	for path, text := range was {
		if now[path] != text {
			t.Errorf("%s: %s changed", when, path)
		}
	}
	for path := range now {
		if _, ok := was[path]; !ok {
			t.Errorf("%s: %s is new", when, path)
		}
	}
}

// disguised is what an inviter answers who passes for another cluster: its name,
// its id and no wish for a certificate in return.
func disguised(t *testing.T, mallory Site, as Site, request Request) Approval {
	t.Helper()
	bundle, _, err := certs.Bundle(mallory.Dir)
	must(t, err)
	cert, err := certs.SignRequest(mallory.Dir, []byte(request.CSR), certs.Role{Kind: certs.Remote, Cluster: request.From.Cluster}, 0)
	must(t, err)
	from := Party{Cluster: as.Cluster, ID: as.ID, MaxClusters: 255, Endpoints: []string{"https://198.51.100.66:2379"}, CA: string(bundle)}
	return Approval{Header: Header{kindApproval, messageVersion}, Request: request.ID(), From: from, Certificate: string(cert)}
}

// TestInviterCannotTakeAPeersPlace: who is joined may not be the peer that is
// there already, whether he asks for a certificate or not, and at no attempt.
func TestInviterCannotTakeAPeersPlace(t *testing.T) {
	north, east, mallory := newSide(t, "north", nil), newSide(t, "east", nil), newSite(t, "mallory")
	joinFiles(t, north, east)
	for _, endpoints := range [][]string{east.Endpoints, nil} {
		site := east.Site
		site.Endpoints = endpoints
		request, err := site.Request(0)
		must(t, err)
		a := disguised(t, mallory, north.Site, request)
		_, _, err = DecodeAnswer(Encode(a))
		must(t, err)
		was := filesIn(t, site.Dir, east.home.Clusters, east.home.Peers)
		var printed bytes.Buffer
		for _, install := range []func(Peer) error{east.home.Install, east.home.Install, func(p Peer) error { printed.WriteString(p.Cluster); return nil }} {
			_, err = site.AcceptApproval(a, install)
			wantReason(t, err, map[bool]Reason{true: NameTaken, false: BadRequest}[endpoints == nil])
		}
		requireSame(t, "taken over", was, filesIn(t, site.Dir, east.home.Clusters, east.home.Peers))
		if printed.Len() > 0 {
			t.Errorf("a Secret for %s was printed", &printed)
		}
	}
}

// TestApprovalAsksForWhatThereIs: an honest one wants a certificate exactly if it
// can be used.
func TestApprovalAsksForWhatThereIs(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	mute := approval
	mute.CSR = ""
	_, err = west.AcceptApproval(mute, west.home.Install)
	wantReason(t, err, BadRequest)
	_, err = west.AcceptApproval(approval, west.home.Install)
	must(t, err)

	north := newSide(t, "north", nil)
	north.Endpoints = nil
	request, err = north.Request(0)
	must(t, err)
	if approval, err = east.Approve(request, nothing); err != nil {
		t.Fatal(err)
	}
	csr, _, err := certs.NewSigningRequest(east.role())
	must(t, err)
	approval.CSR = string(csr)
	_, err = north.AcceptApproval(approval, north.home.Install)
	wantReason(t, err, BadRequest)
}

// TestFilesOfOthersStayAtEveryAttempt: what lies there was not left by this
// exchange, however often it is repeated.
func TestFilesOfOthersStayAtEveryAttempt(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	must(t, os.MkdirAll(west.home.Clusters, 0o700))
	must(t, os.WriteFile(filepath.Join(west.home.Clusters, "east"), []byte("by hand"), 0o600))
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	unchecked := west.Site
	unchecked.Check = nil
	for _, site := range []Site{west.Site, west.Site, unchecked, unchecked} {
		_, err = site.AcceptApproval(approval, west.home.Install)
		wantReason(t, err, NameTaken)
		if text, err := os.ReadFile(filepath.Join(west.home.Clusters, "east")); err != nil || string(text) != "by hand" {
			t.Errorf("somebody's file says %q, error %v", text, err)
		}
	}
	must(t, os.Remove(filepath.Join(west.home.Clusters, "east")))
	_, err = west.AcceptApproval(approval, west.home.Install)
	must(t, err)
}

// TestReplaceIsForOneCluster: who may take the place of one peer may not take
// that of another.
func TestReplaceIsForOneCluster(t *testing.T) {
	north, west, east := newSide(t, "north", nil), newSide(t, "west", nil), newSide(t, "east", nil)
	joinFiles(t, north, east)
	joinFiles(t, west, east)
	east.For, east.Replace = "west", true
	mallory := newSite(t, "mallory")
	mallory.Cluster, mallory.ID = "north", north.ID
	request, err := east.Request(0)
	must(t, err)
	approval, err := mallory.Approve(request, nothing)
	must(t, err)
	_, err = east.AcceptApproval(approval, east.home.Install)
	wantReason(t, err, NotInvited)
	request, err = mallory.Request(0)
	must(t, err)
	_, err = east.Approve(request, east.home.Install)
	wantReason(t, err, NotInvited)
	east.For = ""
	_, err = east.Approve(request, east.home.Install)
	wantReason(t, err, NameTaken)
}

// TestPeerStaysOneWhileItJoinsAgain: an attempt that fails leaves it what it was,
// and its name nobody else's.
func TestPeerStaysOneWhileItJoinsAgain(t *testing.T) {
	west, east, north := newSide(t, "west", nil), newSide(t, "east", nil), newSide(t, "north", nil)
	joinFiles(t, west, east)
	again(west, east)
	was, err := east.Peers()
	must(t, err)
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, nothing)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, nothing)
	must(t, err)
	full := errors.New("disk is full")
	for range 2 {
		if err := east.AcceptConfirmation(*confirmation, func(Peer) error { return full }); !errors.Is(err, full) {
			t.Errorf("error %v", err)
		}
	}
	if now, err := east.Peers(); err != nil || len(now) != 1 || !bytes.Equal(Encode(now[0]), Encode(was[0])) {
		t.Errorf("remembered %+v, before %+v, error %v", now, was, err)
	}
	other := east.Site
	other.For, other.Replace = "", false
	var ofNorth Peer
	request, err = north.Request(0)
	must(t, err)
	toNorth, err := other.Approve(request, nothing)
	must(t, err)
	done, err := north.AcceptApproval(toNorth, nothing)
	must(t, err)
	must(t, other.AcceptConfirmation(*done, keep(&ofNorth)))
	if len(ofNorth.Others) != 1 || ofNorth.Others[0].Cluster != "west" {
		t.Errorf("beside north there are %+v", ofNorth.Others)
	}
	deaf := other
	deaf.Endpoints = nil
	request, err = deaf.Request(0)
	must(t, err)
	_, err = deaf.AcceptApproval(disguised(t, newSite(t, "mallory"), west.Site, request), nothing)
	wantReason(t, err, NameTaken)
	must(t, east.AcceptConfirmation(*confirmation, east.home.Install))
	if now, err := east.Peers(); err != nil || len(now) != 2 || now[1].Exchange == was[0].Exchange {
		t.Errorf("remembered %+v, error %v", now, err)
	}
}
