package source

import (
	"fmt"

	"github.com/clustermesh/clustermesh/apiserver/export"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// newCustom returns an empty object of one of the kinds that have no Go type in
// Kubernetes' own modules, and the versions in which they are understood; nil
// for other kinds.
func newCustom(kind string) (object metav1.Object, apiVersions []string) {
	switch kind {
	case "ServiceExport":
		var versions []string
		for _, v := range exportVersions() {
			versions = append(versions, exportGroup+"/"+v)
		}
		return &export.ServiceExport{}, versions
	case "CiliumNode":
		return &export.CiliumNode{}, []string{ciliumGroup + "/v2"}
	case "CiliumIdentity":
		return &export.CiliumIdentity{}, []string{ciliumGroup + "/v2"}
	case "CiliumEndpoint":
		return &export.CiliumEndpoint{}, []string{ciliumGroup + "/v2"}
	case "CiliumEndpointSlice":
		return &export.CiliumEndpointSlice{}, []string{ciliumGroup + "/v2alpha1"}
	}
	return nil, nil
}

// unreadable stands for an object whose members are not of the types that its
// kind has. What it said before stays.
type unreadable struct {
	metav1.ObjectMeta
	kind   string
	reason string
}

// decodeCustom turns an object as it came from the API server into the type
// that export reads, or into an unreadable.
func decodeCustom(u *unstructured.Unstructured) metav1.Object {
	object, _ := newCustom(u.GetKind())
	meta := metav1.ObjectMeta{Name: u.GetName(), Namespace: u.GetNamespace(), ResourceVersion: u.GetResourceVersion()}
	if object == nil {
		return &unreadable{meta, u.GetKind(), "is of a kind that is not known"}
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, object); err != nil {
		return &unreadable{meta, u.GetKind(), fmt.Sprintf("does not decode: %v; correct it, what it said before stays", err)}
	}
	trimCustom(object)
	return object
}

// trimCustom drops the metadata that export does not read, which for endpoints
// is most of an object.
func trimCustom(object metav1.Object) {
	object.SetManagedFields(nil)
	object.SetOwnerReferences(nil)
	if _, node := object.(*export.CiliumNode); !node {
		object.SetLabels(nil)
		object.SetAnnotations(nil)
	}
}
