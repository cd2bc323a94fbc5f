package interop

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/cilium/pkg/cidr"
	service "github.com/cilium/cilium/pkg/clustermesh/store"
	"github.com/cilium/cilium/pkg/clustermesh/types/endpointslice"
	slim "github.com/cilium/cilium/pkg/k8s/slim/k8s/api/discovery/v1"
	"github.com/cilium/cilium/pkg/loadbalancer"
	"github.com/cilium/cilium/pkg/node/addressing"
	node "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/cilium/pkg/source"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// What a cluster publishes, in Cilium's own types, from its objects: the oracle
// for what Cilium's client hears from us, and what Cilium's writer is given. It
// shares no code with the product and recomputes everything each time.

// said reads a boolean annotation of which the first spelling that is present
// counts.
func said(annotations map[string]string, absent bool, spellings ...string) bool {
	for _, s := range spellings {
		if value, ok := annotations[s]; ok {
			return value == "true"
		}
	}
	return absent
}

func (c *cluster) globalNamespace(name string) bool {
	for _, ns := range c.namespaces {
		if ns.Name == name {
			return said(ns.Annotations, true, "clustermesh.cilium.io/global")
		}
	}
	return true
}

// exported tells whether other clusters get a service.
func (c *cluster) exported(s *corev1.Service) bool {
	return said(s.Annotations, false, "service.cilium.io/global", "io.cilium/global-service") &&
		said(s.Annotations, true, "service.cilium.io/shared", "io.cilium/shared-service") &&
		c.globalNamespace(s.Namespace)
}

// exportedServices is what is below cilium/state/services/v1.
func (c *cluster) exportedServices() []*service.ClusterService {
	var all []*service.ClusterService
	for _, s := range c.services {
		if c.exported(s) {
			all = append(all, c.exportedService(s))
		}
	}
	return all
}

func (c *cluster) exportedService(s *corev1.Service) *service.ClusterService {
	r := service.NewClusterService(s.Name, s.Namespace)
	r.Cluster, r.ClusterID, r.IncludeExternal, r.Shared = c.name, c.id, true, true
	r.Labels, r.Selector = s.Labels, s.Spec.Selector
	for _, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			r.Frontends[ip] = service.PortConfiguration{}
			for _, p := range s.Spec.Ports {
				r.Frontends[ip][p.Name] = &loadbalancer.L4Addr{Protocol: string(p.Protocol), Port: uint16(p.Port)}
			}
		}
	}
	for _, slice := range c.slicesOf(s) {
		for _, e := range slice.Endpoints {
			addBackend(&r, slice, e)
		}
	}
	return &r
}

func (c *cluster) slicesOf(s *corev1.Service) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for _, slice := range c.slices {
		if slice.Namespace == s.Namespace && slice.Labels[discoveryv1.LabelServiceName] == s.Name {
			all = append(all, slice)
		}
	}
	return all
}

func addBackend(r *service.ClusterService, slice *discoveryv1.EndpointSlice, e discoveryv1.Endpoint) {
	isReady := e.Conditions.Ready == nil || *e.Conditions.Ready
	isServing := e.Conditions.Serving != nil && *e.Conditions.Serving
	if !isReady && !isServing {
		return
	}
	ip := e.Addresses[0]
	r.Backends[ip] = service.PortConfiguration{}
	for _, p := range slice.Ports {
		r.Backends[ip][*p.Name] = &loadbalancer.L4Addr{Protocol: string(*p.Protocol), Port: uint16(*p.Port)}
	}
	if e.Hostname != nil {
		r.Hostnames[ip] = *e.Hostname
	}
	if e.Zone != nil {
		zone := service.BackendZone{Zone: *e.Zone, ForZones: []service.ForZone{}}
		if e.Hints != nil {
			for _, hint := range e.Hints.ForZones {
				zone.ForZones = append(zone.ForZones, service.ForZone{Name: hint.Name})
			}
		}
		r.Zones[ip] = zone
	}
}

