package join

import (
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
)

// sees is what a side's file says that a peer may see.
func (s *side) sees(t *testing.T, cluster string) []string {
	t.Helper()
	for _, p := range table(t, s.home.Peers).Peers() {
		if p.Name == cluster {
			if p.View.All {
				return []string{"all"}
			}
			return p.View.Namespaces
		}
	}
	return nil
}

func requireSees(t *testing.T, s *side, cluster, want string) {
	t.Helper()
	if got := s.sees(t, cluster); len(got) != 1 || got[0] != want {
		t.Errorf("%s sees %q, want %s", cluster, got, want)
	}
}

// TestInvitationIsUsedOnItsOwnTerms: whatever the acceptor was told that serves
// it, at the beginning and at the end.
func TestInvitationIsUsedOnItsOwnTerms(t *testing.T) {
	east, west, north := newSide(t, "east", nil), newSide(t, "west", nil), newSide(t, "north", nil)
	first, second := east.Site, east.Site
	first.View, first.Validity, first.Endpoints = View{Namespaces: []string{"shop"}}, 48*time.Hour, []string{"https://192.0.2.11:2379"}
	second.View, second.Validity, second.Endpoints = View{Namespaces: []string{"bank"}}, 96*time.Hour, []string{"https://192.0.2.12:2379"}
	second.For, second.Replace = "north", true
	address, _ := start(t, &Acceptor{Site: second, Install: east.home.Install})
	used := invite(t, first, address, InviteOptions{})
	invite(t, second, address, InviteOptions{})
	plain := invite(t, east.Site, address, InviteOptions{})
	_, err := Join(t.Context(), used.Token(), west.Site, west.home.Install)
	must(t, err)
	requireSees(t, east, "west", "shop")
	issued, err := certs.IssuedBy(east.Dir)
	must(t, err)
	if len(issued) != 1 || time.Until(issued[0].NotAfter) > first.Validity {
		t.Errorf("issued %+v, want one for two days", issued)
	}
	if text := filesIn(t, west.home.Clusters)[west.home.Clusters+"/east"]; !strings.Contains(text, "192.0.2.11") {
		t.Errorf("west connects to\n%s", text)
	}
	list, err := east.Invitations()
	must(t, err)
	for _, i := range list {
		if i.View.Empty() == (i.ID != plain.Secret.ID()) || (i.Used != nil) != (i.ID == used.Secret.ID()) {
			t.Errorf("invitation %+v", i)
		}
	}
	_, err = Join(t.Context(), plain.Token(), north.Site, north.home.Install)
	must(t, err)
	requireSees(t, east, "north", "all")
}

// TestAcceptorOfOneInvitation: others that are open wait for another acceptor.
func TestAcceptorOfOneInvitation(t *testing.T) {
	east, west, north := newSide(t, "east", nil), newSide(t, "west", nil), newSide(t, "north", nil)
	joined := make(chan string, 2)
	a := &Acceptor{Site: east.Site, Install: east.home.Install, Joined: func(c string) { joined <- c }}
	own := invite(t, east.Site, "east:1", InviteOptions{})
	a.Only = own.Secret.ID()
	address, _ := start(t, a)
	other := invite(t, east.Site, address, InviteOptions{})
	_, err := Join(t.Context(), other.Token(), north.Site, north.home.Install)
	wantReason(t, err, Unknown)
	request, err := north.Request(0)
	must(t, err)
	approval, err := east.Redeem(other.Secret, request, east.home.Install)
	must(t, err)
	confirmation, err := north.AcceptApproval(approval, north.home.Install)
	must(t, err)
	own.Endpoint = address
	wantReason(t, own.Confirm(t.Context(), *confirmation), Unknown)
	_, err = Join(t.Context(), own.Token(), west.Site, west.home.Install)
	must(t, err)
	if got := <-joined; got != "west" || len(joined) > 0 {
		t.Errorf("%s joined, and %d more", got, len(joined))
	}
	must(t, east.AcceptConfirmation(*confirmation, east.home.Install))
}
