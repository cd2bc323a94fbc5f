package clusterfile

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// FuzzParse checks that what is accepted can be dialled safely: https alone,
// with ports and certificates.
func FuzzParse(f *testing.F) {
	const good = "endpoints: [https://east.mesh:2379]\ntrusted-ca-file: ca.crt\ncert-file: /a/tls.crt\nkey-file: tls.key\n"
	f.Add([]byte(good))
	f.Add([]byte(good + "cilium-host-aliases:\n- hostname: east.mesh\n  ips: [10.0.0.1, 'fd00::1']\n"))
	f.Add([]byte(strings.Replace(good, "https", "http", 1)))
	f.Add([]byte(good + "insecure-transport: true\n"))
	f.Add([]byte("a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nendpoints: &e [*c,*c,*e]\n"))
	f.Add([]byte("endpoints: " + strings.Repeat("[", 200)))
	f.Add([]byte("endpoints: [" + strings.Repeat("?1,", 2000) + "]\n")) // an error of each
	f.Add([]byte("cilium-host-aliases:\n" + strings.Repeat("- ips: [&a 1]\n", 1300)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > MaxBytes {
			return
		}
		var got File
		var err error
		cost.Bounded(t, len(raw), yamlfile.Overhead, func() { got, err = parse(raw, "/dir") })
		if err == nil {
			checkSafe(t, got)
		}
	})
}

func checkSafe(t *testing.T, f File) {
	t.Helper()
	if len(f.Endpoints) == 0 || f.InsecureTransport || f.InsecureSkipVerify {
		t.Fatalf("accepted %+v", f)
	}
	for _, e := range f.Endpoints {
		if u, err := url.Parse(e); err != nil || u.Scheme != "https" || u.Port() == "" {
			t.Fatalf("accepted endpoint %q", e)
		}
	}
	for _, path := range []string{f.TrustedCAFile, f.CertFile, f.KeyFile} {
		if !filepath.IsAbs(path) {
			t.Fatalf("path %q depends on the working directory", path)
		}
	}
	for host, ips := range f.Aliases() {
		if host == "" || len(ips) == 0 {
			t.Fatalf("host alias %q has %v", host, ips)
		}
	}
}
