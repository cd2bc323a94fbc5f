package kvstore_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/clustermesh/clustermesh/kvstore"
)

func TestDialWithClientCertificate(t *testing.T) {
	ca := newAuthority(t, "ca")
	m := kvstore.NewMemory()
	address := serve(t, &etcdServer{store: m}, ca.server(t, "one.mesh.example"))
	_, port, _ := net.SplitHostPort(address)
	conn := dial(t, kvstore.ConnConfig{
		Endpoints:   []string{"https://one.mesh.example:" + port},
		HostAliases: map[string][]netip.Addr{"one.mesh.example": {netip.MustParseAddr("127.0.0.1")}},
		TLS:         ca.client(t, "peer"),
	})
	if conn.Endpoint() != "https://one.mesh.example:"+port || conn.Life() == 0 || conn.Err() != nil {
		t.Fatalf("endpoint %q, life %x, err %v", conn.Endpoint(), conn.Life(), conn.Err())
	}
	if _, ok, err := conn.Get(t.Context(), "k"); ok || err != nil {
		t.Fatalf("absent key: %t, %v", ok, err)
	}
	if err := m.Apply(t.Context(), []kvstore.Op{{Key: "k", Value: []byte("v")}}); err != nil {
		t.Fatal(err)
	}
	if kv, ok, err := conn.Get(t.Context(), "k"); !ok || err != nil || string(kv.Value) != "v" {
		t.Fatalf("key: %+v, %t, %v", kv, ok, err)
	}
}

// closedPort is an address nobody listens on.
func closedPort(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// answerer accepts connections and hands each to fn.
func answerer(t *testing.T, fn func(net.Conn)) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			fn(conn)
		}
	}()
	return listener.Addr().String()
}

func TestDialSaysWhatFailed(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	m := kvstore.NewMemory()
	secure := serve(t, &etcdServer{store: m}, ca.server(t, "localhost"))
	noID := serve(t, &etcdServer{store: m, noCluster: true}, nil)
	plain := serve(t, &etcdServer{store: m}, nil)
	silent := answerer(t, func(net.Conn) {})
	hangsUp := answerer(t, func(c net.Conn) { c.Close() })
	oldTLS := ca.server(t, "localhost")
	oldTLS.NextProtos = []string{"http/1.1"}
	noH2 := answerer(t, func(c net.Conn) { tls.Server(c, oldTLS).Handshake() })
	expired := ca.client(t, "peer")
	expired.Certificates = []tls.Certificate{ca.expired(t)}
	client := ca.client(t, "peer")

	tests := []struct {
		name, endpoint string
		tls            *tls.Config
		stage          kvstore.DialStage
		text           string
	}{
		{"dns", "https://no-such-host.invalid:2379", client, kvstore.StageResolve, "check the name"},
		{"closed port", "http://" + closedPort(t), nil, kvstore.StageConnect, "refused"},
		{"wrong CA of the server", "https://" + secure, other.client(t, "peer"), kvstore.StageVerify, "certificate"},
		{"wrong name", "https://elsewhere.example:" + port(secure), client, kvstore.StageVerify, "elsewhere.example"},
		{"no client certificate", "https://" + secure, ca.client(t, ""), kvstore.StageRefused, "certificate required"},
		{"client certificate of another CA", "https://" + secure, ca.clientFrom(t, other), kvstore.StageRefused, "refused this client's certificate"},
		{"expired client certificate", "https://" + secure, expired, kvstore.StageRefused, "refused this client's certificate"},
		{"plain text server", "https://" + plain, client, kvstore.StageTLS, ""},
		{"TLS server asked in plain text", "http://" + secure, nil, kvstore.StageProbe, ""},
		{"silent server, TLS", "https://" + silent, client, kvstore.StageTLS, "deadline"},
		{"silent server, plain", "http://" + silent, nil, kvstore.StageProbe, "deadline"},
		{"server hangs up", "http://" + hangsUp, nil, kvstore.StageProbe, ""},
		{"no HTTP/2", "https://" + noH2, client, kvstore.StageTLS, ""},
		{"no cluster id", "http://" + noID, nil, kvstore.StageProbe, "no cluster id"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			limit := 30 * time.Second
			if test.text == "deadline" {
				limit = time.Second
			}
			_, err := kvstore.Dial(t.Context(), kvstore.ConnConfig{
				Endpoints: []string{test.endpoint}, TLS: test.tls, DialTimeout: limit,
				HostAliases: map[string][]netip.Addr{"elsewhere.example": {netip.MustParseAddr("127.0.0.1")}},
			})
			var failed *kvstore.DialError
			if !errors.As(err, &failed) || failed.Stage != test.stage || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %v\nwant stage %s with %q", err, test.stage, test.text)
			}
			t.Log(err)
		})
	}
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

