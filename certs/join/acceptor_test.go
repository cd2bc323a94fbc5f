package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/clustermesh/clustermesh/certs"
)

// TestMain keeps the files in memory where it can: everything here is synced to
// disk, thousands of times when joins are cut off everywhere.
func TestMain(m *testing.M) {
	if dir, err := os.MkdirTemp("/dev/shm", "join-test-"); err == nil {
		os.Setenv("TMPDIR", dir)
		goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
			os.RemoveAll(dir)
			os.Exit(code)
		}))
	}
	goleak.VerifyTestMain(m)
}

// start serves the site's invitations until the test ends, or stop is called.
func start(t *testing.T, a *Acceptor) (address string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, ln) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return ln.Addr().String(), stop
}

func invite(t *testing.T, s Site, address string, o InviteOptions) Invitation {
	t.Helper()
	i, err := s.Invite(address, o)
	must(t, err)
	return i
}

func TestTokenMakesPeers(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	var ofWest, ofEast Peer
	var joined atomic.Value
	address, stop := start(t, &Acceptor{Site: east, Install: keep(&ofWest), Joined: func(c string) { joined.Store(c) }})
	begin := time.Now()
	rest, err := Join(t.Context(), invite(t, east, address, InviteOptions{}).Token(), west, keep(&ofEast))
	if err != nil || rest != nil {
		t.Fatalf("left %v, error %v", rest, err)
	}
	t.Logf("joined in %s", time.Since(begin))
	stop()
	if ofEast.Cluster != "east" || ofWest.Cluster != "west" || joined.Load() != "west" {
		t.Errorf("peers %q and %q, joined %v", ofEast.Cluster, ofWest.Cluster, joined.Load())
	}
	for _, row := range []struct {
		peer Peer
		role certs.Role
	}{{ofEast, west.role()}, {ofWest, east.role()}} {
		must(t, certs.CheckSigned(row.peer.Cert, row.peer.Key, row.peer.CA, row.role))
	}
}

// TestTokenWorksOnce lets eight clusters use one token at once, and another
// after a restart.
func TestTokenWorksOnce(t *testing.T) {
	east := newSite(t, "east")
	address, stop := start(t, &Acceptor{Site: east, Install: nothing})
	token := invite(t, east, address, InviteOptions{}).Token()
	results := make(chan error, 8)
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		site := newSite(t, name)
		go func() {
			_, err := Join(t.Context(), token, site, nothing)
			results <- err
		}()
	}
	won := 0
	for range cap(results) {
		if err := <-results; err == nil {
			won++
		} else {
			wantReason(t, err, Used)
		}
	}
	list, err := certs.IssuedBy(east.Dir)
	must(t, err)
	if won != 1 || len(list) != 1 {
		t.Errorf("%d clusters joined with one token, %d certificates were issued", won, len(list))
	}
	stop()
	again, _ := start(t, &Acceptor{Site: east, Install: nothing})
	i, err := ParseToken(token)
	must(t, err)
	i.Endpoint = again
	_, err = Join(t.Context(), i.Token(), newSite(t, "late"), nothing)
	wantReason(t, err, Used)
}

func TestRedeemRefuses(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	request, err := west.Request(0)
	must(t, err)
	good := invite(t, east, "east:1", InviteOptions{})
	changed := good.Secret
	changed[3] ^= 1
	_, err = east.Redeem(changed, request, nothing)
	wantReason(t, err, Unknown)
	_, err = newSite(t, "other").Redeem(good.Secret, request, nothing)
	wantReason(t, err, Unknown)
	_, err = east.Redeem(invite(t, east, "east:1", InviteOptions{For: "north"}).Secret, request, nothing)
	wantReason(t, err, NotInvited)

	// A request that is refused leaves the invitation as it was.
	old := request
	old.Expires = time.Now().Add(-time.Second)
	_, err = east.Redeem(good.Secret, old, nothing)
	wantReason(t, err, Expired)
	approval, err := east.Redeem(good.Secret, request, nothing)
	must(t, err)
	_, err = east.Redeem(good.Secret, request, nothing) // its answer may have been lost
	must(t, err)
	confirmation, err := west.AcceptApproval(approval, nothing)
	must(t, err)
	must(t, east.AcceptConfirmation(*confirmation, nothing))
	_, err = east.Redeem(good.Secret, request, nothing)
	wantReason(t, err, Replayed)
	_, err = east.Redeem(invite(t, east, "east:1", InviteOptions{For: "west"}).Secret, request, nothing)
	wantReason(t, err, Replayed)
	fresh, err := west.Request(0)
	must(t, err)
	_, err = east.Redeem(good.Secret, fresh, nothing)
	wantReason(t, err, Used)

	expired := invite(t, east, "east:1", InviteOptions{For: "west"})
	record := Invited{ID: expired.Secret.ID(), For: "west", Expires: time.Now().Add(-time.Second), Hash: hashOf(expired.Secret)}
	must(t, os.WriteFile(east.state(invitePrefix+record.ID+".json"), Encode(record), 0o600))
	_, err = east.Redeem(expired.Secret, fresh, nothing)
	wantReason(t, err, Expired)
}

