package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// peerFiles is a directory of peers in a test, followed like the real one.
type peerFiles struct {
	t    testing.TB
	path string
	dir  *peers.Directory
}

func newPeerFiles(t testing.TB) *peerFiles {
	path := t.TempDir()
	f := &peerFiles{t: t, path: path, dir: peers.NewDirectory(path, nil, nil)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- f.dir.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return f
}

// write replaces a peer's file in one step.
func (f *peerFiles) write(g guest, more string, cas ...*authority) {
	f.t.Helper()
	text := more
	if !strings.Contains(more, "sees:") {
		text += "sees: all\n"
	}
	if !strings.Contains(more, "identity:") {
		text += fmt.Sprintf("identity: {uri: %q, dns: %q, common-name: %q}\n", g.peer.Identity.URI, g.peer.Identity.DNS, g.peer.Identity.CommonName)
	}
	text += "ca: |\n"
	for _, a := range append(cas, g.ca)[:max(1, len(cas))] {
		for line := range strings.Lines(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))) {
			text += "  " + line
		}
	}
	at := filepath.Join(f.path, g.peer.Name+".yaml")
	if err := os.WriteFile(at+".new", []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(at+".new", at); err != nil {
		f.t.Fatal(err)
	}
}

func (f *peerFiles) remove(g guest) {
	if err := os.Remove(filepath.Join(f.path, g.peer.Name+".yaml")); err != nil {
		f.t.Fatal(err)
	}
}

// until waits until a certificate is accepted, or is not.
func (f *peerFiles) until(cert tls.Certificate, accepted bool) {
	f.t.Helper()
	var chain []*x509.Certificate
	for _, der := range cert.Certificate {
		chain = append(chain, must(x509.ParseCertificate(der)))
	}
	eventually(f.t, fmt.Sprintf("accepted is %v; problems %q", accepted, f.dir.Problems()), func() bool {
		table, _ := f.dir.Set().Current()
		_, _, err := table.Authenticate(chain, time.Now())
		return (err == nil) == accepted
	})
}

// openWatch opens a watch and waits until it is created.
func openWatch(t *testing.T, conn *grpc.ClientConn) watchCall {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := watchCall{t, s}
	c.create(&pb.WatchCreateRequest{})
	return c
}

// TestA08_WithdrawnAccessClosesStreams withdraws a peer's access in every way
// there is, and measures until its stream ends. Another peer's stream goes on.
func TestA08_WithdrawnAccessClosesStreams(t *testing.T) {
	t.Parallel()
	north, files := northGuest(t), newPeerFiles(t)
	w := start(t, func(c *Config) { c.Peers = files.dir.Set() })
	files.write(north, "")
	northCert := north.cert()
	files.until(northCert, true)
	other := openWatch(t, w.dialWith(w.with(northCert)))
	worst, removal := time.Duration(0), time.Duration(0)
	for i, test := range []struct {
		name     string
		withdraw func(g guest, cert tls.Certificate)
		again    bool // the certificate is still accepted afterwards
	}{
		{"file removed", func(g guest, _ tls.Certificate) { files.remove(g) }, false},
		{"revoked", func(g guest, _ tls.Certificate) { files.write(g, "revoked: true\n") }, false},
		{"certificate revoked", func(g guest, c tls.Certificate) {
			files.write(g, "revoked-certificates: ["+fingerprint(c)+"]\n")
		}, false},
		{"another CA", func(g guest, _ tls.Certificate) { files.write(g, "", newAuthority(t)) }, false},
		{"another identity", func(g guest, _ tls.Certificate) { files.write(g, "identity: {dns: other.example}\n") }, false},
		{"another view", func(g guest, _ tls.Certificate) { files.write(g, "sees: {namespaces: [shop]}\n") }, true},
		{"expired peer", func(g guest, _ tls.Certificate) {
			files.write(g, "expires: "+time.Now().Add(time.Second).UTC().Format(time.RFC3339)+"\n")
		}, false},
		{"disconnected by name", func(g guest, _ tls.Certificate) { w.s.Disconnect(func(n string) bool { return n == g.peer.Name }) }, true},
	} {
		g := newGuest(t, fmt.Sprintf("peer%d", i), peers.Identity{URI: fmt.Sprintf("spiffe://%d.example/x", i)}, everything)
		cert := g.cert()
		files.write(g, "")
		files.until(cert, true)
		stream := openWatch(t, w.dialWith(w.with(cert)))
		begin := time.Now()
		test.withdraw(g, cert)
		if _, err := stream.stream.Recv(); err == nil || status.Code(err) == codes.DeadlineExceeded {
			t.Errorf("%s: the stream goes on: %v", test.name, err)
		}
		took := time.Since(begin)
		worst = max(worst, took)
		if i == 0 {
			removal = took
		}
		if took > 10*time.Second {
			t.Errorf("%s: the stream ended after %v", test.name, took)
		}
		if err := shake(w, w.with(cert)); (err == nil) != test.again {
			t.Errorf("%s: connecting again: %v", test.name, err)
		}
		if test.name == "certificate revoked" {
			refusedInOtherClothes(t, w, g, cert)
		}
	}
	w.put("cilium/state/services/v1/east/shop/cart=1")
	if r := other.recv(); len(r.Events) != 1 {
		t.Errorf("another peer's stream: %v", r)
	}
	t.Logf("access withdrawn in 8 ways: streams closed within %v (file removed: %v), another peer's stream unharmed", worst, removal)
}

