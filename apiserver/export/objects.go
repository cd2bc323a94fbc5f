package export

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// The types below hold what is read of objects whose own Go types would bring
// their projects along: the Multi-Cluster Services API's and Cilium's. Members
// are named as in their custom resource definitions; others are left out.

// ServiceExport is a multicluster.x-k8s.io ServiceExport, which reads the same
// in v1beta1 and v1alpha1.
type ServiceExport struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ServiceExportSpec `json:"spec"`
}

// ServiceExportSpec says what of a service's metadata travels with it.
type ServiceExportSpec struct {
	ExportedLabels      map[string]string `json:"exportedLabels,omitempty"`
	ExportedAnnotations map[string]string `json:"exportedAnnotations,omitempty"`
}

// CiliumNode is a cilium.io/v2 CiliumNode.
type CiliumNode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              CiliumNodeSpec `json:"spec"`
}

// CiliumNodeSpec says where a node and its pods are.
type CiliumNodeSpec struct {
	BootID     string              `json:"bootid,omitempty"`
	Addresses  []CiliumNodeAddress `json:"addresses,omitempty"`
	Health     CiliumAddressPair   `json:"health"`
	Ingress    CiliumAddressPair   `json:"ingress"`
	Encryption CiliumEncryption    `json:"encryption"`
	IPAM       CiliumIPAM          `json:"ipam"`
}

// CiliumNodeAddress is one address of a node.
type CiliumNodeAddress struct {
	Type string `json:"type,omitempty"`
	IP   string `json:"ip,omitempty"`
}

// CiliumAddressPair is an address of each family, "" for none.
type CiliumAddressPair struct {
	IPv4 string `json:"ipv4,omitempty"`
	IPv6 string `json:"ipv6,omitempty"`
}

// CiliumEncryption is the index of an encryption key, 0 without encryption.
type CiliumEncryption struct {
	Key int64 `json:"key,omitempty"`
}

// CiliumIPAM lists the prefixes of a node's pods, in one of two places.
type CiliumIPAM struct {
	PodCIDRs []string    `json:"podCIDRs,omitempty"`
	Pools    CiliumPools `json:"pools"`
}

// CiliumPools lists prefixes by pool.
type CiliumPools struct {
	Allocated []CiliumPool `json:"allocated,omitempty"`
}

// CiliumPool is what a node has of one pool.
type CiliumPool struct {
	CIDRs []string `json:"cidrs,omitempty"`
}

// CiliumIdentity is a cilium.io/v2 CiliumIdentity. Its name is its number.
type CiliumIdentity struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	SecurityLabels    map[string]string `json:"security-labels,omitempty"`
}

// CiliumEndpoint is a cilium.io/v2 CiliumEndpoint, named like its pod.
type CiliumEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Status            CiliumEndpointStatus `json:"status"`
}

// CiliumEndpointStatus says which addresses and identity a pod has.
type CiliumEndpointStatus struct {
	Identity       *CiliumEndpointIdentity   `json:"identity,omitempty"`
	Networking     *CiliumEndpointNetworking `json:"networking,omitempty"`
	Encryption     CiliumEncryption          `json:"encryption"`
	NamedPorts     []CiliumNamedPort         `json:"named-ports,omitempty"`
	ServiceAccount string                    `json:"service-account,omitempty"`
}

// CiliumEndpointIdentity is the number of a pod's identity.
type CiliumEndpointIdentity struct {
	ID int64 `json:"id,omitempty"`
}

// CiliumEndpointNetworking is where a pod is: its addresses and its node's.
type CiliumEndpointNetworking struct {
	Addressing []CiliumAddressPair `json:"addressing,omitempty"`
	NodeIP     string              `json:"node,omitempty"`
}

// CiliumNamedPort is a container port that has a name.
type CiliumNamedPort struct {
	Name     string `json:"name,omitempty"`
	Port     int32  `json:"port,omitempty"`
	Protocol string `json:"protocol,omitempty"`
}

// CiliumEndpointSlice is a cilium.io/v2alpha1 CiliumEndpointSlice: endpoints of
// one namespace. The object itself is in none.
type CiliumEndpointSlice struct {
	metav1.TypeMeta    `json:",inline"`
	metav1.ObjectMeta  `json:"metadata"`
	EndpointsNamespace string               `json:"namespace,omitempty"`
	Endpoints          []CiliumCoreEndpoint `json:"endpoints,omitempty"`
}

// CiliumCoreEndpoint is what a slice says of a pod.
type CiliumCoreEndpoint struct {
	Name           string                    `json:"name,omitempty"`
	IdentityID     int64                     `json:"id,omitempty"`
	Networking     *CiliumEndpointNetworking `json:"networking,omitempty"`
	Encryption     CiliumEncryption          `json:"encryption"`
	NamedPorts     []CiliumNamedPort         `json:"named-ports,omitempty"`
	ServiceAccount string                    `json:"service-account,omitempty"`
}
