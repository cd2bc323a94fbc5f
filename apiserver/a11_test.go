package apiserver

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/klauspost/compress/zstd"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestA11_EachViewIsTheGoldenList publishes a cluster that holds more than it
// shares, reads everything that each kind of reader can get, keys and values,
// and compares that with a list that was read by a person: what is not meant for
// a reader does not reach him.
func TestA11_EachViewIsTheGoldenList(t *testing.T) {
	w := newWorld(t)
	w.config.Peers = t.TempDir()
	manifests, err := os.ReadFile(filepath.Join("testdata", "views.yaml"))
	w.must(err)
	w.write("views.yaml", string(manifests))
	readers := []struct{ name, sees string }{
		{"everything", "sees: all\n"},
		{"namespace", "sees: {namespaces: [shop]}\n"},
		{"service", "sees: {services: [bank/desk], nodes: all}\n"},
		{"network", "sees: {nodes: all, identities: all, addresses: all}\n"},
	}
	files := map[string]certs.Files{}
	for _, r := range readers {
		files[r.name] = w.peer(r.name, r.sees)
	}
	files["own-agent"] = w.issue(certs.IssueRequest{Kind: certs.Local, Cluster: "east"})
	w.start()
	own := w.dial(files["own-agent"])
	w.eventually("there is a marker", func() bool {
		r, err := own.Range(t.Context(), schema.MarkerKey("east"), "", 1, 0)
		return err == nil && len(r.KVs) == 1
	})
	var got strings.Builder
	for _, r := range append(readers, struct{ name, sees string }{"own-agent", ""}) {
		fmt.Fprintf(&got, "-- %s --\n%s", r.name, w.readable(w.dial(files[r.name])))
	}
	golden := filepath.Join("testdata", "views.golden")
	if *update {
		w.must(os.WriteFile(golden, []byte(got.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	w.must(err)
	if got.String() != string(want) {
		t.Errorf("read\n%s\nwant\n%s", got.String(), want)
	}
	for _, secret := range []string{"hush", "internal", "unseen", "private", "last-applied"} {
		if strings.Contains(strings.ReplaceAll(got.String(), "InternalIP", ""), secret) {
			t.Errorf("%q is published", secret)
		}
	}
}

// peer makes a peer with a CA of its own and returns its certificate.
func (w *world) peer(name, sees string) certs.Files {
	w.Helper()
	theirs := filepath.Join(w.TempDir(), name)
	w.must(certs.InitCA(theirs, certs.CAOptions{Name: name}))
	f, err := certs.Issue(theirs, certs.IssueRequest{Kind: certs.Remote, Cluster: name})
	w.must(err)
	text := fmt.Sprintf("ca-file: %s\nidentity:\n  common-name: remote-%s\n%s", f.CA, name, sees)
	w.must(os.WriteFile(filepath.Join(w.config.Peers, name+".yaml"), []byte(text), 0o600))
	return f
}

// readable lists all that a reader can get of the whole key space, piece by
// piece, and which pieces he is refused.
func (w *world) readable(conn *kvstore.Conn) string {
	var out strings.Builder
	for _, prefix := range []string{
		"cilium/.heartbeat", "cilium/cache/", schema.ClusterConfigKey("east"), schema.ClusterConfigKey("west"), "cilium/state/", "cilium/synced/east/",
		"cilium/synced/west/", "cilium/", "clustermesh/markers/", "clustermesh/markers/east/", "clustermesh/", "registry/",
	} {
		r, err := conn.Range(w.Context(), prefix, schema.PrefixEnd(prefix), 0, 0)
		if prefix == schema.ClusterConfigKey("east") || prefix == schema.ClusterConfigKey("west") {
			r, err = conn.Range(w.Context(), prefix, "", 0, 0)
		}
		if err != nil {
			fmt.Fprintf(&out, "%s: refused\n", prefix)
			continue
		}
		for _, kv := range r.KVs {
			fmt.Fprintf(&out, "%s %s\n", kv.Key, valueOf(kv))
		}
	}
	return out.String()
}

// valueOf hides what is another in each run, and shows what is compressed.
func valueOf(kv kvstore.KV) string {
	switch {
	case kv.Key == schema.HeartbeatKey || strings.HasPrefix(kv.Key, "cilium/synced/") || strings.HasPrefix(kv.Key, "clustermesh/synced/"):
		return "(a time)"
	case schema.IsMarkerKey(kv.Key):
		return "(a marker)"
	case strings.HasPrefix(kv.Key, "cilium/state/endpointslices/"):
		d, err := zstd.NewReader(nil)
		if err != nil {
			return err.Error()
		}
		defer d.Close()
		plain, err := d.DecodeAll(kv.Value, nil)
		return fmt.Sprintf("(zstd) %q %v", plain, err)
	case utf8.Valid(kv.Value):
		return string(kv.Value)
	}
	return fmt.Sprintf("%q", kv.Value)
}