// exportedSlices is what is below cilium/state/endpointslices/v1.
func (c *cluster) exportedSlices() []*endpointslice.ClusterEndpointSlice {
	var all []*endpointslice.ClusterEndpointSlice
	for _, s := range c.services {
		if !c.exported(s) {
			continue
		}
		for _, slice := range c.slicesOf(s) {
			all = append(all, c.exportedSlice(slice))
		}
	}
	return all
}

// exportedSlice goes through JSON: Cilium's type of a slice reads as Kubernetes'
// writes.
func (c *cluster) exportedSlice(slice *discoveryv1.EndpointSlice) *endpointslice.ClusterEndpointSlice {
	var theirs slim.EndpointSlice
	data, err := json.Marshal(slice)
	if err == nil {
		err = json.Unmarshal(data, &theirs)
	}
	if err != nil {
		panic(err) // the objects are our own
	}
	return &endpointslice.ClusterEndpointSlice{
		Cluster: c.name, ClusterID: c.id, Namespace: slice.Namespace, Name: slice.Name,
		Labels: slice.Labels, Annotations: slice.Annotations,
		AddressType: theirs.AddressType, Endpoints: theirs.Endpoints, Ports: theirs.Ports,
	}
}

// exportedNodes is what is below cilium/state/nodes/v1, as a client passes it
// on.
func (c *cluster) exportedNodes() []*node.Node {
	var all []*node.Node
	for _, n := range c.nodes {
		r := &node.Node{Name: n.Name, Cluster: c.name, ClusterID: c.id, Labels: n.Labels, Source: source.ClusterMesh}
		for _, a := range n.Status.Addresses {
			if ip := net.ParseIP(a.Address); ip != nil {
				r.IPAddresses = append(r.IPAddresses, node.Address{Type: addressing.AddressType(a.Type), IP: ip})
			}
		}
		for _, text := range n.Spec.PodCIDRs {
			if netip.MustParsePrefix(text).Addr().Is4() {
				r.IPv4AllocCIDR = cidr.MustParseCIDR(text)
			} else {
				r.IPv6AllocCIDR = cidr.MustParseCIDR(text)
			}
		}
		all = append(all, r)
	}
	return all
}

// endpoint is an address of a pod and what else is said of it.
type endpoint struct {
	address string
	host    string
	pod     string
	ports   string // name=number/protocol number
	labels  string // of its identity
}

// exportedEndpoints is what is below cilium/state/ip/v1, with the labels in
// place of the identity's number, which is the exporter's choice.
func (c *cluster) exportedEndpoints() []endpoint {
	var all []endpoint
	for _, p := range c.pods {
		if p.Status.Phase != corev1.PodRunning || !c.globalNamespace(p.Namespace) {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			all = append(all, endpoint{
				address: ip.IP, host: p.Status.HostIP, pod: p.Namespace + "/" + p.Name,
				ports: portsText(p.Spec.Containers[0].Ports), labels: c.identityOf(p),
			})
		}
	}
	return all
}

// identityOf is a pod's identity as text. The label of the template's hash is
// no part of it.
func (c *cluster) identityOf(p *corev1.Pod) string {
	labels := []string{
		"k8s:io.cilium.k8s.policy.cluster=" + c.name,
		"k8s:io.cilium.k8s.policy.serviceaccount=" + p.Spec.ServiceAccountName,
		"k8s:io.kubernetes.pod.namespace=" + p.Namespace,
		"k8s:app=" + p.Labels["app"],
		"k8s:version=" + p.Labels["version"],
	}
	for _, ns := range c.namespaces {
		if ns.Name == p.Namespace {
			labels = append(labels, "k8s:io.cilium.k8s.namespace.labels.team="+ns.Labels["team"])
		}
	}
	slices.Sort(labels)
	return strings.Join(labels, ";")
}
