package export_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/apiserver/identity"
	"github.com/clustermesh/clustermesh/kvstore/schema"
	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

// Each scenario is a file of steps, applied one after the other: apply*.yaml
// and delete*.yaml hold objects. The file want holds the records that each
// step changed, endpoint slices decoded, and the problems that are left. What
// the comment says about the configuration holds for the scenario.
func TestScenarios(t *testing.T) {
	update := flag.Lookup("update").Value.(flag.Getter).Get().(bool)
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, archive)
			if update {
				write(t, file, archive, got)
				return
			}
			if want := part(archive, "want"); got != want {
				t.Errorf("records differ; -update rewrites the file after you checked them\n--- got\n%s\n--- want\n%s", got, want)
			}
		})
	}
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "rewrite the golden files")
	flag.Parse()
	os.Exit(m.Run())
}

// configOf reads what a scenario's comment says: that namespaces are not global
// by default, and after "config:" how exports differ from plain services.
func configOf(comment string) export.Config {
	config := export.Config{Cluster: "east", ClusterID: 7, MaxClusters: 255}
	config.DefaultGlobalNamespace = !strings.Contains(comment, "namespaces are not global by default")
	_, words, _ := strings.Cut(comment, "config:")
	for word := range strings.FieldsSeq(words) {
		switch word {
		case "both":
			config.EndpointSlices = schema.ModeServicesAndEndpointSlices
		case "slices-only":
			config.EndpointSlices = schema.ModeEndpointSlicesOnly
		case "exports":
			config.ServiceExports = true
		case "cilium":
			config.CiliumIdentities = true
		case "511":
			config.ClusterID, config.MaxClusters = 500, 511
		}
	}
	return config
}

func play(t *testing.T, archive *txtar.Archive) string {
	config := configOf(string(archive.Comment))
	first, last := schema.IdentityRange(config.ClusterID, config.MaxClusters)
	e := export.New(config, identity.New(identity.Config{First: first, Last: last, Quarantine: 60}))
	var out strings.Builder
	for _, f := range archive.Files {
		if f.Name == "want" {
			continue
		}
		fmt.Fprintf(&out, "# %s\n", f.Name)
		changes := parse(t, f.Data, strings.HasPrefix(f.Name, "delete"))
		for _, r := range e.Apply(changes) {
			fmt.Fprintln(&out, render(t, config, r))
		}
	}
	for _, p := range e.Problems() {
		fmt.Fprintf(&out, "! %s: %s: %s\n", p.Object, p.Reason, p.Message)
	}
	return out.String()
}

func parse(t *testing.T, data []byte, deleted bool) []export.Change {
	t.Helper()
	var changes []export.Change
	for doc := range bytes.SplitSeq(data, []byte("---\n")) {
		var meta struct{ Kind string }
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		object := map[string]any{
			"Service": &corev1.Service{}, "EndpointSlice": &discoveryv1.EndpointSlice{},
			"Namespace": &corev1.Namespace{}, "Node": &corev1.Node{}, "Pod": &corev1.Pod{},
			"ServiceExport": &export.ServiceExport{}, "CiliumNode": &export.CiliumNode{},
			"CiliumIdentity": &export.CiliumIdentity{}, "CiliumEndpoint": &export.CiliumEndpoint{},
			"CiliumEndpointSlice": &export.CiliumEndpointSlice{},
		}[meta.Kind]
		decode := yaml.UnmarshalStrict
		if strings.HasPrefix(meta.Kind, "Cilium") { // of which only some members are read
			decode = yaml.Unmarshal
		}
		if err := decode(doc, object); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		changes = append(changes, export.Change{Deleted: deleted, Object: object})
	}
	return changes
}

func part(archive *txtar.Archive, file string) string {
	for _, f := range archive.Files {
		if f.Name == file {
			return string(f.Data)
		}
	}
	return ""
}

func write(t *testing.T, file string, archive *txtar.Archive, want string) {
	kept := archive.Files[:0]
	for _, f := range archive.Files {
		if f.Name != "want" {
			kept = append(kept, f)
		}
	}
	archive.Files = append(kept, txtar.File{Name: "want", Data: []byte(want)})
	if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}
