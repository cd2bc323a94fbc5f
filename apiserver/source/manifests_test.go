package source_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/source"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const patience = 20 * time.Second

// listener is a sink that keeps what exists, by kind and name, with a label's
// value, and the present problems.
type listener struct {
	t       *testing.T
	batches chan source.Batch
	objects map[string]string
	last    source.Batch
}

// listen runs a source for the length of the test.
func listen(t *testing.T, run func(context.Context, source.Sink) error) *listener {
	l := &listener{t: t, batches: make(chan source.Batch), objects: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, func(b source.Batch) {
			select {
			case l.batches <- b:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("source ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("source did not end")
		}
	})
	return l
}

// until takes batches until what exists is as wanted.
func (l *listener) until(what string, ok func() bool) {
	l.t.Helper()
	deadline := time.After(patience)
	for !ok() {
		select {
		case b := <-l.batches:
			l.take(b)
		case <-deadline:
			l.t.Fatalf("never %s; have %v, problems %v, synced %v", what, l.objects, l.last.Problems, l.last.Synced)
		}
	}
}

func (l *listener) take(b source.Batch) {
	l.last = b
	for _, c := range b.Changes {
		o := c.Object.(metav1.Object)
		name := strings.TrimPrefix(fmt.Sprintf("%T", o), "*v1.") + " " + strings.TrimPrefix(o.GetNamespace()+"/"+o.GetName(), "/")
		if c.Deleted {
			delete(l.objects, name)
			continue
		}
		l.objects[name] = o.GetLabels()["v"]
	}
}

func (l *listener) untilHas(want map[string]string) {
	l.t.Helper()
	l.until(fmt.Sprintf("had %v", want), func() bool {
		for name, v := range want {
			if got, ok := l.objects[name]; !ok || got != v {
				return false
			}
		}
		return l.last.Synced
	})
}

func (l *listener) untilProblem(parts ...string) {
	l.t.Helper()
	l.until(fmt.Sprintf("had a problem with %q", parts), func() bool {
		return slices.ContainsFunc(l.last.Problems, func(p source.Problem) bool {
			return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(p.String(), part) })
		})
	})
}

func service(name, v string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop, labels: {v: %q}}\nspec: {ports: [{port: 80}]}\n", name, v)
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	temporary := filepath.Join(dir, "."+name)
	if err := os.WriteFile(temporary, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func listenDir(t *testing.T, dir string) *listener {
	return listen(t, source.NewManifests(dir, "", source.Wants{}).Run)
}

func TestManifestsFollowFiles(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", service("web", "1")+"---\n# nothing here\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n")
	put(t, dir, "list.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}]}`)
	put(t, dir, "typed.yml", "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: p1}\n")
	put(t, dir, "README.md", "not a manifest: {")
	l := listenDir(t, dir)
	l.untilHas(map[string]string{"Service shop/web": "1", "Namespace shop": "", "Node n1": "", "Pod default/p1": "", "Namespace default": ""})
	if len(l.objects) != 5 || len(l.last.Problems) != 0 {
		t.Fatalf("have %v, problems %v", l.objects, l.last.Problems)
	}
	put(t, dir, "a.yaml", service("web", "2"))
	l.untilHas(map[string]string{"Service shop/web": "2"})
	if err := os.WriteFile(filepath.Join(dir, "b.yaml"), []byte(service("db", "1")), 0o644); err != nil {
		t.Fatal(err)
	}
	l.untilHas(map[string]string{"Service shop/db": "1"})
	for _, name := range []string{"a.yaml", "b.yaml"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	l.until("lost the services and their namespace", func() bool { return len(l.objects) == 3 })
}

func TestManifestsKeepLastGoodState(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", service("web", "1"))
	l := listenDir(t, dir)
	l.untilHas(map[string]string{"Service shop/web": "1"})
	put(t, dir, "a.yaml", service("db", "1")+"---\n"+strings.Replace(service("web", "2"), "port: 80", "prot: 80", 1))
	l.untilProblem("a.yaml", "document 2", "shop/web", `"spec.ports[0].prot"`)
	put(t, dir, "b.yaml", service("other", "1"))
	l.untilHas(map[string]string{"Service shop/web": "1", "Service shop/other": "1"})
	if _, ok := l.objects["Service shop/db"]; ok {
		t.Error("half of a bad file was taken")
	}
	put(t, dir, "a.yaml", service("web", "3"))
	l.untilHas(map[string]string{"Service shop/web": "3"})
	if len(l.last.Problems) != 0 {
		t.Errorf("problems stay: %v", l.last.Problems)
	}
	if err := os.Truncate(filepath.Join(dir, "a.yaml"), 0); err != nil {
		t.Fatal(err)
	}
	l.untilProblem("a.yaml", "empty")
	l.untilHas(map[string]string{"Service shop/web": "3"})
}

func TestManifestsNameWhatIsWrong(t *testing.T) {
	slice := "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\n"
	for name, c := range map[string]struct {
		content string
		parts   []string
	}{
		"type":         {strings.Replace(service("web", "1"), "port: 80", "port: http", 1), []string{"document 1", "ports.port"}},
		"yaml":         {"kind: [", []string{"document 1", "yaml"}},
		"twice":        {service("web", "1") + "---\n" + service("web", "2"), []string{"document 2", "shop/web", "twice"}},
		"member twice": {"apiVersion: v1\nkind: Pod\nkind: Pod\n", []string{"document 1", "kind"}},
		"no name":      {"apiVersion: v1\nkind: Pod\n", []string{"document 1", "metadata.name"}},
		"bad name":     {"apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}\n", []string{"metadata.name", `"a/b"`}},
		"version":      {"kind: Pod\nmetadata: {name: a}\n", []string{"apiVersion"}},
		"old slice":    {strings.Replace(slice, "/v1", "/v1beta1", 1), []string{"discovery.k8s.io/v1beta1", "only discovery.k8s.io/v1"}},
		"no kind":      {"metadata: {name: a}\n", []string{"kind is missing"}},
		"scalar":       {"hello", []string{"no Kubernetes object"}},
		"address":      {slice + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.300]}]\n", []string{"endpoints[1].addresses[0]", "10.0.0.300"}},
		"family":       {slice + "addressType: IPv6\nendpoints: [{addresses: [10.0.0.1]}]\n", []string{"endpoints[0].addresses[0]", "IPv6"}},
		"port":         {slice + "addressType: IPv4\nports: [{port: 70000}]\n", []string{"ports[0].port", "70000"}},
		"in a list":    {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: ok}}\n- {apiVersion: v1, kind: Pod, metadata: {name: ok}, spec: {x: 1}}\n", []string{"items[1]", `"spec.x"`}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, "bad.yaml", c.content)
			put(t, dir, "good.yaml", service("good", "1"))
			l := listenDir(t, dir)
			l.untilProblem(append(c.parts, "bad.yaml")...)
			l.untilHas(map[string]string{"Service shop/good": "1"})
		})
	}
}

