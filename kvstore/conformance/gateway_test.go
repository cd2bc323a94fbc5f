package conformance

import (
	"context"
	"crypto/x509"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/clustermesh/clustermesh/kvstore/server"
)

// gateway runs the product's own server until the test ends, with certificates
// of the product's own CA, and returns it with a target for a certificate of a
// kind.
func gateway(t *testing.T, kind certs.Kind) (*server.Server, Target) {
	t.Helper()
	pki := t.TempDir()
	must(t, certs.InitCA(pki, certs.CAOptions{}))
	own := issue(t, pki, certs.IssueRequest{Kind: certs.Server, Cluster: "east"})
	tlsConfig, err := certs.ServerTLS(certs.ServerFiles{Cert: own.Cert, Key: own.Key, ClientCA: own.CA}, nil)
	must(t, err)
	s, err := server.New(server.Config{
		Cluster: "east", DataDir: t.TempDir(), Listen: "127.0.0.1:0", TLS: tlsConfig, QuotaBytes: 16 << 20, Limits: server.Limits{RingRevisions: 64},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-ended) })
	select {
	case <-s.Started():
	case err := <-ended:
		t.Fatalf("run ended before it started: %v", err)
	}
	client := issue(t, pki, certs.IssueRequest{Kind: kind, Cluster: "east"})
	_, port, err := net.SplitHostPort(s.Addr().String())
	must(t, err)
	return s, Target{
		Cluster: "east", Endpoint: "https://" + net.JoinHostPort(host, port),
		HostAliases: map[string][]netip.Addr{host: {netip.MustParseAddr("127.0.0.1")}},
		CertFile:    client.Cert, KeyFile: client.Key, CAFile: client.CA,
	}
}

func issue(t *testing.T, pki string, r certs.IssueRequest) certs.Files {
	t.Helper()
	f, err := certs.Issue(pki, r)
	must(t, err)
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// publish fills a server like a healthy cluster, after a past long enough to be
// compacted if old is set, and beats from then on.
func publish(t *testing.T, s *server.Server, old bool) {
	t.Helper()
	w := &world{t: t, cluster: "east", config: announced(), content: map[string][]byte{}}
	beat := func(padding int) {
		value := append(schema.EncodeTime(time.Now().Unix()), make([]byte, padding)...)
		err := s.Store().Apply(context.Background(), []kvstore.Op{{Key: schema.HeartbeatKey, Value: value}})
		if err != nil {
			t.Error(err)
		}
	}
	for range 2500 {
		if old {
			beat(5 << 10)
		}
	}
	w.fill(s.Store())
	beat(0)
	must(t, s.Store().Apply(context.Background(), []kvstore.Op{{Key: doomed, Delete: true}}))
	stop, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-ended })
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
				beat(0)
			}
		}
	}()
}

func TestGatewayPasses(t *testing.T) {
	for _, kind := range []certs.Kind{certs.Remote, certs.Local} {
		t.Run(string(kind), func(t *testing.T) {
			s, target := gateway(t, kind)
			publish(t, s, false)
			w := &world{t: t, target: target, opts: Options{OwnID: 1, ProbeWrites: true}}
			want := map[string]Outcome{"ping-tolerated": Skip, "heartbeat-put": Skip, "compacted-range": Skip, "compacted-watch": Skip}
			if kind == certs.Local {
				want["deny-config-list"], w.opts.OwnID = Skip, 7
			}
			w.compare(expect(want))
		})
	}
}

// TestGatewayPassesEverything includes what takes time: a compacted history, and
// pings almost as fast as the gateway lets its readers ping.
func TestGatewayPassesEverything(t *testing.T) {
	if testing.Short() {
		t.Skip("takes most of a minute")
	}
	s, target := gateway(t, certs.Remote)
	publish(t, s, true)
	w := &world{t: t, target: target, opts: Options{OwnID: 1, Wait: true, HeartbeatWait: time.Minute, PingInterval: 5100 * time.Millisecond, ProbeWrites: true}}
	w.compare(expect(nil))
}

// TestGatewayUnderAnotherName shows the fault that operators make most.
func TestGatewayUnderAnotherName(t *testing.T) {
	s, target := gateway(t, certs.Remote)
	publish(t, s, false)
	target.Cluster = "west"
	for _, r := range Run(t.Context(), target, Options{}) {
		if r.Check.ID == "read-config" && r.Outcome != Fail {
			t.Errorf("%s: %s: %s; a cluster that calls itself otherwise does not let its config be read", r.Check.ID, r.Outcome, r.Evidence)
		}
		if r.Outcome == Fail {
			t.Logf("%s: %s; %s", r.Check.ID, r.Evidence, r.Remedy)
		}
	}
}

// TestRunIsBounded shows that a run ends when it is told to.
func TestRunIsBounded(t *testing.T) {
	w := newWorld(t, "east")
	w.ca.files(&w.target, w.ca.issue("remote", x509.ExtKeyUsageClientAuth))
	w.open()
	ctx, cancel := context.WithCancel(t.Context())
	w.opts.OnResult = func(r Result) {
		if r.Check.ID == "watch-ranges" {
			cancel()
		}
	}
	for _, r := range Run(ctx, w.target, w.opts) {
		if r.Outcome == Fail {
			t.Errorf("%s failed in a run that was ended: %s", r.Check.ID, r.Evidence)
		}
		if r.Check.ID == "page-order" && r.Outcome != Skip {
			t.Errorf("%s: %s after the end", r.Check.ID, r.Outcome)
		}
	}
}