// refusedInOtherClothes connects with a revoked certificate whose unsigned parts
// are encoded anew: the sum of each copy is one that nobody listed.
func refusedInOtherClothes(t *testing.T, w *world, g guest, cert tls.Certificate) {
	t.Helper()
	var p struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}
	var s struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(cert.Certificate[0], &p)
	_, errSignature := asn1.Unmarshal(p.Signature.Bytes, &s)
	if err := errors.Join(err, errSignature); err != nil {
		t.Fatal(err)
	}
	sequence := func(content ...[]byte) []byte {
		return must(asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: bytes.Join(content, nil)}))
	}
	bits := func(b []byte, unused int) []byte {
		return must(asn1.Marshal(asn1.BitString{Bytes: b, BitLength: 8*len(b) - unused}))
	}
	s.S.Sub(g.ca.key.Params().N, s.S)
	moved := new(big.Int).Lsh(new(big.Int).SetBytes(p.Signature.Bytes), 2).Bytes()
	for name, der := range map[string][]byte{
		"null appended": sequence(p.TBS.FullBytes, p.Algorithm.FullBytes, bits(p.Signature.Bytes, 0), []byte{5, 0}),
		"unused bits":   sequence(p.TBS.FullBytes, p.Algorithm.FullBytes, bits(moved, 2)),
		"other half":    sequence(p.TBS.FullBytes, p.Algorithm.FullBytes, bits(must(asn1.Marshal(s)), 0)),
	} {
		if err := must(x509.ParseCertificate(der)).CheckSignatureFrom(g.ca.cert); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := shake(w, w.with(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: cert.PrivateKey})); err == nil {
			t.Errorf("a revoked certificate gets in with %s", name)
		}
	}
}

func fingerprint(c tls.Certificate) string { return fmt.Sprintf("%x", sha256Sum(c.Certificate[0])) }

// TestA08_ExpiredCertificatesCloseStreams waits for the end of a certificate,
// and of one between it and its CA.
func TestA08_ExpiredCertificatesCloseStreams(t *testing.T) {
	t.Parallel()
	west := westGuest(t)
	w, _ := startPeers(t, []guest{west})
	end, streams := time.Now().Add(8*time.Second), map[string]watchCall{}
	for name, cert := range map[string]tls.Certificate{
		"leaf": west.cert(func(c *x509.Certificate) { c.NotAfter = end }),
		"link": func() tls.Certificate {
			f := newForge(t, west)
			f.links = []*x509.Certificate{linkTemplate(func(c *x509.Certificate) { c.NotAfter = end })}
			return must(f.build())
		}(),
	} {
		streams[name] = openWatch(t, w.dialWith(w.with(cert)))
	}
	for name, s := range streams {
		// Certificates count whole seconds.
		if _, err := s.stream.Recv(); err == nil || time.Since(end) < -time.Second {
			t.Errorf("%s: the stream ended with %v, %v after the certificate", name, err, time.Since(end))
		}
	}
	if n := w.peerMetric("west", "expired"); n != 2 {
		t.Errorf("%v counted", n)
	}
}

// TestA08_TableReplacedDuringHandshakes replaces the table all the time while a
// peer that is in every second table connects: no connection outlives its right.
func TestA08_TableReplacedDuringHandshakes(t *testing.T) {
	west, north := westGuest(t), northGuest(t)
	w, set := startPeers(t, []guest{north}, patient, func(c *Config) { c.Log = nil; c.Limits.Peer.ConnectsPerSecond = 1e9 })
	cert, stop := west.cert(), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				admit(t, set, west, north)
				admit(t, set, north)
			}
		}
	}()
	for range campaign(100, 5_000) {
		_ = shake(w, w.with(cert))
	}
	var open []*grpc.ClientConn
	for range 8 {
		conn := w.dialWith(w.with(cert))
		conn.Connect()
		open = append(open, conn)
	}
	close(stop)
	<-done // the last table is without west
	eventually(t, "no connection of the removed peer is left", func() bool {
		return len(w.s.gateway.conns.which(func(c *conn) bool { return c.grant.name == "west" })) == 0
	})
	for _, c := range open {
		c.Close()
	}
}
