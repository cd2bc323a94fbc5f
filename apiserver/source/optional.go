package source

import (
	"github.com/clustermesh/clustermesh/apiserver/export"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Want says whether a source reads kinds that not every cluster has.
type Want uint8

// The wants. Auto is yes if the cluster has the kinds when the source starts;
// kinds that it gets later are not read before the next start.
const (
	Auto Want = iota
	Yes
	No
)

// Wants says which kinds a source reads besides Services, EndpointSlices and
// Namespaces. The zero value finds out by itself.
type Wants struct {
	// Cilium is whether Cilium's nodes, identities and endpoints are read in the
	// place of nodes and pods.
	Cilium Want
	// CiliumSlices has Cilium's endpoints read from its slices. Otherwise they
	// are where a cluster has no others: Cilium keeps the single ones up to date
	// in either case.
	CiliumSlices bool
	// ServiceExports is whether the Multi-Cluster Services API's are read.
	ServiceExports Want
}

// Reads says which kinds a source reads besides those every source reads.
type Reads struct {
	// Cilium is whether identities are Cilium's: its nodes, identities and
	// endpoints are read, not nodes and pods.
	Cilium bool
	// CiliumSlices is whether Cilium's endpoints are read from its slices.
	CiliumSlices bool
	// ServiceExports is the version of the Multi-Cluster Services API, "" if it
	// is not read.
	ServiceExports string
}

// has is what a cluster has of the kinds that not every cluster has.
type has struct {
	ciliumNodes, ciliumIdentities, ciliumEndpoints, ciliumSlices bool
	serviceExports                                               string // the version
}

// choose decides what is read.
func (w Wants) choose(h has) Reads {
	var r Reads
	complete := h.ciliumNodes && h.ciliumIdentities && (h.ciliumEndpoints || h.ciliumSlices)
	if r.Cilium = w.Cilium == Yes || w.Cilium == Auto && complete; r.Cilium {
		r.CiliumSlices = w.CiliumSlices || h.ciliumSlices && !h.ciliumEndpoints
	}
	switch {
	case w.ServiceExports == No:
	case h.serviceExports != "":
		r.ServiceExports = h.serviceExports
	case w.ServiceExports == Yes:
		r.ServiceExports = exportVersions()[0]
	}
	return r
}

// settled reports whether the decision does not depend on what a cluster has.
func (w Wants) settled() bool {
	return w.ServiceExports == No && (w.Cilium == No || w.Cilium == Yes && w.CiliumSlices)
}

// exportVersions are the versions of the Multi-Cluster Services API that are
// understood, the best first.
func exportVersions() []string { return []string{"v1beta1", "v1alpha1"} }

const (
	exportGroup = "multicluster.x-k8s.io"
	ciliumGroup = "cilium.io"
)

// takes reports whether objects of a kind are read.
func (r Reads) takes(kind string) bool {
	switch kind {
	case "Node", "Pod":
		return !r.Cilium
	case "CiliumNode", "CiliumIdentity":
		return r.Cilium
	case "CiliumEndpoint":
		return r.Cilium && !r.CiliumSlices
	case "CiliumEndpointSlice":
		return r.Cilium && r.CiliumSlices
	case "ServiceExport":
		return r.ServiceExports != ""
	}
	return true
}

// podNamespace returns the namespace that an object speaks of, which for some
// of Cilium's kinds is not the one it is in.
func podNamespace(object metav1.Object) string {
	switch o := object.(type) {
	case *export.CiliumEndpointSlice:
		return o.EndpointsNamespace
	case *export.CiliumIdentity:
		return o.SecurityLabels["k8s:io.kubernetes.pod.namespace"]
	}
	return object.GetNamespace()
}