// TestFailedSigningLeavesTheInvitation: nothing was given out, so nothing is
// used up.
func TestFailedSigningLeavesTheInvitation(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	i := invite(t, east, "east:1", InviteOptions{})
	request, err := west.Request(0)
	must(t, err)
	record := filepath.Join(east.Dir, "issued.json")
	must(t, os.WriteFile(record, []byte("["), 0o600))
	if _, err := east.Redeem(i.Secret, request, nothing); err == nil {
		t.Fatal("signed without a record")
	}
	must(t, os.Remove(record))
	_, err = east.Redeem(i.Secret, request, nothing)
	must(t, err)
}

// TestJoinBelievesThePinnedCAAlone: in front of others, the token's secret is
// not even sent.
func TestJoinBelievesThePinnedCAAlone(t *testing.T) {
	west, east, mallory := newSite(t, "west"), newSite(t, "east"), newSite(t, "mallory")
	server, err := certs.Issue(east.Dir, certs.IssueRequest{Kind: certs.Server, Cluster: "north"})
	must(t, err)
	sibling, err := tls.LoadX509KeyPair(server.Cert, server.Key)
	must(t, err)
	_, ca, err := certs.Bundle(east.Dir)
	must(t, err)
	sibling.Certificate = append(sibling.Certificate, ca.Raw)
	stranger, err := certs.Ephemeral(mallory.Dir, acceptorName, time.Hour)
	must(t, err)
	mixed := stranger
	mixed.Certificate = [][]byte{stranger.Certificate[0], ca.Raw}
	for name, cert := range map[string]tls.Certificate{"another server of the CA": sibling, "another CA": stranger, "another leaf beside the CA": mixed} {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
		must(t, err)
		heard := make(chan int, 1)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				heard <- 0
				return
			}
			n, _ := c.Read(make([]byte, 100))
			c.Close()
			heard <- n
		}()
		token := invite(t, east, ln.Addr().String(), InviteOptions{}).Token()
		if _, err := Join(t.Context(), token, west, func(Peer) error { t.Error("installed"); return nil }); err == nil {
			t.Errorf("%s was believed", name)
		}
		if n := <-heard; n != 0 {
			t.Errorf("%s heard %d bytes", name, n)
		}
		ln.Close()
	}
	left, err := filepath.Glob(west.state(sentPrefix + "*"))
	must(t, err)
	if len(left) != 0 {
		t.Errorf("requests that failed left %q", left)
	}
}

// TestConfirmationThatIsLostIsReturned: this side has joined, the other can be
// told later, and more than once.
func TestConfirmationThatIsLostIsReturned(t *testing.T) {
	west, east := newSite(t, "west"), newSite(t, "east")
	var broken atomic.Bool
	broken.Store(true)
	var ofWest Peer
	address, _ := start(t, &Acceptor{Site: east, Install: func(p Peer) error {
		if broken.Load() {
			return errors.New("disk is full")
		}
		ofWest = p
		return nil
	}})
	i := invite(t, east, address, InviteOptions{})
	var ofEast Peer
	rest, err := Join(t.Context(), i.Token(), west, keep(&ofEast))
	if err == nil || rest == nil || ofEast.Cluster != "east" {
		t.Fatalf("confirmation %v, error %v, peer %q", rest, err, ofEast.Cluster)
	}
	if strings.Contains(err.Error(), "disk is full") {
		t.Errorf("the other side was told about this one's disk: %v", err)
	}
	broken.Store(false)
	must(t, i.Confirm(t.Context(), *rest))
	must(t, i.Confirm(t.Context(), *rest))
	if ofWest.Cluster != "west" {
		t.Errorf("peer %q", ofWest.Cluster)
	}
}

