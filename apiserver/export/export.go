package export

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Change is one object that was added, updated or deleted. Object is a
// *corev1.Service, *discoveryv1.EndpointSlice, *corev1.Namespace or
// *ServiceExport; with identities of our own a *corev1.Node or *corev1.Pod,
// with Cilium's a *CiliumNode, *CiliumIdentity, *CiliumEndpoint or
// *CiliumEndpointSlice. Others are ignored. Of a deleted object only name and
// namespace count. The exporter keeps the object and never writes to
// it; the caller must not either.
type Change struct {
	Deleted bool
	Object  any
}

// Record is one key to put, or to delete when Value is nil.
type Record struct {
	Kind  schema.Kind
	Key   string
	Value []byte
}

// Config says for whom the records are.
type Config struct {
	Cluster     string // the cluster's name
	ClusterID   uint32 // 1..MaxClusters
	MaxClusters uint32 // 255 or 511
	// DefaultGlobalNamespace says whether a namespace without the annotation
	// clustermesh.cilium.io/global takes part in the mesh.
	DefaultGlobalNamespace bool
	// EndpointSlices says in which form backends are exported: "" means as
	// services only, or it is one of schema's modes.
	EndpointSlices string
	// ServiceExports says whether exports in the sense of the Multi-Cluster
	// Services API are published.
	ServiceExports bool
	// CiliumIdentities says that identities, pod addresses and nodes are those
	// that Cilium's objects tell, and not made of pods and nodes.
	CiliumIdentities bool
}

// Validate joins everything that is wrong with the configuration.
func (c Config) Validate() error {
	return errors.Join(schema.ValidateClusterName(c.Cluster), schema.ValidateClusterID(c.ClusterID, c.MaxClusters))
}

// Identities gives label texts their numbers. Acquire returns the same number
// for the same labels until they are released, and false when none is left.
type Identities interface {
	Acquire(labels string) (number uint32, ok bool)
	Release(labels string)
}

// name is the name of an object; namespace is "" for nodes.
type name struct{ namespace, name string }

func (n name) String() string { return n.namespace + "/" + n.name }

func compareNames(a, b name) int {
	return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
}

type (
	names  map[name]struct{}
	recKey struct {
		kind schema.Kind
		key  string
	}
	digest [16]byte
)

// Exporter holds the objects and knows what is published of them. It is not
// safe for concurrent use.
type Exporter struct {
	config     Config
	identities Identities

	namespaces map[string]*corev1.Namespace
	services   map[name]*corev1.Service
	shared     names // services that are open to other clusters
	noted      names // services computed anew since TakeServices
	exports    map[name]*ServiceExport
	slices     map[name]*discoveryv1.EndpointSlice
	slicesOf   map[name]names // by service
	codec      schema.SliceCodec
	nodes      map[string]*corev1.Node
	pods       map[name]*pod
	claims     map[netip.Addr][]name // pods that say they have the address
	numbers    map[string]*numbered  // by label text
	waiting    map[string]struct{}   // label texts without a number
	cilium     ciliumState

	dirty     dirty
	published map[recKey]digest
	counts    map[schema.Kind]int
	problems  map[string][]Problem
	sorted    []Problem // all problems, nil if they have to be listed anew
	out       []Record
	full      bool // emit what has not changed too
}

// dirty is what the next settling computes anew.
type dirty struct {
	services   names
	slices     names
	pods       names
	nodes      map[string]struct{}
	addresses  map[netip.Addr]struct{}
	labels     map[string]struct{}
	identities map[string]struct{} // Cilium's, by number
	holders    map[holder]struct{}
}

func newDirty() dirty {
	return dirty{
		services: names{}, slices: names{}, pods: names{}, nodes: map[string]struct{}{},
		addresses: map[netip.Addr]struct{}{}, labels: map[string]struct{}{},
		identities: map[string]struct{}{}, holders: map[holder]struct{}{},
	}
}

// New returns an exporter that knows no object yet; config must be valid.
func New(config Config, identities Identities) *Exporter {
	return &Exporter{
		config: config, identities: identities,
		namespaces: map[string]*corev1.Namespace{}, services: map[name]*corev1.Service{}, shared: names{}, noted: names{},
		exports: map[name]*ServiceExport{}, cilium: newCiliumState(),
		slices: map[name]*discoveryv1.EndpointSlice{}, slicesOf: map[name]names{},
		nodes: map[string]*corev1.Node{}, pods: map[name]*pod{},
		claims: map[netip.Addr][]name{}, numbers: map[string]*numbered{}, waiting: map[string]struct{}{},
		dirty: newDirty(), published: map[recKey]digest{}, counts: map[schema.Kind]int{}, problems: map[string][]Problem{},
	}
}

// Apply takes changes and returns the records that differ because of them,
// sorted by kind and key. Everything a change touches is computed anew as a
// whole. Without changes it still retries what waits for a free identity.
func (e *Exporter) Apply(changes []Change) []Record {
	for _, c := range changes {
		e.observe(c)
	}
	return e.settle()
}

// All computes everything anew and returns every record that exists: what an
// empty store must be filled with.
func (e *Exporter) All() []Record {
	for n := range e.services {
		e.dirty.services[n] = struct{}{}
	}
	for n := range e.slices {
		e.touchSlice(n)
	}
	e.touchAllCilium()
	for n := range e.nodes {
		e.dirty.nodes[n] = struct{}{}
	}
	for a := range e.claims {
		e.dirty.addresses[a] = struct{}{}
	}
	for l := range e.numbers {
		e.dirty.labels[l] = struct{}{}
	}
	e.full = true
	defer func() { e.full = false }()
	return slices.DeleteFunc(e.settle(), func(r Record) bool { return r.Value == nil })
}

