package join

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
)

// TestLeaveEndsWhatIsUnderWay: a confirmation that arrives afterwards, and a
// token that was cut off before, make nobody a peer.
func TestLeaveEndsWhatIsUnderWay(t *testing.T) {
	k := new(knife)
	west, east := newSide(t, "west", k.cut), newSide(t, "east", nil)
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, east.home.Install)
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, west.home.Install)
	must(t, err)
	if found, err := Leave(east.Dir, east.home, "west"); err != nil || !found {
		t.Errorf("left: %v, %v", found, err)
	}
	wantReason(t, east.AcceptConfirmation(*confirmation, east.home.Install), Replayed)
	if connects, admits := east.requireWhole(t, "late confirmation", west); connects || admits {
		t.Errorf("a late confirmation made a peer: %v, %v", connects, admits)
	}
	_, err = Leave(west.Dir, west.home, "east")
	must(t, err)

	address, _ := start(t, &Acceptor{Site: east.Site, Install: east.home.Install})
	token := invite(t, east.Site, address, InviteOptions{}).Token()
	run := func() error {
		_, err := Join(t.Context(), token, west.Site, west.home.Install)
		return err
	}
	k.left.Store(5)
	if err := alive(run); !errors.Is(err, errKilled) || k.where.Load() != "recorded" {
		t.Fatalf("error %v at %v", err, k.where.Load())
	}
	if found, err := Leave(west.Dir, west.home, "east"); err != nil || !found {
		t.Errorf("left: %v, %v", found, err)
	}
	wantReason(t, run(), Used)
	if connects, admits := west.requireWhole(t, "token of before", east); connects || admits {
		t.Errorf("the token of before made a peer: %v, %v", connects, admits)
	}
}

// TestClusterWithoutEndpointReadsOnly: there is no confirmation to wait for.
// TestOneDirectoryForBothSidesIsRefused: the peers of two clusters would be mixed
// up in it.
func TestOneDirectoryForBothSidesIsRefused(t *testing.T) {
	east, west := newSite(t, "east"), newSite(t, "west")
	both := west
	both.Dir = east.Dir
	address, _ := start(t, &Acceptor{Site: east, Install: nothing})
	token := invite(t, east, address, InviteOptions{}).Token()
	_, err := Join(t.Context(), token, both, nothing)
	wantReason(t, err, BadRequest)
	if !strings.Contains(err.Error(), east.Dir) {
		t.Errorf("%v does not name %s", err, east.Dir)
	}
	request, err := both.Request(0)
	must(t, err)
	_, err = east.Approve(request, nothing)
	wantReason(t, err, BadRequest)
	if _, err := Join(t.Context(), token, west, nothing); err != nil {
		t.Errorf("the token does not work after that: %v", err)
	}
}

func TestClusterWithoutEndpointReadsOnly(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	west.Endpoints = nil
	request, err := west.Request(0)
	must(t, err)
	full := errors.New("disk is full")
	if _, err := east.Approve(request, func(Peer) error { return full }); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	for range 2 { // its answer may be lost
		approval, err := east.Approve(request, east.home.Install)
		must(t, err)
		confirmation, err := west.AcceptApproval(approval, west.home.Install)
		must(t, err)
		if confirmation != nil {
			t.Error("a confirmation nobody asked for")
		}
	}
	if connects, admits := east.requireWhole(t, "east", west); connects || !admits {
		t.Errorf("east connects: %v, admits: %v", connects, admits)
	}
	if connects, admits := west.requireWhole(t, "west", east); !connects || admits {
		t.Errorf("west connects: %v, admits: %v", connects, admits)
	}
	_, err = Leave(east.Dir, east.home, "west")
	must(t, err)
	_, err = east.Approve(request, east.home.Install)
	wantReason(t, err, Replayed)
}

// TestReturningWithLessTakesTheRest: what a peer no longer has is removed.
func TestReturningWithLessTakesTheRest(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	west.View, east.View = View{Namespaces: []string{"shop"}}, View{Namespaces: []string{"bank"}}
	joinFiles(t, west, east)
	had := west.Endpoints
	west.Endpoints, west.View, east.View = nil, View{}, View{}
	again(west, east)
	request, err := west.Request(0)
	must(t, err)
	approval, err := east.Approve(request, east.home.Install)
	must(t, err)
	_, err = west.AcceptApproval(approval, west.home.Install)
	must(t, err)
	if connects, admits := east.requireWhole(t, "east", west); connects || !admits {
		t.Errorf("east connects: %v, admits: %v", connects, admits)
	}
	if connects, admits := west.requireWhole(t, "west", east); !connects || admits {
		t.Errorf("west connects: %v, admits: %v", connects, admits)
	}
	west.Endpoints = had
	joinFiles(t, west, east)
	requireSees(t, west, "east", "shop")
	requireSees(t, east, "west", "bank")
}

