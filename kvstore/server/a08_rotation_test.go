package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/certs/join"
	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// joined writes the file of a peer that has joined.
func (d *caDir) joined(peers string) {
	bundle, err := os.ReadFile(d.files.ClientCA)
	d.check(err)
	d.check(join.Home{Peers: peers}.Install(join.Peer{Cluster: "west", ID: 2, Reads: true, Trust: bundle}))
}

// copied writes it as joining did once: with a copy of the own CAs.
func (d *caDir) copied(peers string) {
	raw, err := os.ReadFile(d.files.ClientCA)
	d.check(err)
	text := "identity:\n  common-name: remote-west\nsees: all\nca: |\n  " + strings.ReplaceAll(strings.TrimSpace(string(raw)), "\n", "\n  ") + "\n"
	d.check(os.WriteFile(filepath.Join(peers, "west.yaml"), []byte(text), 0o600))
}

// follow makes a server use a directory of peers in which west has a certificate
// of the own CA.
func (d *caDir) follow(write func(string)) func(*Config) {
	return func(c *Config) {
		d.serve(c)
		path := d.t.TempDir()
		write(path)
		dir := peers.NewDirectory(path, c.Trust, nil)
		d.check(dir.Load())
		if p := dir.Problems(); len(p) > 0 {
			d.t.Fatal(p)
		}
		c.Peers = dir.Set()
	}
}

// thief is somebody who has copied the CA directory before it was replaced.
type thief struct{ ca tls.Certificate }

func (d *caDir) steal() thief {
	pair, err := tls.LoadX509KeyPair(filepath.Join(d.path, "ca.crt"), filepath.Join(d.path, "ca.key"))
	d.check(err)
	return thief{pair}
}

// mint makes a certificate of west that nobody has recorded.
func (th thief) mint(t testing.TB) *tls.Config {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "remote-west"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, must(x509.ParseCertificate(th.ca.Certificate[0])), key.Public(), th.ca.PrivateKey))
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
}

// rotate replaces the CA; west is given a new certificate on the way.
func (d *caDir) rotate() (renewed certs.Files) {
	d.t.Helper()
	for _, step := range []func(string, certs.RotateOptions) (certs.Rotation, error){certs.PrepareCA, certs.ActivateCA} {
		_, err := step(d.path, certs.RotateOptions{Force: true})
		d.check(err)
	}
	_, err := certs.Renew(d.path, certs.RenewOptions{})
	d.check(err)
	renewed = d.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "west"})
	_, err = certs.RetireCA(d.path, certs.RotateOptions{Force: true})
	d.check(err)
	return renewed
}

// TestA08_RetiredCAComesBackThroughNoPeer: a certificate of a peer leaks and is
// revoked, then the CA is replaced. Neither that certificate nor one made with
// the retired CA's key gets in, and the peer's new one does; whether its file
// names the own CA or holds a copy of it.
func TestA08_RetiredCAComesBackThroughNoPeer(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(*caDir, string){"joined": (*caDir).joined, "copied": (*caDir).copied} {
		d := newCADir(t)
		thief := d.steal()
		w := start(t, d.follow(func(path string) { write(d, path) }))
		leaked := d.client(d.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: "west"}))
		if err := shake(w, leaked); err != nil {
			t.Fatalf("%s: not admitted in the first place: %v", name, err)
		}
		_, err := certs.Revoke(d.path, certs.RevokeRequest{Names: []string{"remote-west"}})
		d.check(err)
		if err := shake(w, leaked); err == nil {
			t.Errorf("%s: the revoked certificate got in before the rotation", name)
		}
		stream := openWatch(t, w.dialWith(thief.mint(t)))
		renewed := d.client(d.rotate())
		ended := make(chan error, 1)
		go func() { _, err := stream.stream.Recv(); ended <- err }()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Errorf("%s: a stream of the retired CA goes on", name)
		}
		if n := w.metric("clustermesh_gateway_refusals_total", string(refusedAuthority)); n < 1 {
			t.Errorf("%s: the stream's end is not counted as %q", name, refusedAuthority)
		}
		if err := shake(w, leaked); err == nil {
			t.Errorf("%s: the revoked certificate got in after its CA was retired", name)
		}
		if err := shake(w, thief.mint(t)); err == nil {
			t.Errorf("%s: a certificate made with the retired CA's key got in", name)
		}
		err = shake(w, renewed)
		if own := name == "joined"; (err == nil) != own { // a copy does not know the new CA
			t.Errorf("%s: the peer's new certificate: %v", name, err)
		}
	}
}

// TestA08_OwnCAOfAnotherStart: a server that starts after the rotation has never
// seen the retired CA.
func TestA08_OwnCAOfAnotherStart(t *testing.T) {
	t.Parallel()
	d := newCADir(t)
	thief := d.steal()
	renewed := d.client(d.rotate())
	w := start(t, d.follow(d.joined))
	if err := shake(w, thief.mint(t)); err == nil {
		t.Error("a certificate made with the retired CA's key got in")
	}
	if err := shake(w, renewed); err != nil {
		t.Errorf("the peer's new certificate: %v", err)
	}
}
