package join

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
)

// TestStrangersAreToldNothing of where files are and who else is a peer, nor
// whether a name is taken before they have shown that they are invited.
func TestStrangersAreToldNothing(t *testing.T) {
	east, west := newSide(t, "east", nil), newSide(t, "west", nil)
	joinFiles(t, west, east)
	var asked atomic.Int32
	site := east.Site
	site.Check = func(string, bool) error { asked.Add(1); return nil }
	address, _ := start(t, &Acceptor{Site: site, Install: east.home.Install})
	i := invite(t, east.Site, address, InviteOptions{})
	say := func(what string, err error, reason Reason) {
		t.Helper()
		wantReason(t, err, reason)
		for _, secret := range []string{east.Dir, filepath.Dir(east.Dir), "west", ".yaml"} {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the other side hears %q: %v", what, secret, err)
			}
		}
	}
	_, err := i.call(t.Context(), pathConfirm, Encode(Confirmation{Header: Header{kindConfirmation, messageVersion}, Request: strings.Repeat("a", 32)}))
	say("a made-up exchange", err, Unknown)
	own, err := east.Request(0)
	must(t, err)
	_, err = i.call(t.Context(), pathJoin, Encode(own))
	say("its own request", err, BadRequest)
	north := newSide(t, "north", nil)
	north.ID = west.ID
	_, err = Join(t.Context(), i.Token(), north.Site, nothing)
	say("an id of another", err, IDTaken)
	if asked.Load() > 0 {
		t.Error("files were looked for before")
	}

	ended := invite(t, east.Site, address, InviteOptions{For: "north"})
	_, err = Join(t.Context(), ended.Token(), newSite(t, "south"), nothing)
	say("an invitation of another", err, NotInvited)
	record := Invited{ID: ended.Secret.ID(), Expires: time.Now().Add(-time.Second), Hash: hashOf(ended.Secret)}
	must(t, os.WriteFile(east.state(invitePrefix+record.ID+".json"), Encode(record), 0o600))
	_, err = Join(t.Context(), ended.Token(), newSite(t, "south"), nothing)
	say("an invitation that has ended", err, Expired)
	if asked.Load() > 0 {
		t.Error("files were looked for on an invitation that does not count")
	}
}

// TestRefusalOfTheOtherSideIsShownAsText: it goes to a terminal.
func TestRefusalOfTheOtherSideIsShownAsText(t *testing.T) {
	east, west := newSite(t, "east"), newSite(t, "west")
	cert, err := certs.Ephemeral(east.Dir, acceptorName, time.Hour)
	must(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		json.NewEncoder(w).Encode(Refusal{Reason: "unknown\x1b]0;x\a", Text: "no\x1b[2J\rerror: none\n" + strings.Repeat("a", 2*maxRefusal)}) //nolint:errcheck // the test notices
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	defer server.Close()
	i := invite(t, east, server.Listener.Addr().String(), InviteOptions{})
	_, err = Join(t.Context(), i.Token(), west, nothing)
	var r *Refusal
	if !errors.As(err, &r) || strings.ContainsAny(r.Error(), "\x1b\r\n\a") || len(r.Error()) > 2*maxRefusal {
		t.Errorf("error %q", err)
	}
}