// TestNamesAndIDsStandForOneCluster on both sides of an exchange.
func TestNamesAndIDsStandForOneCluster(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	joinFiles(t, west, east)
	for name, row := range map[string]struct {
		change func(*Site)
		reason Reason
		says   string
	}{
		"own name":     {func(s *Site) { s.Cluster = "east" }, BadRequest, `cluster "east"`},
		"own id":       {func(s *Site) { s.ID = east.ID }, IDTaken, "cluster id"},
		"peer's id":    {func(s *Site) { s.ID = west.ID }, IDTaken, `another peer of "east" has it; give one of them another one; it is that of west`},
		"peer's name":  {func(s *Site) { s.Cluster = "west" }, NameTaken, `"west" is a peer since`},
		"other limit":  {func(s *Site) { s.MaxClusters = 511 }, BadRequest, "max-connected-clusters"},
		"nothing else": {func(*Site) {}, "", ""},
	} {
		for _, direction := range []string{"joins", "is joined"} {
			north := newSite(t, "north")
			row.change(&north)
			here, there := north, east.Site
			if direction == "is joined" {
				here, there = east.Site, north
			}
			request, err := here.Request(0)
			must(t, err)
			approval, err := there.Approve(request, nothing)
			if err == nil {
				_, err = here.AcceptApproval(approval, nothing)
			}
			if row.reason == "" {
				must(t, err)
				_, err = Leave(east.Dir, Home{}, "north")
				must(t, err)
				continue
			}
			wantReason(t, err, row.reason)
			if err != nil && !strings.Contains(err.Error(), row.says) {
				t.Errorf("%s %s: error %v, want %q", name, direction, err, row.says)
			}
		}
	}
	for _, bad := range []Site{{Cluster: "default"}, {Cluster: "local"}, {Cluster: "a", ID: 256}, {Cluster: "a", ID: 512, MaxClusters: 511}, {Cluster: "a", ID: 1, MaxClusters: 300}, {Cluster: "a"}} {
		bad.Dir = "x"
		if bad.Validate() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// TestAcceptorChecksBeforeItGives: what could not be installed is refused while
// nothing has been given to anybody.
func TestAcceptorChecksBeforeItGives(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	must(t, os.MkdirAll(east.home.Clusters, 0o700))
	must(t, os.WriteFile(filepath.Join(east.home.Clusters, "west"), []byte("by hand"), 0o600))
	address, _ := start(t, &Acceptor{Site: east.Site, Install: east.home.Install})
	i := invite(t, east.Site, address, InviteOptions{})
	_, err := Join(t.Context(), i.Token(), west.Site, west.home.Install)
	wantReason(t, err, NameTaken)
	if err != nil && strings.Contains(err.Error(), east.home.Clusters) {
		t.Errorf("the other side is told where files are: %v", err)
	}
	if list, err := certs.IssuedBy(east.Dir); err != nil || len(list) != 0 {
		t.Errorf("issued %v, error %v", list, err)
	}
	if connects, admits := west.requireWhole(t, "refused", east); connects || admits {
		t.Errorf("the refused side connects: %v, admits: %v", connects, admits)
	}
	must(t, os.Remove(filepath.Join(east.home.Clusters, "west")))
	_, err = Join(t.Context(), i.Token(), west.Site, west.home.Install)
	must(t, err)
	requireJoined(t, "after it was removed", west, east)
}

// TestOldRequestsAreForgotten, with their keys.
func TestOldRequestsAreForgotten(t *testing.T) {
	west := newSite(t, "west")
	old, err := west.Request(time.Nanosecond)
	must(t, err)
	old.Expires = time.Now().Add(-keptFor - time.Hour)
	path := west.state(sentPrefix + old.ID())
	must(t, os.WriteFile(path+".json", Encode(old), 0o600))
	fresh, err := west.Request(0)
	must(t, err)
	if exists(path+".json") || exists(path+".key") || !exists(west.state(sentPrefix+fresh.ID()+".key")) {
		t.Error("the old request is there, or the new one is not")
	}
}

// TestJoinAgainWithOtherEndpoints: an attempt that nobody answered does not bind.
func TestJoinAgainWithOtherEndpoints(t *testing.T) {
	west, east := newSide(t, "west", nil), newSide(t, "east", nil)
	i := invite(t, east.Site, "127.0.0.1:1", InviteOptions{})
	_, err := Join(t.Context(), i.Token(), west.Site, west.home.Install)
	if err == nil || !strings.Contains(err.Error(), "is the other side still accepting") {
		t.Fatalf("error %v", err)
	}
	address, _ := start(t, &Acceptor{Site: east.Site, Install: east.home.Install})
	i.Endpoint = address
	west.Endpoints = []string{"https://192.0.2.77:2379"}
	_, err = Join(t.Context(), i.Token(), west.Site, west.home.Install)
	must(t, err)
	text, err := os.ReadFile(filepath.Join(east.home.Clusters, "west"))
	if err != nil || !strings.Contains(string(text), "192.0.2.77") {
		t.Errorf("east connects to %s, error %v", text, err)
	}
}
