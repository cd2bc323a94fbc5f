package schema

import "net/netip"

// Protocol is a layer 4 protocol as it is spelled on the wire.
type Protocol string

// The protocols a service port may have.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// L4 is one port of a frontend or backend. Its JSON member names are
// capitalised, as Cilium writes them.
type L4 struct {
	Protocol Protocol
	Port     uint16
}

// PortMap maps a port name ("" for an unnamed port) to its layer 4 address.
type PortMap map[string]L4

// Zone says where a backend runs and which zones should prefer it.
type Zone struct {
	Zone     string    `json:"zone"`
	ForZones []ForZone `json:"forZones"`
}

// ForZone is one zone hint.
type ForZone struct {
	Name string `json:"name"`
}

// Service is one exported global service: the value of
// cilium/state/services/v1/<cluster>/<namespace>/<name>. Members are declared
// in the order in which Cilium encodes them. Addresses are canonical
// (netip.Addr.String) and never carry a zone.
type Service struct {
	Cluster         string                 `json:"cluster"`
	Namespace       string                 `json:"namespace"`
	Name            string                 `json:"name"`
	Frontends       map[netip.Addr]PortMap `json:"frontends"`
	Backends        map[netip.Addr]PortMap `json:"backends"`
	Hostnames       map[netip.Addr]string  `json:"hostnames,omitempty"`
	Zones           map[netip.Addr]Zone    `json:"zones,omitempty"`
	Labels          map[string]string      `json:"labels"`
	Selector        map[string]string      `json:"selector"`
	IncludeExternal bool                   `json:"includeExternal"`
	Shared          bool                   `json:"shared"`
	ClusterID       uint32                 `json:"clusterID"`
}

// LocalService is what a cluster's own agents need to know of one of its
// global services and what other clusters must not see: the value of
// clustermesh/local/services/v1/<cluster>/<namespace>/<name>. It exists for
// every global service, shared or not. The format is ours.
type LocalService struct {
	Cluster   string          `json:"cluster"`
	ClusterID uint32          `json:"clusterID"`
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Shared    bool            `json:"shared"`
	Affinity  string          `json:"affinity,omitempty"` // "local", "remote" or "" (none)
	Frontends []LocalFrontend `json:"frontends"`          // sorted by address, port, protocol
	Backends  []LocalBackend  `json:"backends"`           // sorted by address, port, protocol

	SessionAffinity        string `json:"sessionAffinity,omitempty"`        // "ClientIP" or "" (none)
	SessionAffinitySeconds uint32 `json:"sessionAffinitySeconds,omitempty"` // timeout of ClientIP
	InternalTrafficPolicy  string `json:"internalTrafficPolicy,omitempty"`  // "Local" or "" (cluster)
	TrafficDistribution    string `json:"trafficDistribution,omitempty"`    // as in the Service's spec
	Headless               bool   `json:"headless,omitempty"`

	// Policy holds the service's annotations below clustermesh.io/, their names
	// without that prefix, as they were written: readers judge them.
	Policy map[string]string `json:"policy,omitempty"`

	// ExternalTrafficPolicy is "Local" if clients outside the cluster get only
	// backends on the node that they come to, by NodePorts and ExternalFrontends,
	// or "" (cluster).
	ExternalTrafficPolicy string `json:"externalTrafficPolicy,omitempty"`
	// NodePorts lead to the service on every node; sorted by port, protocol.
	NodePorts []LocalNodePort `json:"nodePorts,omitempty"`
	// ExternalFrontends are what Frontends marks as external, of a service with
	// ExternalTrafficPolicy Local: readers that do not know the policy must not
	// serve them either. Sorted like Frontends.
	ExternalFrontends []LocalFrontend `json:"externalFrontends,omitempty"`
	// Restricted says that the service limits which clients may come in from
	// outside, so that none of its ways from there is among the above.
	Restricted bool `json:"restricted,omitempty"`
}

// LocalFrontend is one address and port of a local service: a cluster IP, or an
// external address or one of its load balancer if External.
type LocalFrontend struct {
	Address  netip.Addr `json:"address"`
	Port     uint16     `json:"port"`
	Protocol Protocol   `json:"protocol"`
	PortName string     `json:"portName,omitempty"`
	External bool       `json:"external,omitempty"`
}

// LocalNodePort is a port of all nodes' addresses that leads to a local service.
type LocalNodePort struct {
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol"`
	PortName string   `json:"portName,omitempty"`
}

// LocalBackend is one endpoint port of a local service.
type LocalBackend struct {
	Address     netip.Addr `json:"address"`
	Port        uint16     `json:"port"`
	Protocol    Protocol   `json:"protocol"`
	PortNames   []string   `json:"portNames,omitempty"` // sorted, no empty name
	Ready       bool       `json:"ready"`
	Serving     bool       `json:"serving"`
	Terminating bool       `json:"terminating,omitempty"`
	Zone        string     `json:"zone,omitempty"`
	ForZones    []string   `json:"forZones,omitempty"`
	Node        string     `json:"node,omitempty"`
}

