package server

import (
	"testing"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore/peers"
)

// serveFiles makes a server use certs.ServerTLS, as the product does, with the
// CA of a test.
func serveFiles(t *testing.T, ca *authority) func(*Config) { return newFiles(t, ca.server()).serve(ca) }

// serve makes a server use the files, and believe a CA.
func (f files) serve(ca *authority) func(*Config) {
	files := certs.ServerFiles{Cert: f.cert, Key: f.key, ClientCA: f.write("ca.crt", "CERTIFICATE", ca.cert.Raw)}
	return func(c *Config) {
		c.TLS, c.Log = must(certs.ServerTLS(files, nil)), nil
		c.Trust = must(certs.NewTrust(files, nil))
	}
}

// TestA07_BadCertificatesWithoutPeers tries every flaw where common names decide
// and all readers have one CA, and for the own agents of a server with peers.
func TestA07_BadCertificatesWithoutPeers(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	for _, mode := range []struct {
		name string
		set  *peers.Set
		more []string // other names that are good
	}{{"remote", nil, []string{"remote-west", "local-" + testCluster}}, {"local-" + testCluster, peers.NewSet(), nil}} {
		w := start(t, serveFiles(t, ca), patient, func(c *Config) { c.Peers = mode.set })
		w.ca = ca
		g := guest{ca: ca, peer: &peers.Peer{Name: mode.name, Identity: peers.Identity{CommonName: mode.name}}}
		good := []guest{g}
		for _, name := range mode.more {
			good = append(good, guest{ca: ca, peer: &peers.Peer{Identity: peers.Identity{CommonName: name}}})
		}
		bad := 0
		for _, one := range flaws(g, westGuest(t), w) {
			f := newForge(t, g)
			one.do(f)
			cert, err := f.build()
			if err != nil || rightAfterAll(cert, good) || one.name == "root of our own agents" {
				continue
			}
			if bad++; shake(w, w.with(cert)) == nil {
				t.Errorf("%s: accepted with %s", mode.name, one.name)
			}
		}
		if err := shake(w, w.with(g.cert())); err != nil {
			t.Errorf("%s: a good one is refused: %v", mode.name, err)
		}
		t.Logf("%s: %d bad certificates and chains: 0 accepted", mode.name, bad)
		if bad < 80 {
			t.Errorf("only %d bad certificates", bad)
		}
	}
}

// TestA07_RevokedAreRefused: by the list of the CA, and by the file of a peer.
func TestA07_RevokedAreRefused(t *testing.T) {
	t.Parallel()
	d := newCADir(t)
	w := start(t, d.serve)
	var all []certs.Files
	for _, cluster := range []string{"north", "south", "west"} {
		all = append(all, d.issue(certs.IssueRequest{Kind: certs.Remote, Cluster: cluster}))
	}
	for i, f := range all {
		if err := shake(w, d.client(f)); err != nil {
			t.Errorf("certificate %d is refused before: %v", i, err)
		}
		revokeFile(d, f)
		eventually(t, "refused", func() bool { return shake(w, d.client(f)) != nil })
	}
	if n := w.metric("clustermesh_gateway_handshake_failures_total", string(failedRevoked)); n < 3 {
		t.Errorf("%v refusals are counted as revoked", n)
	}
}