func TestAcceptorBoundsWhatItReads(t *testing.T) {
	east := newSite(t, "east")
	refused := make(chan Reason, 16)
	var logs syncBuffer
	address, _ := start(t, &Acceptor{Site: east, Install: nothing, Refused: func(r Reason) { refused <- r }, Log: slog.New(slog.NewTextHandler(&logs, nil))})
	i := invite(t, east, address, InviteOptions{})
	for name, row := range map[string]struct {
		path, body string
		reason     Reason
	}{
		"garbage":          {pathJoin, "{", BadRequest},
		"large":            {pathJoin, strings.Repeat("a", maxMessage+1), BadRequest},
		"no confirmation":  {pathConfirm, "{}", BadRequest},
		"unknown exchange": {pathConfirm, string(Encode(Confirmation{Header: Header{kindConfirmation, messageVersion}, Request: strings.Repeat("a", 32)})), Unknown},
	} {
		_, err := i.call(t.Context(), row.path, []byte(row.body))
		wantReason(t, err, row.reason)
		if got := <-refused; got != row.reason {
			t.Errorf("%s: counted as %s", name, got)
		}
	}
	if strings.Contains(logs.String(), "Bearer") {
		t.Error("the log holds a secret")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: i.tlsConfig(), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	for _, path := range []string{"/", "/v1", pathJoin, pathJoin + "/"} {
		resp, err := client.Get("https://" + address + path)
		must(t, err)
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound || resp.ProtoMajor != 2 {
			t.Errorf("GET %s: %s over %s", path, resp.Status, resp.Proto)
		}
	}
	old := i.tlsConfig()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if c, err := tls.Dial("tcp", address, old); err == nil {
		c.Close()
		t.Error("TLS 1.2 was spoken")
	}
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestIdleConnectionsAreBounded: more connections than there are slots wait
// unaccepted, and get theirs when one is closed.
func TestIdleConnectionsAreBounded(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ln := limit(raw, limits{total: 2, each: 3, life: time.Hour})
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	var dialled []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", raw.Addr().String())
		must(t, err)
		dialled = append(dialled, c)
	}
	first := <-accepted
	second := <-accepted
	select {
	case <-accepted:
		t.Error("a third connection was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	must(t, first.Close())
	first.Close() // gives its slot back only once
	third := <-accepted
	must(t, ln.Close())
	for range accepted {
		t.Error("a connection was accepted after the end")
	}
	for _, c := range append(dialled, second, third) {
		c.Close()
	}
}

func TestInvitations(t *testing.T) {
	east := newSite(t, "east")
	if list, err := east.Invitations(); err != nil || list != nil {
		t.Errorf("at first: %v, %v", list, err)
	}
	i := invite(t, east, "east:1", InviteOptions{For: "west"})
	list, err := east.Invitations()
	must(t, err)
	if len(list) != 1 || list[0].ID != i.Secret.ID() || list[0].For != "west" || list[0].Hash != "" || list[0].Used != nil {
		t.Errorf("invitations %+v", list)
	}
	data, err := os.ReadFile(east.state(invitePrefix + i.Secret.ID() + ".json"))
	must(t, err)
	if bytes.Contains(data, i.Secret[:]) || bytes.Contains(data, []byte(i.Token())) {
		t.Error("the secret is stored")
	}
	for _, id := range []string{"", "..", "../x", "0000000000000000"} {
		if east.Cancel(id) == nil {
			t.Errorf("cancelled %q", id)
		}
	}
	must(t, east.Cancel(i.Secret.ID()))
	if list, err := east.Invitations(); err != nil || len(list) != 0 {
		t.Errorf("after cancelling: %v, %v", list, err)
	}
	for _, o := range []InviteOptions{{Life: -1}, {Life: 100 * 24 * time.Hour}, {For: "east"}, {For: "No"}} {
		if _, err := east.Invite("east:1", o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