func (e *Exporter) observe(c Change) {
	switch o := c.Object.(type) {
	case *corev1.Namespace:
		e.observeNamespace(o, c.Deleted)
	case *corev1.Service:
		n := name{o.Namespace, o.Name}
		store(e.services, n, o, c.Deleted)
		e.dirty.services[n] = struct{}{}
	case *ServiceExport:
		n := name{o.Namespace, o.Name}
		store(e.exports, n, o, c.Deleted)
		e.dirty.services[n] = struct{}{}
	case *discoveryv1.EndpointSlice:
		e.observeSlice(o, c.Deleted)
	default:
		if e.config.CiliumIdentities {
			e.observeCilium(c)
			return
		}
		e.observeOwn(c)
	}
}

// observeOwn takes an object that counts if identities are our own.
func (e *Exporter) observeOwn(c Change) {
	switch o := c.Object.(type) {
	case *corev1.Node:
		store(e.nodes, o.Name, o, c.Deleted)
		e.dirty.nodes[o.Name] = struct{}{}
	case *corev1.Pod:
		e.observePod(o, c.Deleted)
	}
}

func store[K comparable, V any](m map[K]V, key K, value V, deleted bool) {
	if deleted {
		delete(m, key)
		return
	}
	m[key] = value
}

func (e *Exporter) observeNamespace(o *corev1.Namespace, deleted bool) {
	old := e.namespaces[o.Name]
	if !deleted && old != nil && maps.Equal(old.Labels, o.Labels) && maps.Equal(old.Annotations, o.Annotations) {
		return
	}
	store(e.namespaces, o.Name, o, deleted)
	e.touchNamespace(o.Name)
}

// touchNamespace marks what lies in a namespace. Namespaces change rarely, so
// there is no index for it.
func (e *Exporter) touchNamespace(namespace string) {
	for n := range e.services {
		if n.namespace == namespace {
			e.dirty.services[n] = struct{}{}
		}
	}
	for n := range e.pods {
		if n.namespace == namespace {
			e.dirty.pods[n] = struct{}{}
		}
	}
	e.touchCilium(namespace)
}

func (e *Exporter) observeSlice(o *discoveryv1.EndpointSlice, deleted bool) {
	n := name{o.Namespace, o.Name}
	if old := e.slices[n]; old != nil {
		e.unlinkSlice(n, serviceOf(old))
	}
	store(e.slices, n, o, deleted)
	e.touchSlice(n)
	if !deleted {
		e.linkSlice(n, serviceOf(o))
	}
}

func (e *Exporter) touchSlice(slice name) {
	if e.config.EndpointSlices != "" {
		e.dirty.slices[slice] = struct{}{}
	}
}

func (e *Exporter) unlinkSlice(slice, service name) {
	delete(e.slicesOf[service], slice)
	if len(e.slicesOf[service]) == 0 {
		delete(e.slicesOf, service)
	}
	e.dirty.services[service] = struct{}{}
}

func (e *Exporter) linkSlice(slice, service name) {
	if e.slicesOf[service] == nil {
		e.slicesOf[service] = names{}
	}
	e.slicesOf[service][slice] = struct{}{}
	e.dirty.services[service] = struct{}{}
}

func serviceOf(o *discoveryv1.EndpointSlice) name {
	return name{o.Namespace, o.Labels[discoveryv1.LabelServiceName]}
}

// settle computes what is dirty and returns the records that changed.
func (e *Exporter) settle() []Record {
	for n := range e.dirty.nodes {
		e.exportNode(n)
	}
	for n := range e.dirty.services {
		e.exportService(n)
	}
	for n := range e.dirty.slices { // after the services, which decide on them
		e.exportSlice(n)
	}
	if e.config.CiliumIdentities {
		e.exportCilium()
	} else {
		e.exportPods()
	}
	out := e.out
	e.out, e.dirty = nil, newDirty()
	slices.SortFunc(out, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
	return out
}

// set makes a record have a value, or not exist when value is nil. Of what is
// published only a digest is kept: the publisher holds the values.
func (e *Exporter) set(kind schema.Kind, key string, value []byte) {
	k := recKey{kind, key}
	old, exists := e.published[k]
	if value == nil {
		if exists {
			delete(e.published, k)
			e.counts[kind]--
			e.out = append(e.out, Record{Kind: kind, Key: key})
		}
		return
	}
	sum := sha256.Sum256(value)
	if now := digest(sum[:16]); !exists || now != old || e.full {
		if !exists {
			e.counts[kind]++
		}
		e.published[k] = now
		e.out = append(e.out, Record{Kind: kind, Key: key, Value: value})
	}
}

// Counts returns how many records of each kind are published.
func (e *Exporter) Counts() map[schema.Kind]int { return maps.Clone(e.counts) }

// String prints a record as a key and a value, or as a deletion.
func (r Record) String() string {
	if r.Value == nil {
		return "- " + r.Key
	}
	return fmt.Sprintf("%s\n%s", r.Key, r.Value)
}

// Objects returns how many objects of each kind are known, by the name of
// their resource.
func (e *Exporter) Objects() map[string]int {
	return map[string]int{
		"namespaces": len(e.namespaces), "services": len(e.services), "endpointslices": len(e.slices),
		"nodes": len(e.nodes), "pods": len(e.pods), "serviceexports": len(e.exports),
		"ciliumnodes": len(e.cilium.nodes), "ciliumidentities": len(e.cilium.identities), "ciliumendpoints": len(e.cilium.holdings),
	}
}
