package peers

import (
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// FuzzFile checks that no file content panics and that what is accepted is
// valid.
func FuzzFile(f *testing.F) {
	ca := newAuthority(f, "CA")
	f.Add([]byte(goodFile(ca, "uri: "+westURI)), []byte(ca.pem()))
	f.Add([]byte("ca-file: x\nidentity: {dns: a.b}\nsees: {services: [a/b], nodes: all}\nexpires: 2030-01-01\n"), []byte(ca.pem()))
	f.Add([]byte(ownFile+"west}\n"), []byte{})
	f.Add([]byte("a: &a [*a]\n"), []byte{})
	f.Add([]byte("shares-ca-with: ["+strings.Repeat("?1,", 2000)+"]\n"), []byte{})
	f.Add([]byte("sees: {services: ["+strings.Repeat("&a:b,", 4000)+"]}\n"), []byte{})
	f.Add([]byte("sees: &x {namespaces: [a]}\nidentity: *x\n"), []byte("-----BEGIN CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, raw, ca []byte) {
		var p *Peer
		var err error
		cost.Bounded(t, len(raw)+len(ca), yamlfile.Overhead, func() { p, err = fileOf(raw, ca) })
		if err == nil && (p.Validate() != nil || p.View.All == (len(p.View.Namespaces)+len(p.View.Services) > 0 || p.View.Nodes || p.View.Identities || p.View.Addresses)) {
			t.Fatalf("accepted %+v", p)
		}
	})
}

func fileOf(raw, ca []byte) (*Peer, error) {
	parsed, err := parseFile(raw)
	if err != nil {
		return nil, err
	}
	return parsed.peer("west", ca, new(ownCAs))
}
