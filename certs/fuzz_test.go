package certs

import (
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/cost"
)

func FuzzParseRole(f *testing.F) {
	for _, seed := range []string{"remote", "remote-east", "local-west", "local-", "admin-x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, cn string) {
		var role Role
		var err error
		cost.Bounded(t, len(cn), 0, func() { role, err = ParseRole(cn) })
		if err == nil && role.CommonName() != cn {
			t.Fatalf("%q became %+v, which is %q", cn, role, role.CommonName())
		}
		if err == nil && role.Kind == Local && role.Cluster == "" {
			t.Fatalf("%q is local to no cluster", cn)
		}
	})
}

func FuzzParseCerts(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		var found []*x509.Certificate
		var err error
		cost.Bounded(t, len(data), 0, func() { found, err = parseCerts(data) })
		if (err == nil) != (len(found) > 0) {
			t.Fatalf("%d certificates with error %v", len(found), err)
		}
	})
}

// FuzzInspect describes the DER of anybody. What a certificate would be taken
// for must agree with what a server takes it for.
func FuzzInspect(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "pki")
	must(f, InitCA(dir, CAOptions{}))
	for _, r := range []IssueRequest{{Kind: Remote, Cluster: "west"}, {Kind: Local, Cluster: "east"}, {Kind: Server, Cluster: "east", Hosts: []string{"a.b", "10.0.0.1"}}} {
		_, err := Issue(dir, r)
		must(f, err)
	}
	paths, err := filepath.Glob(dir + "/*.crt")
	must(f, err)
	for _, path := range paths {
		block, _ := pem.Decode(read1(f, path))
		f.Add(block.Bytes)
	}
	file := filepath.Join(dir, "fuzzed.pem")
	f.Fuzz(func(t *testing.T, der []byte) {
		must(t, os.WriteFile(file, encodeCert(der), 0o600))
		var infos []Info
		cost.Bounded(t, len(der), 0, func() { infos, err = Inspect(file) })
		if (err == nil) != (len(infos) == 1) {
			t.Fatalf("%d descriptions with error %v", len(infos), err)
		}
		for _, i := range infos {
			if role := (Role{i.Kind, i.Cluster}).CommonName(); (i.Kind == Remote || i.Kind == Local) && !strings.Contains(i.Subject, "CN="+role) {
				t.Fatalf("subject %q is taken for %s", i.Subject, role)
			}
		}
	})
}

func FuzzCheckSigningRequest(f *testing.F) {
	f.Add(makeRequest(f, newKey(f, elliptic.P256()), nil))
	f.Add(makeRequest(f, newKey(f, elliptic.P224()), func(r *x509.CertificateRequest) { r.DNSNames = []string{"a"} }))
	f.Fuzz(func(t *testing.T, request []byte) {
		var public crypto.PublicKey
		var err error
		cost.Bounded(t, len(request), 0, func() { public, err = CheckSigningRequest(request, west) })
		if err == nil && public == nil {
			t.Error("taken without a key")
		}
	})
}

// FuzzParseAnchors: a CA bundle and a revocation list of anybody.
func FuzzParseAnchors(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "pki")
	must(f, InitCA(dir, CAOptions{}))
	_, err := Issue(dir, IssueRequest{Kind: Remote, Cluster: "west"})
	must(f, err)
	_, err = Revoke(dir, RevokeRequest{Names: []string{"remote-west"}})
	must(f, err)
	ca, crl := read1(f, dir+"/ca.crt"), read1(f, dir+"/ca.crl")
	f.Add(ca, crl)
	f.Add(ca, crl[:len(crl)/2])
	f.Add(crl, ca)
	f.Fuzz(func(t *testing.T, bundle, list []byte) {
		var got anchors
		var err error
		cost.Bounded(t, len(bundle)+len(list), 0, func() { got, err = parseAnchors("ca", bundle, "crl", list) })
		if err == nil && (got.pool == nil || len(got.revoked) == 0) {
			t.Error("taken without CAs or without a list of them")
		}
		cost.Bounded(t, len(bundle), 0, func() { _, err = ParseBundle(bundle) })
	})
}
