package check

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const (
	root      = "../.."
	chartDir  = "../helm/clustermesh"
	values    = "../testdata/values"
	golden    = "../testdata/golden"
	namespace = "clustermesh"
)

var update = flag.Bool("update", false, "write the golden files and the kustomize base")

// must ends the test on an error of the test's own machinery.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

// valuesOf reads a file of values.
func valuesOf(t *testing.T, path string) map[string]any {
	t.Helper()
	var v map[string]any
	must(t, yaml.UnmarshalStrict([]byte(readFile(t, path)), &v))
	return v
}

// render renders the chart as `helm install clustermesh -n clustermesh` does and
// returns the templates' texts by the files' names.
func render(v map[string]any) (map[string]string, error) {
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		return nil, err
	}
	release := common.ReleaseOptions{Name: "clustermesh", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, v, release, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	texts, err := engine.Render(chart, all)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for path, text := range texts {
		if text = strings.TrimSpace(text); text != "" {
			out[filepath.Base(path)] = text + "\n"
		}
	}
	return out, nil
}

// mustRender renders and leaves the notes out.
func mustRender(t *testing.T, v map[string]any) map[string]string {
	t.Helper()
	texts, err := render(v)
	must(t, err)
	delete(texts, "NOTES.txt")
	return texts
}

// join is a rendering as one text.
func join(texts map[string]string) string {
	var b strings.Builder
	for _, file := range slices.Sorted(maps.Keys(texts)) {
		b.WriteString("---\n# Source: clustermesh/templates/" + file + "\n" + texts[file])
	}
	return b.String()
}

// documents splits a text of YAML documents and drops those that hold nothing.
func documents(text string) []string {
	var out []string
	for d := range strings.SplitSeq("\n"+text, "\n---\n") {
		var content any
		if yaml.Unmarshal([]byte(d), &content) == nil && content == nil {
			continue
		}
		out = append(out, d+"\n") // which the separator began with
	}
	return out
}

// decode decodes documents strictly: with Kubernetes' types, or those of others.
func decode(t *testing.T, text string) []runtime.Object {
	t.Helper()
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []runtime.Object
	for _, d := range documents(text) {
		if foreign, err := decodeForeign([]byte(d)); foreign {
			if err != nil {
				t.Errorf("%v in\n%s", err, d)
			}
			continue
		}
		object, _, err := strict.Decode([]byte(d), nil, nil)
		if err != nil {
			t.Errorf("%v in\n%s", err, d)
			continue
		}
		out = append(out, object)
	}
	return out
}

// objects renders a file of values and decodes everything.
func objects(t *testing.T, name string) []runtime.Object {
	t.Helper()
	return decode(t, join(mustRender(t, valuesOf(t, filepath.Join(values, name+".yaml")))))
}

// only returns the one object of a type and name.
func only[T runtime.Object](t *testing.T, all []runtime.Object, name string) T {
	t.Helper()
	var found []T
	for _, o := range all {
		if typed, ok := o.(T); ok && nameOf(t, o) == name {
			found = append(found, typed)
		}
	}
	if len(found) != 1 {
		var none T
		t.Fatalf("%d objects %T %q, want 1", len(found), none, name)
	}
	return found[0]
}

// compare compares with a file, or writes it.
func compare(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(want, []byte(text)) {
		t.Errorf("%s is not what is rendered; look at the difference after `make deploy-generate`", path)
	}
}
