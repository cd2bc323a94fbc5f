package source

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/apiserver/export"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// folder is what is known of a directory of manifests.
type folder struct {
	dir       string
	keep      keep
	wants     Wants
	reads     *Reads // nil before the first scan
	kept      string // why good states cannot be kept, "" if they can
	lost      string // why the directory cannot be read, "" if it can
	files     map[string]*file
	delivered map[key]metav1.Object
	reported  []Problem
}

// file is one manifest: the objects of its last good state, and what is wrong
// with the content it has now.
type file struct {
	sum     [sha256.Size]byte
	objects map[key]metav1.Object
	problem string
}

// scan reads the directory and decodes the files whose content changed.
func (f *folder) scan() error {
	names, err := manifestNames(f.dir)
	if err != nil {
		return err
	}
	f.lost = ""
	if f.delivered == nil {
		f.keep.prune(names)
	}
	for name := range f.files {
		if !slices.Contains(names, name) {
			delete(f.files, name)
			f.keep.forget(name)
		}
	}
	for _, name := range names {
		f.read(name)
	}
	return nil
}

func manifestNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w; name a directory that this process may read", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && isManifest(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func isManifest(name string) bool {
	extension := filepath.Ext(name)
	return !strings.HasPrefix(name, ".") && (extension == ".yaml" || extension == ".yml" || extension == ".json")
}

func (f *folder) read(name string) {
	known := f.files[name]
	if known == nil {
		known = &file{}
		f.files[name] = known
	}
	data, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		known.problem = err.Error()
		known.sum = [sha256.Size]byte{}
		return
	}
	if sum := sha256.Sum256(data); sum != known.sum {
		known.sum = sum
		f.decode(name, known, data)
	}
}

// decode takes the content of a file. If it is not good, and no good state was
// seen since the start, that of an earlier run is taken.
func (f *folder) decode(name string, known *file, data []byte) {
	known.decode(data)
	switch {
	case known.problem == "":
		f.kept = messageOf(f.keep.save(name, data))
	case known.objects == nil:
		known.objects = f.keep.load(name)
	}
}

func messageOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (f *file) decode(data []byte) {
	if len(data) == 0 {
		f.problem = "the file is empty; remove it if its objects are to go"
		return
	}
	objects, err := decodeManifests(data)
	if err != nil {
		f.problem = err.Error()
		return
	}
	f.objects, f.problem = objects, ""
}

// batch returns what differs from what was delivered before.
func (f *folder) batch() (Batch, bool) {
	objects, problems := f.merge()
	b := Batch{Changes: difference(f.delivered, objects), Problems: problems, Reads: f.reads, Synced: true}
	news := len(b.Changes) > 0 || !slices.Equal(problems, f.reported)
	f.delivered, f.reported = objects, problems
	return b, news
}

// merge joins the files in the order of their names. Of an object that is in
// two files the first is taken, and the second file reported.
func (f *folder) merge() (map[key]metav1.Object, []Problem) {
	objects, owners, problems := map[key]metav1.Object{}, map[key]string{}, map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		here := f.files[name]
		for _, k := range slices.SortedFunc(maps.Keys(here.objects), compareKeys) {
			if owner, taken := owners[k]; taken {
				problems[name] = join(problems[name], fmt.Sprintf("%s is in %s already and is taken from there; remove one", k, owner))
				continue
			}
			objects[k], owners[k] = here.objects[k], name
		}
		problems[name] = join(problems[name], here.problem)
	}
	problems[f.dir] = join(join(f.lost, f.kept), f.choose(objects))
	maps.DeleteFunc(problems, func(_, message string) bool { return message == "" })
	addNamespaces(objects)
	return objects, sortedProblems(problems)
}

// choose decides at the first scan which kinds are read, and drops the objects
// of others. It returns what is wrong with that.
func (f *folder) choose(objects map[key]metav1.Object) (problem string) {
	h := found(objects)
	if f.reads == nil {
		reads := f.wants.choose(h)
		f.reads = &reads
	}
	maps.DeleteFunc(objects, func(k key, _ metav1.Object) bool { return !f.reads.takes(k.kind) })
	if now := f.wants.choose(h); now.Cilium && !f.reads.Cilium || now.ServiceExports != "" && f.reads.ServiceExports == "" {
		return "has objects of Cilium's or ServiceExports that it did not have at the start, which are not read; restart to read them"
	}
	return ""
}

// found says which kinds there are. In a directory one object is enough: there
// are no definitions of kinds to go by.
func found(objects map[key]metav1.Object) has {
	kinds := map[string]bool{}
	for k := range objects {
		kinds[k.kind] = true
	}
	h := has{ciliumSlices: kinds["CiliumEndpointSlice"]}
	cilium := kinds["CiliumNode"] || kinds["CiliumIdentity"] || kinds["CiliumEndpoint"] || h.ciliumSlices
	h.ciliumNodes, h.ciliumIdentities = cilium, cilium
	h.ciliumEndpoints = cilium && (kinds["CiliumEndpoint"] || !h.ciliumSlices)
	if kinds["ServiceExport"] {
		h.serviceExports = exportVersions()[0]
	}
	return h
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// addNamespaces makes the namespaces that are used exist.
func addNamespaces(objects map[key]metav1.Object) {
	for _, o := range slices.Collect(maps.Values(objects)) {
		ns := key{kind: "Namespace", name: podNamespace(o)}
		if _, exists := objects[ns]; !exists && ns.name != "" {
			objects[ns] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.name}}
		}
	}
}

func difference(old, now map[key]metav1.Object) []export.Change {
	var changes []export.Change
	for _, k := range slices.SortedFunc(maps.Keys(old), compareKeys) {
		if _, still := now[k]; !still {
			changes = append(changes, export.Change{Deleted: true, Object: old[k]})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(now), compareKeys) {
		if o := old[k]; o == nil || o != now[k] && !reflect.DeepEqual(o, now[k]) {
			changes = append(changes, export.Change{Object: now[k]})
		}
	}
	return changes
}
