// Package source says which Kubernetes objects a cluster has, and how they
// change: from a Kubernetes API server ([Kubernetes]), or from a directory of
// manifests ([Manifests]) for a cluster that has none, for tests and for the
// demo. Both mean the same: what arrives at the sink leads export to the same
// records.
//
// An account for an API server may only read. It needs list and watch, in all
// namespaces, on
//
//	core                    namespaces, services; nodes, pods (identities of our own)
//	discovery.k8s.io        endpointslices
//	cilium.io               ciliumnodes, ciliumidentities and ciliumendpoints or
//	                        ciliumendpointslices (Cilium's identities)
//	multicluster.x-k8s.io   serviceexports (if they are exported)
//
// and the discovery of APIs, which the role system:discovery gives everybody.
package source

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/clustermesh/clustermesh/apiserver/export"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Batch is what a source has to say since the batch before.
type Batch struct {
	// Changes are changes of objects, at most one of each object. The objects
	// are the receiver's to keep and nobody's to write.
	Changes []export.Change
	// Problems is everything that is wrong with the source now, sorted; it
	// replaces what an earlier batch said.
	Problems []Problem
	// Reads says which kinds the source reads; nil until it knows, at the latest
	// when Synced is true. It never changes.
	Reads *Reads
	// Synced says that all objects that existed at the start have been
	// delivered. Once true it stays true.
	Synced bool

	waiting []chan<- struct{} // closed when the sink has taken the batch
}

// Problem is something that keeps a source from knowing its objects.
type Problem struct {
	Origin  string // the resource or file, such as "services" or "web.yaml"
	Message string
}

func (p Problem) String() string { return p.Origin + ": " + p.Message }

// Sink takes batches, one at a time. Until it returns the source collects: of
// several changes of one object only the last is delivered.
type Sink func(Batch)

// key names an object of any kind.
type key struct{ kind, namespace, name string }

func (k key) String() string {
	if k.namespace == "" {
		return k.kind + " " + k.name
	}
	return k.kind + " " + k.namespace + "/" + k.name
}

func keyOf(object metav1.Object) key {
	return key{kindOf(object), object.GetNamespace(), object.GetName()}
}

// kindOf returns the kind of an object that export reads, "" of others.
func kindOf(object any) string {
	switch o := object.(type) {
	case *unreadable:
		return o.kind
	case *export.ServiceExport:
		return "ServiceExport"
	case *export.CiliumNode:
		return "CiliumNode"
	case *export.CiliumIdentity:
		return "CiliumIdentity"
	case *export.CiliumEndpoint:
		return "CiliumEndpoint"
	case *export.CiliumEndpointSlice:
		return "CiliumEndpointSlice"
	case *corev1.Service:
		return "Service"
	case *discoveryv1.EndpointSlice:
		return "EndpointSlice"
	case *corev1.Namespace:
		return "Namespace"
	case *corev1.Node:
		return "Node"
	case *corev1.Pod:
		return "Pod"
	}
	return ""
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
}

// sortedProblems lists problems that are kept by origin.
func sortedProblems(byOrigin map[string]string) []Problem {
	var problems []Problem
	for _, origin := range slices.Sorted(maps.Keys(byOrigin)) {
		problems = append(problems, Problem{Origin: origin, Message: byOrigin[origin]})
	}
	return problems
}

func wrongType(object any) error {
	return fmt.Errorf("take object from the API: type %T is not expected", object)
}
