package interop

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The world is small, so that changes meet each other.
const (
	namespaces = 3
	services   = 10 // names that services may have
	nodes      = 4
	pods       = 14
)

// cluster is what a cluster's API holds, and the chance that changes it. The
// objects themselves are never changed, only replaced.
type cluster struct {
	name string
	id   uint32
	net  int // second byte of its addresses
	rnd  *rand.Rand

	namespaces map[string]*corev1.Namespace // all maps are by file name
	services   map[string]*corev1.Service
	slices     map[string]*discoveryv1.EndpointSlice
	nodes      map[string]*corev1.Node
	pods       map[string]*corev1.Pod
}

// edit is one file that changed; without an object it is gone.
type edit struct {
	file   string
	object any
}

// newCluster fills a cluster. Clusters of different ids share the names of
// their services and no address.
func newCluster(name string, id uint32, seed uint64) *cluster {
	c := &cluster{
		name: name, id: id, net: int(id), rnd: rand.New(rand.NewPCG(seed, uint64(id))),
		namespaces: map[string]*corev1.Namespace{}, services: map[string]*corev1.Service{},
		slices: map[string]*discoveryv1.EndpointSlice{}, nodes: map[string]*corev1.Node{}, pods: map[string]*corev1.Pod{},
	}
	for i := range namespaces {
		put(c.namespaces, c.namespace(i, true))
	}
	for i := range services {
		put(c.services, c.service(i))
		put(c.slices, c.slice(i, 0))
		put(c.slices, c.slice(i, 2))
	}
	for i := range nodes {
		put(c.nodes, c.node(i))
	}
	for i := range pods {
		put(c.pods, c.pod(i))
	}
	return c
}

// write writes all manifests.
func (c *cluster) write(t *testing.T, dir string) {
	t.Helper()
	for _, e := range c.all() {
		e.apply(t, dir)
	}
}

func (c *cluster) all() []edit {
	var all []edit
	add := func(file string, object any) { all = append(all, edit{file, object}) }
	for file, o := range c.namespaces {
		add(file, o)
	}
	for file, o := range c.services {
		add(file, o)
	}
	for file, o := range c.slices {
		add(file, o)
	}
	for file, o := range c.nodes {
		add(file, o)
	}
	for file, o := range c.pods {
		add(file, o)
	}
	return all
}

// apply writes or removes the file.
func (e edit) apply(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, e.file)
	if e.object == nil {
		must(t, os.Remove(path))
		return
	}
	data, err := json.Marshal(e.object)
	must(t, err)
	replace(t, path, string(data))
}

// object is what all kinds have in common.
type object interface {
	metav1.Object
	runtime.Object
}

func fileOf(o object) string {
	kind := o.GetObjectKind().GroupVersionKind().Kind
	return strings.ToLower(fmt.Sprintf("%s.%s.%s.json", kind, o.GetNamespace(), o.GetName()))
}

func put[T object](all map[string]T, o T) edit {
	all[fileOf(o)] = o
	return edit{fileOf(o), o}
}

// toggle removes what is there and adds what is not.
func toggle[T object](all map[string]T, o T) edit {
	if _, there := all[fileOf(o)]; there {
		delete(all, fileOf(o))
		return edit{file: fileOf(o)}
	}
	return put(all, o)
}

// change changes one object at random.
func (c *cluster) change() edit {
	switch n := c.rnd.IntN(100); {
	case n < 40:
		return c.changeEndpoints()
	case n < 52:
		return toggle(c.slices, c.slice(c.rnd.IntN(services), c.rnd.IntN(3)))
	case n < 70:
		return put(c.services, c.service(c.rnd.IntN(services)))
	case n < 73:
		return toggle(c.services, c.service(c.rnd.IntN(services)))
	case n < 76:
		return put(c.namespaces, c.namespace(c.rnd.IntN(namespaces), c.rnd.IntN(8) > 0))
	case n < 79:
		return put(c.nodes, c.node(c.rnd.IntN(nodes)))
	case n < 82:
		return toggle(c.nodes, c.node(c.rnd.IntN(nodes)))
	case n < 92:
		return put(c.pods, c.pod(c.rnd.IntN(pods)))
	default:
		return toggle(c.pods, c.pod(c.rnd.IntN(pods)))
	}
}

// changeEndpoints replaces a slice that exists, as a rollout does.
func (c *cluster) changeEndpoints() edit {
	for range 20 {
		s := c.slice(c.rnd.IntN(services), c.rnd.IntN(3))
		if _, there := c.slices[fileOf(s)]; there {
			return put(c.slices, s)
		}
	}
	return toggle(c.slices, c.slice(0, 0))
}
