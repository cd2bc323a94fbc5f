package export

import (
	"fmt"
	"net/netip"

	"github.com/clustermesh/clustermesh/kvstore/schema"
	corev1 "k8s.io/api/core/v1"
)

// nodeSource is what Cilium's exporter writes for a node that it read from
// Kubernetes. Its readers know no better name for the same thing and replace
// it by their own on arrival.
const nodeSource = "custom-resource"

func (e *Exporter) exportNode(nodeName string) {
	f := &findings{object: "Node " + nodeName}
	var value []byte
	if n := e.nodes[nodeName]; n != nil {
		value = e.encodeNode(n, f)
	}
	if n := e.cilium.nodes[nodeName]; n != nil {
		value = e.encodeCiliumNode(n, f)
	}
	e.set(schema.KindNode, schema.NodeKey(e.config.Cluster, nodeName), value)
	e.report(f.object, f.found)
}

// encodeNode keeps the labels, because node selectors in policies of other
// clusters match on them, and drops the annotations, which say more of a
// cluster than others need. Namespaces do not filter nodes.
func (e *Exporter) encodeNode(n *corev1.Node, f *findings) []byte {
	record := schema.Node{
		Name: n.Name, Cluster: e.config.Cluster, ClusterID: e.config.ClusterID, Source: nodeSource,
		IPAddresses: nodeAddresses(n), Labels: n.Labels, WireguardPubKey: n.Annotations[wireguardAnnotation],
	}
	for _, p := range podCIDRs(n, f) {
		addCIDR(&record, p)
	}
	return record.Encode()
}

// nodeAddresses keeps what is an IP address, whatever its type: readers decode
// the member as one, and a host name in its place makes them refuse the node.
func nodeAddresses(n *corev1.Node) []schema.NodeAddress {
	addresses := []schema.NodeAddress{}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && ip.Zone() == "" {
			addresses = append(addresses, schema.NodeAddress{Type: string(a.Type), IP: ip.Unmap().String()})
		}
	}
	return addresses
}

func podCIDRs(n *corev1.Node, f *findings) []netip.Prefix {
	texts := n.Spec.PodCIDRs
	if len(texts) == 0 && n.Spec.PodCIDR != "" {
		texts = []string{n.Spec.PodCIDR}
	}
	return parseCIDRs(texts, f)
}

func parseCIDRs(texts []string, f *findings) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			f.add(InvalidAddress, fmt.Sprintf("podCIDR %q is not a prefix such as 10.1.0.0/24; correct it", text))
			continue
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes
}

// addCIDR makes the first prefix of each family the main one.
func addCIDR(record *schema.Node, p netip.Prefix) {
	cidr := schema.CIDR{IP: p.Addr().String(), Mask: mask(p)}
	first, more := &record.IPv6AllocCIDR, &record.IPv6SecondaryAllocCIDRs
	if p.Addr().Is4() {
		first, more = &record.IPv4AllocCIDR, &record.IPv4SecondaryAllocCIDRs
	}
	if *first == nil {
		*first = &cidr
		return
	}
	*more = append(*more, cidr)
}

func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}
