package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var west = Role{Kind: Remote, Cluster: "west"}

// makeRequest makes a request that NewSigningRequest would not.
func makeRequest(t testing.TB, key crypto.Signer, edit func(*x509.CertificateRequest)) []byte {
	t.Helper()
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "remote-west"}}
	if edit != nil {
		edit(tmpl)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der})
}

func newKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	must(t, err)
	return key
}

func TestSigningRequestsAreSignedForTheRoleAlone(t *testing.T) {
	dir := newCADir(t)
	request, key, err := NewSigningRequest(west)
	must(t, err)
	cert, err := SignRequest(dir, request, west, 30*day)
	must(t, err)
	must(t, CheckSigned(cert, key, read1(t, dir+"/ca.crt"), west))
	found, err := parseCerts(cert)
	must(t, err)
	c := found[0]
	if c.IsCA || len(sans(c)) != 0 || len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || time.Until(c.NotAfter) > 30*day {
		t.Errorf("CA %v, names %q, usages %v, until %s", c.IsCA, sans(c), c.ExtKeyUsage, c.NotAfter)
	}
	list, err := IssuedBy(dir)
	must(t, err)
	if len(list) != 1 || list[0].Name != "remote-west" {
		t.Errorf("recorded %+v", list)
	}
	_, err = Revoke(dir, RevokeRequest{Names: []string{"remote-west"}})
	must(t, err)
	for _, role := range []Role{{Kind: Remote}, {Kind: Local, Cluster: "west"}, {Kind: Server, Cluster: "west"}, {Kind: Remote, Cluster: "../x"}} {
		if _, err := SignRequest(dir, request, role, 0); err == nil {
			t.Errorf("signed for role %q", role.CommonName())
		}
	}
	if _, err := SignRequest(dir, request, west, -1); err == nil {
		t.Error("signed for a negative time")
	}
}

func TestBadSigningRequestsAreRefused(t *testing.T) {
	good := newKey(t, elliptic.P256())
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	whole := makeRequest(t, good, nil)
	_, err = CheckSigningRequest(whole, west)
	must(t, err)
	block, _ := pem.Decode(whole)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	cn := func(name string) func(*x509.CertificateRequest) {
		return func(r *x509.CertificateRequest) { r.Subject = pkix.Name{CommonName: name} }
	}
	for name, request := range map[string][]byte{
		"empty":          nil,
		"cut off":        whole[:len(whole)/2],
		"two":            append(bytes.Clone(whole), whole...),
		"as certificate": pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: block.Bytes}),
		"forged":         pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: forged}),
		"weak curve":     makeRequest(t, newKey(t, elliptic.P224()), nil),
		"weak RSA":       makeRequest(t, small, nil),
		"other cluster":  makeRequest(t, good, cn("remote-east")),
		"local":          makeRequest(t, good, cn("local-west")),
		"plain remote":   makeRequest(t, good, cn("remote")),
		"admin":          makeRequest(t, good, cn("admin-west")),
		"with NUL":       makeRequest(t, good, cn("remote-west\x00")),
		"no name":        makeRequest(t, good, cn("")),
		"upper case":     makeRequest(t, good, cn("Remote-West")),
		"organisation":   makeRequest(t, good, func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"system:masters"} }),
		"two names": makeRequest(t, good, func(r *x509.CertificateRequest) {
			r.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "remote-west"}, {Type: []int{2, 5, 4, 3}, Value: "local-east"}}
		}),
		"DNS name": makeRequest(t, good, func(r *x509.CertificateRequest) { r.DNSNames = []string{"east.mesh.cilium.io"} }),
		"address":  makeRequest(t, good, func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{{127, 0, 0, 1}} }),
		"CA": makeRequest(t, good, func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
		}),
		"unknown request": makeRequest(t, good, func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Value: []byte{5, 0}}}
		}),
	} {
		if _, err := CheckSigningRequest(request, west); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	for name, key := range map[string]crypto.Signer{"P-384": newKey(t, elliptic.P384()), "Ed25519": edKey} {
		if _, err := CheckSigningRequest(makeRequest(t, key, nil), west); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckSignedRefuses(t *testing.T) {
	b, other := newBench(t), newBench(t)
	ca := read1(t, b.client.CA)
	cert, key := read1(t, b.client.Cert), read1(t, b.client.Key)
	must(t, CheckSigned(cert, key, ca, west))
	old, oldKey := b.forge(t, "old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	for name, err := range map[string]error{
		"other role":   CheckSigned(cert, key, ca, Role{Kind: Remote, Cluster: "north"}),
		"other key":    CheckSigned(cert, read1(t, b.server.Key), ca, west),
		"other CA":     CheckSigned(cert, key, read1(t, other.client.CA), west),
		"a server":     CheckSigned(read1(t, b.server.Cert), read1(t, b.server.Key), ca, west),
		"expired":      CheckSigned(read1(t, old), read1(t, oldKey), ca, west),
		"with a chain": CheckSigned(append(bytes.Clone(cert), ca...), key, ca, west),
		"leaf as CA":   CheckSigned(cert, key, cert, west),
		"no CA":        CheckSigned(cert, key, nil, west),
	} {
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestParseBundleIsBounded(t *testing.T) {
	ca := read1(t, newBench(t).client.CA)
	if _, err := ParseBundle(bytes.Repeat(ca, maxBundle)); err != nil {
		t.Error(err)
	}
	if _, err := ParseBundle(bytes.Repeat(ca, maxBundle+1)); err == nil {
		t.Error("more CAs than allowed")
	}
	dir := filepath.Join(t.TempDir(), "pki")
	must(t, InitCA(dir, CAOptions{Validity: time.Nanosecond}))
	if _, err := ParseBundle(read1(t, dir+"/ca.crt")); err == nil || !strings.Contains(err.Error(), "valid") {
		t.Errorf("an expired CA: %v", err)
	}
}