func TestManifestsOfTwoFilesWithOneObject(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "b.yaml", service("web", "b"))
	l := listenDir(t, dir)
	l.untilHas(map[string]string{"Service shop/web": "b"})
	put(t, dir, "a.yaml", service("web", "a"))
	l.untilProblem("b.yaml", "shop/web", "a.yaml")
	l.untilHas(map[string]string{"Service shop/web": "a"})
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	l.untilHas(map[string]string{"Service shop/web": "b"})
	if len(l.last.Problems) != 0 {
		t.Errorf("problems stay: %v", l.last.Problems)
	}
}

// A mounted ConfigMap is a directory of links through ..data, which is
// exchanged as a whole.
func TestManifestsOfMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(v string) {
		if err := os.Mkdir(filepath.Join(dir, "..v"+v), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, "..v"+v), "web.yaml", service("web", v))
		if err := os.Symlink("..v"+v, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("1")
	if err := os.Symlink("..data/web.yaml", filepath.Join(dir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	l := listenDir(t, dir)
	l.untilHas(map[string]string{"Service shop/web": "1"})
	version("2")
	l.untilHas(map[string]string{"Service shop/web": "2"})
}

func TestManifestsSurviveTheirDirectory(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "manifests")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "a.yaml", service("web", "1"))
	l := listenDir(t, dir)
	l.untilHas(map[string]string{"Service shop/web": "1"})
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	l.untilProblem(dir, "no such file")
	l.untilHas(map[string]string{"Service shop/web": "1"})
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "a.yaml", service("web", "2"))
	l.untilHas(map[string]string{"Service shop/web": "2"})
	put(t, dir, "a.yaml", service("web", "3"))
	l.untilHas(map[string]string{"Service shop/web": "3"})
}

func TestManifestsWithoutDirectory(t *testing.T) {
	err := source.NewManifests(filepath.Join(t.TempDir(), "none"), "", source.Wants{}).Run(t.Context(), func(source.Batch) {})
	if err == nil || !strings.Contains(err.Error(), "name a directory that exists") {
		t.Fatalf("error %v", err)
	}
}

// A file that is broken while nobody looks says what it last said, also after
// a restart; and one that is removed says nothing.
func TestManifestsKeepLastGoodStateOverRestart(t *testing.T) {
	dir, keep := t.TempDir(), filepath.Join(t.TempDir(), "keep")
	put(t, dir, "a.yaml", service("web", "1"))
	put(t, dir, "gone.yaml", service("gone", "1"))
	run := func(t *testing.T) *listener { return listen(t, source.NewManifests(dir, keep, source.Wants{}).Run) }
	t.Run("good", func(t *testing.T) {
		l := run(t)
		l.untilHas(map[string]string{"Service shop/web": "1", "Service shop/gone": "1"})
		if err := os.Remove(filepath.Join(dir, "gone.yaml")); err != nil {
			t.Fatal(err)
		}
		l.until("lost a service", func() bool { return len(l.objects) == 2 })
	})
	put(t, dir, "a.yaml", "kind: [")
	put(t, dir, "gone.yaml", "kind: [")
	t.Run("bad", func(t *testing.T) {
		l := run(t)
		l.untilProblem("a.yaml", "document 1")
		l.untilHas(map[string]string{"Service shop/web": "1"})
		if len(l.objects) != 2 {
			t.Errorf("have %v", l.objects)
		}
	})
}

// TestCatchUpReadsTheDirectory: what was written before the call has been taken
// when it returns, however often, and a directory that is gone is an error.
func TestCatchUpReadsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	m := source.NewManifests(dir, "", source.Wants{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	objects := map[string]string{}
	go func() {
		ended <- m.Run(ctx, func(b source.Batch) {
			for _, c := range b.Changes {
				o := c.Object.(metav1.Object)
				objects[o.GetName()] = o.GetLabels()["v"]
			}
		})
	}()
	for i := range 50 {
		text := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {v: \"%d\"}}\n", i)
		if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := m.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := objects["web"]; got != fmt.Sprint(i) {
			t.Fatalf("round %d: caught up with %q", i, got)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := m.CatchUp(t.Context()); err == nil || !strings.Contains(err.Error(), "manifests") {
		t.Errorf("without its directory: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	over, stop := context.WithCancel(t.Context())
	stop()
	if err := m.CatchUp(over); err == nil {
		t.Error("a source that has ended catches up")
	}
}
