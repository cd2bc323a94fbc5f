package clusterfile

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

const good = `endpoints:
- https://192.0.2.1:2379
trusted-ca-file: ca.crt
cert-file: /pki/remote.crt
key-file: /pki/remote.key
`

func read(t *testing.T, text string) (File, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "east")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, raw, err := Read(path)
	if err == nil && string(raw) != text {
		t.Errorf("content %q, want what is in the file", raw)
	}
	return f, filepath.Dir(path), err
}

func TestReadTakesWhatCiliumsSecretHolds(t *testing.T) {
	f, dir, err := read(t, strings.Replace(good, "trusted-ca-file", "ca-file", 1)+
		"cilium-host-aliases:\n- hostname: east.mesh.cilium.io\n  ips: [192.0.2.1, '2001:db8::1']\nqps: 20\n")
	if err != nil {
		t.Fatal(err)
	}
	if f.TrustedCAFile != filepath.Join(dir, "ca.crt") || f.CertFile != "/pki/remote.crt" || f.KeyFile != "/pki/remote.key" {
		t.Errorf("files %q %q %q: relative paths are relative to the file, absolute ones stay", f.TrustedCAFile, f.CertFile, f.KeyFile)
	}
	if got := f.Aliases()["east.mesh.cilium.io"]; len(got) != 2 || got[0] != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("aliases %v", got)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, row := range map[string]struct{ text, says string }{
		"not YAML":              {"endpoints: [", "parse etcd client YAML"},
		"no endpoint":           {strings.Replace(good, "- https://192.0.2.1:2379", "", 1), "endpoints: empty"},
		"plain text":            {strings.Replace(good, "https", "http", 1), "plain text is not spoken"},
		"no port":               {strings.Replace(good, ":2379", "", 1), "not of the form https://host:port"},
		"no scheme":             {strings.Replace(good, "https://", "", 1), "not of the form https://host:port"},
		"no CA":                 {strings.Replace(good, "trusted-ca-file: ca.crt\n", "", 1), "trusted-ca-file: not set"},
		"no certificate":        {strings.Replace(good, "cert-file: /pki/remote.crt\n", "", 1), "cert-file: not set"},
		"no key":                {strings.Replace(good, "key-file: /pki/remote.key\n", "", 1), "key-file: not set"},
		"unverified":            {good + "insecure-skip-tls-verify: true\n", "insecure-skip-tls-verify"},
		"insecure":              {good + "insecure-transport: true\n", "insecure-transport"},
		"alias without a name":  {good + "cilium-host-aliases: [{ips: [192.0.2.1]}]\n", "no hostname"},
		"alias without address": {good + "cilium-host-aliases: [{hostname: a}]\n", `"a" has no ips`},
		"alias twice":           {good + "cilium-host-aliases: [{hostname: a, ips: [192.0.2.1]}, {hostname: a, ips: [192.0.2.2]}]\n", `"a" occurs twice`},
		"alias of no address":   {good + "cilium-host-aliases: [{hostname: a, ips: [nowhere]}]\n", "parse etcd client YAML"},
		"too large":             {good + strings.Repeat("#", MaxBytes), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := read(t, row.text)
			if err == nil || !strings.Contains(err.Error(), row.says) {
				t.Errorf("error %v, want one with %q", err, row.says)
			}
		})
	}
}

func TestReadTellsOtherFilesApart(t *testing.T) {
	if _, _, err := read(t, "-----BEGIN CERTIFICATE-----"); !errors.Is(err, ErrNotClusterFile) {
		t.Errorf("error %v, want ErrNotClusterFile", err)
	}
	if _, _, err := Read(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that the file does not exist", err)
	}
}

// A parser that compares each name with each, and writes an error about each
// pair, would take gigabytes for what fits into a cluster file.
func TestRepeatedMembersCostLittleMemory(t *testing.T) {
	raw := []byte(good + strings.Repeat("a:\n", 900))
	cost.Bounded(t, len(raw), yamlfile.Overhead, func() {
		if _, err := parse(raw, "/dir"); err == nil || !strings.Contains(err.Error(), `"a" is already set in line 6`) {
			t.Errorf("error %v", err)
		}
	})
}