// Node is one node of a cluster: the value of
// cilium/state/nodes/v1/<cluster>/<node>. Members without a tag are spelled
// as Cilium spells them; none is omitted when empty.
type Node struct {
	Name                    string
	Cluster                 string
	IPAddresses             []NodeAddress
	IPv4AllocCIDR           *CIDR
	IPv4SecondaryAllocCIDRs []CIDR
	IPv6AllocCIDR           *CIDR
	IPv6SecondaryAllocCIDRs []CIDR
	IPv4HealthIP            string
	IPv6HealthIP            string
	IPv4IngressIP           string
	IPv6IngressIP           string
	ClusterID               uint32
	Source                  string
	EncryptionKey           uint8
	Labels                  map[string]string
	Annotations             map[string]string
	WireguardPubKey         string
	BootID                  string
}

// NodeAddress is one address of a node; Type is one of Hostname, ExternalIP,
// InternalIP, ExternalDNS, InternalDNS, CiliumInternalIP.
type NodeAddress struct {
	Type string
	IP   string
}

// CIDR is a prefix as Go's net.IPNet encodes it: text address, base64 mask.
type CIDR struct {
	IP   string
	Mask []byte
}

// IPEntry ties a pod address to an identity: the value of
// cilium/state/ip/v1/default/<ip>.
type IPEntry struct {
	IP                string
	Mask              []byte
	HostIP            string
	ID                uint32
	Key               uint8
	Metadata          string
	K8sNamespace      string      `json:",omitempty"`
	K8sPodName        string      `json:",omitempty"`
	K8sServiceAccount string      `json:",omitempty"`
	NamedPorts        []NamedPort `json:",omitempty"`
}

// NamedPort is a container port that has a name.
type NamedPort struct {
	Name     string
	Port     uint16
	Protocol Protocol
}

// Identity is a numeric identity and its labels: the entry
// cilium/state/identities/v1/id/<ID>. Labels map "source:key" to the value.
type Identity struct {
	ID     uint32
	Labels map[string]string
}

// IPFamily is a family of addresses as Kubernetes spells it.
type IPFamily string

// The families a mesh carries.
const (
	IPv4 IPFamily = "IPv4"
	IPv6 IPFamily = "IPv6"
)

// Condition is one condition of an endpoint: what a *bool is in Kubernetes.
type Condition uint8

// The states of a condition; an absent one is unknown.
const (
	ConditionUnknown Condition = iota
	ConditionFalse
	ConditionTrue
)

// EndpointSlice is one exported slice of a service's endpoints: the value of
// cilium/state/endpointslices/v1/<cluster>/<namespace>/<slice>, which a
// [SliceCodec] encodes and decodes. It holds all endpoints of the slice, also
// those that are not ready. Absent and empty names are one.
type EndpointSlice struct {
	Cluster     string
	ClusterID   uint32
	Namespace   string
	Name        string            // the slice's own; see ServiceName
	Labels      map[string]string // of the slice
	Annotations map[string]string
	AddressType IPFamily // of every address in it
	Endpoints   []Endpoint
	Ports       []SlicePort // of every endpoint in it
}

// Endpoint is one endpoint of a slice. Its addresses are alternatives, of which
// readers by custom use the first.
type Endpoint struct {
	Addresses   []netip.Addr
	Ready       Condition // unknown means ready
	Serving     Condition // unknown means as ready
	Terminating Condition // unknown means not terminating
	Hostname    string
	NodeName    string
	Zone        string
	ForZones    []string // zones that should prefer it
}

// SlicePort is one port of all endpoints of a slice; Port 0 means that the
// slice leaves it open.
type SlicePort struct {
	Name        string
	Protocol    Protocol
	Port        uint16
	AppProtocol string
}

// ServiceExport says that a cluster exports a service in the sense of the
// Multi-Cluster Services API: the value of
// cilium/state/serviceexports/v1/<cluster>/<namespace>/<name>.
type ServiceExport struct {
	Cluster     string
	Name        string
	Namespace   string
	Annotations map[string]string // those the export exports
	Labels      map[string]string // those the export exports
	// Created is when the export was made, in Unix seconds, not 0. The oldest
	// export of a service wins where clusters disagree.
	Created int64
	Ports   []ExportPort // of the service
	Type    string       // ExportClusterSetIP or ExportHeadless

	SessionAffinity        string     // SessionAffinityNone or SessionAffinityClientIP
	SessionAffinitySeconds uint32     // timeout of ClientIP, 0 if not given
	IPFamilies             []IPFamily // empty from exporters before Cilium 1.19
	InternalTrafficPolicy  string     // TrafficPolicyCluster, TrafficPolicyLocal or "" (not given)
	TrafficDistribution    string     // one of Kubernetes' values or "" (not given)
}

// ExportPort is one port of an exported service.
type ExportPort struct {
	Name        string
	Protocol    Protocol
	AppProtocol string
	Port        uint16
}

// ClusterConfig announces a cluster: the value of
// cilium/cluster-config/<cluster>. The name is in the key only.
type ClusterConfig struct {
	ID           uint32       `json:"id,omitempty"`
	Capabilities Capabilities `json:"capabilities,omitempty"`
}

// Capabilities says what an exporter publishes and how.
type Capabilities struct {
	SyncedCanaries           bool   `json:"syncedCanaries,omitempty"`
	Cached                   bool   `json:"cached,omitempty"`
	MaxConnectedClusters     uint32 `json:"maxConnectedClusters,omitempty"`
	ServiceExportsEnabled    *bool  `json:"serviceExportsEnabled,omitempty"` // nil: MCS unknown to the exporter
	EndpointSlicesExportMode string `json:"endpointSlicesExportMode,omitempty"`
}