func TestDialTakesTheEndpointThatAnswers(t *testing.T) {
	good := "http://" + serve(t, &etcdServer{store: kvstore.NewMemory()}, nil)
	bad := "http://" + closedPort(t)
	for range 8 {
		conn, err := kvstore.Dial(t.Context(), kvstore.ConnConfig{Endpoints: []string{bad, good, bad}})
		if err != nil || conn.Endpoint() != good {
			t.Fatalf("endpoint %v, error %v", conn, err)
		}
		conn.Close()
	}
	_, err := kvstore.Dial(t.Context(), kvstore.ConnConfig{Endpoints: []string{bad, "http://" + closedPort(t)}})
	if n := strings.Count(err.Error(), "dial http"); n != 2 {
		t.Fatalf("the error tells about %d of 2 endpoints: %v", n, err)
	}
}

func TestDialTriesEveryAddress(t *testing.T) {
	address := serve(t, &etcdServer{store: kvstore.NewMemory()}, nil)
	for range 4 {
		dial(t, kvstore.ConnConfig{
			Endpoints: []string{"http://mesh.example:" + port(address)},
			HostAliases: map[string][]netip.Addr{"mesh.example": {
				netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}},
		})
	}
}

func TestConnConfigValidate(t *testing.T) {
	bad := kvstore.ConnConfig{Endpoints: []string{"https://h:1", "h:1", "http://h", "ftp://h:1", "http://h:1/path"}, MaxRecvBytes: -1}
	text := fmt.Sprint(bad.Validate())
	for _, want := range []string{`"https://h:1": https needs`, `"h:1"`, `"http://h"`, `"ftp://h:1"`, `"http://h:1/path"`, "-1"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
	if (kvstore.ConnConfig{}).Validate() == nil {
		t.Error("no endpoints were accepted")
	}
}

// all lists and follows everything under p/ until synced with n keys.
func all(t *testing.T, w *kvstore.Watcher, r kvstore.Reader, sink func(kvstore.Update) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return w.Follow(ctx, r, sink)
}

func TestLargeRepliesAreAskedForInSmallerPages(t *testing.T) {
	m := kvstore.NewMemory()
	for i := range 60 {
		op := kvstore.Op{Key: fmt.Sprintf("p/%02d", i), Value: make([]byte, 30<<10)}
		if err := m.Apply(t.Context(), []kvstore.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
	conn := dial(t, kvstore.ConnConfig{
		Endpoints:    []string{"http://" + serve(t, &etcdServer{store: m}, nil)},
		MaxRecvBytes: 100 << 10,
	})
	if _, err := conn.Range(t.Context(), "p/", "p0", 0, 0); !errors.Is(err, kvstore.ErrReplyTooLarge) {
		t.Fatalf("reply of 1.8 MB: %v", err)
	}
	keys := 0
	w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/"})
	err := all(t, w, conn, func(u kvstore.Update) error {
		if keys += len(u.Changes); u.Synced {
			return errStop
		}
		return nil
	})
	if !errors.Is(err, errStop) || keys != 60 {
		t.Fatalf("%d keys of 60, %v", keys, err)
	}
}

func TestWatchAsksForALeader(t *testing.T) {
	s := &etcdServer{store: kvstore.NewMemory()}
	conn := dialMemory(t, s)
	err := conn.Watch(t.Context(), "p/", "p0", 0, func(kvstore.Changes) error { return errStop })
	if !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.headers[0].Get("hasleader"); !slices.Equal(got, []string{"true"}) {
		t.Fatalf("metadata %v", s.headers[0])
	}
}

func TestFragmentsOfOneRevisionAreJoined(t *testing.T) {
	m := kvstore.NewMemory()
	for revision := range 3 {
		var ops []kvstore.Op
		for i := range 5 {
			ops = append(ops, kvstore.Op{Key: fmt.Sprintf("p/%d/%d", revision, i), Value: []byte("v")})
		}
		if err := m.Apply(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
	}
	conn := dialMemory(t, &etcdServer{store: m, fragment: 2})
	perRevision := map[int64]int{}
	err := conn.Watch(t.Context(), "p/", "p0", 2, func(c kvstore.Changes) error {
		for _, change := range c.Changes {
			perRevision[change.ModRevision]++
		}
		for revision, n := range perRevision {
			if n != 5 {
				t.Errorf("revision %d came in parts: %d of 5", revision, n)
			}
		}
		if len(perRevision) == 3 {
			return errStop
		}
		return nil
	})
	if !errors.Is(err, errStop) {
		t.Fatal(err)
	}
}

func TestConnEndsWhenTheLifeChanges(t *testing.T) {
	m := kvstore.NewMemory()
	conn := dialMemory(t, &etcdServer{store: m})
	m.NewLife()
	if _, err := conn.Range(t.Context(), "p/", "p0", 0, 0); !errors.Is(err, kvstore.ErrLifeChanged) {
		t.Fatalf("reply of another life: %v", err)
	}
	<-conn.Done()
	if !errors.Is(conn.Err(), kvstore.ErrLifeChanged) {
		t.Fatal(conn.Err())
	}
	if _, err := conn.Range(t.Context(), "p/", "p0", 0, 0); !errors.Is(err, kvstore.ErrLifeChanged) {
		t.Fatalf("call on an ended connection: %v", err)
	}
}

// TestSilentServerIsNoticed freezes everything between client and server, as a
// firewall that drops packets does.
func TestSilentServerIsNoticed(t *testing.T) {
	ca := newAuthority(t, "ca")
	server := &etcdServer{store: kvstore.NewMemory()}
	proxy := newProxy(t, serve(t, server, ca.server(t, "localhost")))
	conn := dial(t, kvstore.ConnConfig{
		Endpoints: []string{"https://" + proxy.address}, TLS: ca.client(t, "peer"),
		Keepalive: 100 * time.Millisecond, KeepaliveTimeout: 3 * time.Second,
	})
	watched := make(chan error, 1)
	begun := make(chan struct{}, 1)
	go func() {
		watched <- conn.Watch(t.Context(), "p/", "p0", 0, func(kvstore.Changes) error {
			begun <- struct{}{}
			return nil
		})
	}()
	<-begun
	for asked := server.ranges.Load(); server.ranges.Load() < asked+3; time.Sleep(10 * time.Millisecond) {
		if conn.Err() != nil {
			t.Fatalf("ended although the server lives: %v", conn.Err())
		}
	}
	proxy.freeze()
	select {
	case err := <-watched:
		if !strings.Contains(err.Error(), "no sign of life") {
			t.Fatalf("watch ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("not noticed")
	}
	<-conn.Done()
}

func TestConnIsOverWhenTheServerIs(t *testing.T) {
	address := serve(t, &etcdServer{store: kvstore.NewMemory()}, nil)
	proxy := newProxy(t, address)
	conn := dial(t, kvstore.ConnConfig{Endpoints: []string{"http://" + proxy.address}})
	proxy.cut()
	select {
	case <-conn.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("not noticed")
	}
	if _, err := conn.Range(t.Context(), "a", "", 1, 0); err == nil || !strings.Contains(err.Error(), "broke") {
		t.Fatalf("call after the end: %v", err)
	}
	if proxy.accepted.Load() != 1 {
		t.Fatalf("the connection was made %d times", proxy.accepted.Load())
	}
}

func TestCloseEndsWatches(t *testing.T) {
	conn := dialMemory(t, &etcdServer{store: kvstore.NewMemory()})
	err := conn.Watch(t.Context(), "p/", "p0", 0, func(kvstore.Changes) error {
		go conn.Close()
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "connection closed") {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}

// oddWatch answers a watch with a fixed list of replies.
type oddWatch struct {
	*etcdServer
	replies []*etcdserverpb.WatchResponse
}

func TestOddWatchRepliesEndTheWatch(t *testing.T) {
	header := func(revision int64) *etcdserverpb.ResponseHeader {
		return &etcdserverpb.ResponseHeader{ClusterId: 5, Revision: revision}
	}
	created := &etcdserverpb.WatchResponse{Header: header(20), WatchId: 1, Created: true}
	tests := []struct {
		name    string
		replies []*etcdserverpb.WatchResponse
		want    string
		is      error
	}{
		{"no header", []*etcdserverpb.WatchResponse{{Created: true}}, "no cluster id", nil},
		{"events before creation", []*etcdserverpb.WatchResponse{{Header: header(20), WatchId: 1}}, "not asked for", nil},
		{"another watch", []*etcdserverpb.WatchResponse{created, {Header: header(20), WatchId: 2}}, "not asked for", nil},
		{"created twice", []*etcdserverpb.WatchResponse{created, created}, "twice", nil},
		{"canceled", []*etcdserverpb.WatchResponse{created, {Header: header(20), WatchId: 1, Canceled: true, CancelReason: "permission denied"}}, "permission denied", nil},
		{"canceled for nothing", []*etcdserverpb.WatchResponse{{Header: header(20), Created: true, Canceled: true}}, "no reason given", nil},
		{"compacted in words", []*etcdserverpb.WatchResponse{created, {Header: header(20), WatchId: 1, Canceled: true, CancelReason: "etcdserver: mvcc: required revision has been compacted"}}, "", kvstore.ErrCompacted},
		{"compacted in number", []*etcdserverpb.WatchResponse{created, {Header: header(20), WatchId: 1, CompactRevision: 15}}, "15", kvstore.ErrCompacted},
		{"progress backwards", []*etcdserverpb.WatchResponse{created, {Header: header(25), WatchId: 1}, {Header: header(24), WatchId: 1}}, "24", kvstore.ErrLifeChanged},
		{"another cluster", []*etcdserverpb.WatchResponse{created, {Header: &etcdserverpb.ResponseHeader{ClusterId: 6}, WatchId: 1}}, "cluster id", kvstore.ErrLifeChanged},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conn := dialOdd(t, oddWatch{&etcdServer{store: kvstore.NewMemory()}, test.replies})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := conn.Watch(ctx, "p/", "p0", 10, func(kvstore.Changes) error { return nil })
			if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
				t.Fatalf("got %v, want %q and %v", err, test.want, test.is)
			}
		})
	}
}

func TestWatcherNoticesAServerBehindItsOwnList(t *testing.T) {
	header := &etcdserverpb.ResponseHeader{ClusterId: 5, Revision: 3}
	conn := dialOdd(t, oddWatch{&etcdServer{store: kvstore.NewMemory()}, []*etcdserverpb.WatchResponse{{Header: header, Created: true}}})
	w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: "p/"})
	err := all(t, w, conn, func(kvstore.Update) error { return nil })
	if !errors.Is(err, kvstore.ErrLifeChanged) {
		t.Fatal(err)
	}
}

func (s oddWatch) Range(context.Context, *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	return &etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{ClusterId: 5, Revision: 10}}, nil
}

func (s oddWatch) Watch(stream etcdserverpb.Watch_WatchServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	for _, reply := range s.replies {
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}
