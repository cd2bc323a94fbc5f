package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/kvstore/cost"
	"github.com/clustermesh/clustermesh/kvstore/yamlfile"
)

// FuzzConfigFile starts a daemon with the file of anybody. Either everything in
// it is a flag's value, or the daemon does not run and says so.
func FuzzConfigFile(f *testing.F) {
	f.Add([]byte("cluster-name: east\ncluster-id: 7\nquiet: true\n"))
	f.Add([]byte("cluster-name: [a, {b: c}]\nquiet: &q yes\ncluster-id: *q\n"))
	f.Add([]byte("a: &a [x,x]\nb: &b [*a,*a]\ncluster-name: {<<: {c: *b}}\n"))
	f.Add([]byte("CLUSTER-NAME: x\ncluster-id: 0x10\nconfig: other.yaml\n"))
	f.Add([]byte("deny: [" + strings.Repeat("?1,", 2000) + "]\n"))
	f.Add([]byte("cluster-name: [" + strings.Repeat("&a:b,", 4000) + "]\n"))
	f.Add([]byte("1: 2\n? [a]\n: b\n--- \n"))
	file := filepath.Join(f.TempDir(), "config.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c := &command{}
		var out, errs bytes.Buffer
		code := ExitOK
		cost.Bounded(t, len(data), yamlfile.Overhead, func() { code = Main(c.cobra(), []string{"--config", file}, &out, &errs) })
		if c.ran != (code == ExitOK) || c.ran && (c.name == "" || errs.Len() > 0) {
			t.Fatalf("ran %v with name %q, exit %d: %s", c.ran, c.name, code, errs.String())
		}
		if !c.ran && (code != ExitUsage || !strings.Contains(errs.String(), "--help")) {
			t.Fatalf("exit %d without a hint: %q", code, errs.String())
		}
	})
}
