package source

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/apiserver/identity"
	"github.com/clustermesh/clustermesh/kvstore/cost"
)

// yamlFactor is what a manifest may take per byte beyond cost.Factor: it is read
// as YAML, made JSON, and read again, and the smallest object of Kubernetes has
// over a kilobyte.
const yamlFactor = 400

// kindTables is what the JSON decoder keeps of the kinds' types.
const kindTables = 1 << 20

// FuzzManifest reads what somebody put into the directory, and exports what is
// accepted: the exporter relies on what the source lets through.
func FuzzManifest(f *testing.F) {
	for _, name := range exampleManifests(f) {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("kind: List\napiVersion: v1\nitems: [{kind: Service, apiVersion: v1, metadata: {name: a}}, {kind: Pod, apiVersion: v1}]\n"))
	f.Add([]byte(`{"kind":"ServiceList","apiVersion":"v1","items":[{"metadata":{"name":"a"},"spec":{"clusterIPs":["None","fd00::1"]}}]}` + "\n---\n# nothing\n"))
	f.Add([]byte("apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata: {name: n}\nspec: {addresses: [{ip: 10.0.0.1, type: InternalIP}]}\n"))
	f.Add([]byte("a: &a [x,x]\nb: &b [*a,*a,*a]\nkind: *b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		here := &file{}
		cost.Bounded(t, len(data), kindTables+yamlFactor*len(data), func() { here.decode(data) })
		if here.problem != "" && here.objects != nil {
			t.Fatalf("objects of a bad file: %s", here.problem)
		}
		exportAll(t, here)
	})
}

// exampleManifests are the repository's own.
func exampleManifests(f *testing.F) []string {
	names, err := filepath.Glob("../../deploy/examples/*/*.yaml")
	if err != nil || len(names) == 0 {
		f.Fatalf("no examples (%v)", err)
	}
	return names
}

// exportAll delivers one file as a folder does, and takes it away again: nothing
// of it may be left.
func exportAll(t *testing.T, here *file) {
	t.Helper()
	dir := &folder{dir: "d", files: map[string]*file{"a.yaml": here}}
	first, _ := dir.batch()
	e := export.New(export.Config{Cluster: "east", ClusterID: 7, MaxClusters: 255, DefaultGlobalNamespace: true,
		ServiceExports: true, CiliumIdentities: first.Reads.Cilium}, identity.New(identity.Config{First: 458753, Last: 524287}))
	before := e.Apply(nil)
	for _, r := range e.Apply(Trim(first.Changes)) {
		if strings.ContainsRune(r.Key, 0) {
			t.Fatalf("record %q", r.Key)
		}
	}
	delete(dir.files, "a.yaml")
	last, _ := dir.batch()
	e.Apply(Trim(last.Changes))
	if left := e.All(); len(left) > len(before) {
		t.Fatalf("%d records are left without an object: %v", len(left), left[0].Key)
	}
}
