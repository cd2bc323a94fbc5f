package export

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// In a cluster whose network is Cilium's, identities have numbers already, and
// Cilium's own nodes enforce policy by them. Then its objects are exported, and
// pods and nodes are left alone: two numbers for one pod would be one too many.

// oldWireguardAnnotation is what wireguardAnnotation was called before.
const oldWireguardAnnotation = "io.cilium.network.wg-pub-key"

// reservedIdentities is how many numbers mean the same in every cluster.
const reservedIdentities = 256

// holder is one of Cilium's objects that says which addresses pods have: a
// CiliumEndpoint, or a CiliumEndpointSlice with a namespace of "".
type holder name

// holding is what a holder says, and what is exported of it: nothing while its
// namespace is not global.
type holding struct {
	namespace string // of its pods
	created   int64  // Unix seconds
	entries   []schema.IPEntry
	claimed   []netip.Addr
}

// ciliumState is what is known of Cilium's objects.
type ciliumState struct {
	nodes      map[string]*CiliumNode
	identities map[string]*CiliumIdentity
	holdings   map[holder]*holding
	claims     map[netip.Addr][]holder
}

func newCiliumState() ciliumState {
	return ciliumState{
		nodes: map[string]*CiliumNode{}, identities: map[string]*CiliumIdentity{},
		holdings: map[holder]*holding{}, claims: map[netip.Addr][]holder{},
	}
}

// observeCilium takes an object that counts if identities are Cilium's.
func (e *Exporter) observeCilium(c Change) {
	switch o := c.Object.(type) {
	case *CiliumNode:
		store(e.cilium.nodes, o.Name, o, c.Deleted)
		e.dirty.nodes[o.Name] = struct{}{}
	case *CiliumIdentity:
		store(e.cilium.identities, o.Name, o, c.Deleted)
		e.dirty.identities[o.Name] = struct{}{}
	case *CiliumEndpoint:
		e.observeHolder(holder{o.Namespace, o.Name}, c.Deleted, e.endpointHolding(o))
	case *CiliumEndpointSlice:
		e.observeHolder(holder{"", o.Name}, c.Deleted, e.sliceHolding(o))
	}
}

func (e *Exporter) observeHolder(h holder, deleted bool, now *holding) {
	if old := e.cilium.holdings[h]; old != nil {
		e.dropClaims(h, old)
	}
	store(e.cilium.holdings, h, now, deleted)
	e.dirty.holders[h] = struct{}{}
	if deleted {
		e.report(h.String(), nil)
	}
}

func (h holder) String() string {
	if h.namespace == "" {
		return "CiliumEndpointSlice " + h.name
	}
	return "CiliumEndpoint " + name(h).String()
}

func (e *Exporter) endpointHolding(o *CiliumEndpoint) *holding {
	core := CiliumCoreEndpoint{
		Name: o.Name, Networking: o.Status.Networking, Encryption: o.Status.Encryption,
		NamedPorts: o.Status.NamedPorts, ServiceAccount: o.Status.ServiceAccount,
	}
	if o.Status.Identity != nil {
		core.IdentityID = o.Status.Identity.ID
	}
	f := &findings{object: holder{o.Namespace, o.Name}.String()}
	h := &holding{namespace: o.Namespace, created: o.CreationTimestamp.Unix()}
	h.entries = e.endpointEntries(nil, o.Namespace, &core, f)
	e.report(f.object, f.found)
	return h
}

func (e *Exporter) sliceHolding(o *CiliumEndpointSlice) *holding {
	f := &findings{object: holder{"", o.Name}.String()}
	h := &holding{namespace: o.EndpointsNamespace, created: o.CreationTimestamp.Unix()}
	for i := range o.Endpoints {
		h.entries = e.endpointEntries(h.entries, o.EndpointsNamespace, &o.Endpoints[i], f)
	}
	e.report(f.object, f.found)
	return h
}

// endpointEntries adds one entry per address of an endpoint. An endpoint
// without an identity has none yet, and one whose number is another cluster's
// is refused by readers.
func (e *Exporter) endpointEntries(entries []schema.IPEntry, namespace string, ep *CiliumCoreEndpoint, f *findings) []schema.IPEntry {
	if ep.Networking == nil || ep.IdentityID == 0 {
		return entries
	}
	if !e.ours(ep.IdentityID) && (ep.IdentityID < 0 || ep.IdentityID >= reservedIdentities) {
		f.add(InvalidIdentity, e.rangeMessage(fmt.Sprintf("endpoint %s has identity %d", ep.Name, ep.IdentityID)))
		return entries
	}
	entry := schema.IPEntry{
		HostIP: plainAddress(ep.Networking.NodeIP), ID: uint32(ep.IdentityID), Key: keyIndex(ep.Encryption),
		K8sNamespace: namespace, K8sPodName: ep.Name, K8sServiceAccount: ep.ServiceAccount,
		NamedPorts: ciliumPorts(ep.NamedPorts),
	}
	for _, pair := range ep.Networking.Addressing {
		for _, text := range []string{pair.IPv4, pair.IPv6} {
			if a, ok := parseAddress(text, "address", f); ok {
				entry.IP = a.String()
				entries = append(entries, entry)
			}
		}
	}
	return entries
}

// ours reports whether a number lies in this cluster's range.
func (e *Exporter) ours(id int64) bool {
	first, last := schema.IdentityRange(e.config.ClusterID, e.config.MaxClusters)
	return id >= int64(first) && id <= int64(last)
}

func (e *Exporter) rangeMessage(what string) string {
	first, last := schema.IdentityRange(e.config.ClusterID, e.config.MaxClusters)
	return fmt.Sprintf("%s, which is not from %d to %d; give --cluster-id and --max-connected-clusters the values that Cilium has", what, first, last)
}

// keyIndex leaves out what is no index on the wire.
func keyIndex(c CiliumEncryption) uint8 {
	if c.Key < 0 || c.Key > 255 {
		return 0
	}
	return uint8(c.Key)
}

// plainAddress returns the canonical text of an address, "" if it is none:
// readers decode the members it is for as addresses.
func plainAddress(text string) string {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return ""
	}
	return a.Unmap().String()
}

func ciliumPorts(all []CiliumNamedPort) []schema.NamedPort {
	var ports []schema.NamedPort
	for _, p := range all {
		l4 := schema.L4{Protocol: schema.Protocol(strings.ToUpper(p.Protocol)), Port: uint16(p.Port)}
		if known := l4.Protocol == schema.TCP || l4.Protocol == schema.UDP || l4.Protocol == schema.SCTP; known && p.Port > 0 && p.Port < 65536 {
			ports = append(ports, schema.NamedPort{Name: p.Name, Port: l4.Port, Protocol: l4.Protocol})
		}
	}
	return ports
}

// exportCilium computes identities, and then the addresses of the holders.
func (e *Exporter) exportCilium() {
	for number := range e.dirty.identities {
		e.exportIdentity(number)
	}
	for h := range e.dirty.holders {
		e.updateClaims(h)
	}
	for a := range e.dirty.addresses {
		e.exportHeldAddress(a)
	}
}

func (e *Exporter) exportIdentity(number string) {
	f := &findings{object: "CiliumIdentity " + number}
	id, value := uint64(0), []byte(nil)
	if o := e.cilium.identities[number]; o != nil {
		id, value = e.encodeIdentity(o, f)
	} else {
		id, _ = strconv.ParseUint(number, 10, 32)
	}
	if id != 0 {
		e.set(schema.KindIdentity, schema.IdentityKey(uint32(id)), value)
	}
	e.report(f.object, f.found)
}

// encodeIdentity leaves out identities that belong to no global namespace, and
// those that readers refuse.
func (e *Exporter) encodeIdentity(o *CiliumIdentity, f *findings) (uint64, []byte) {
	id, err := strconv.ParseUint(o.Name, 10, 32)
	if err != nil || strconv.FormatUint(id, 10) != o.Name || !e.ours(int64(id)) {
		f.add(InvalidIdentity, e.rangeMessage(fmt.Sprintf("its name is %q", o.Name)))
		return 0, nil
	}
	if len(o.SecurityLabels) == 0 || !e.global(o.SecurityLabels[namespaceLabel]) {
		return id, nil
	}
	if got := o.SecurityLabels[clusterLabel]; got != e.config.Cluster {
		f.add(InvalidIdentity, fmt.Sprintf("its label %s is %q; give --cluster-name the name that Cilium has", clusterLabel, got))
		return id, nil
	}
	labels := make(map[string]string, len(o.SecurityLabels))
	for key, value := range o.SecurityLabels {
		if !strings.Contains(key, ":") {
			key = "unspec:" + key // as Cilium spells a label without a source
		}
		putLabel(labels, key, value)
	}
	identity := schema.Identity{Labels: labels}
	return id, identity.Encode()
}

func (e *Exporter) dropClaims(h holder, old *holding) {
	for _, a := range old.claimed {
		e.cilium.claims[a] = slices.DeleteFunc(e.cilium.claims[a], func(other holder) bool { return other == h })
		if len(e.cilium.claims[a]) == 0 {
			delete(e.cilium.claims, a)
		}
		e.dirty.addresses[a] = struct{}{}
	}
	old.claimed = nil
}

func (e *Exporter) updateClaims(h holder) {
	now := e.cilium.holdings[h]
	if now == nil {
		return
	}
	e.dropClaims(h, now)
	if !e.global(now.namespace) {
		return
	}
	for i := range now.entries {
		a := netip.MustParseAddr(now.entries[i].IP)
		if !slices.Contains(e.cilium.claims[a], h) {
			e.cilium.claims[a] = append(e.cilium.claims[a], h)
			now.claimed = append(now.claimed, a)
		}
		e.dirty.addresses[a] = struct{}{}
	}
}

// exportHeldAddress publishes an address for its first owner: of several
// holders the one that was created first, which keeps it until it goes, also
// over restarts of this process.
func (e *Exporter) exportHeldAddress(a netip.Addr) {
	place, claims := "address "+a.String(), e.cilium.claims[a]
	var value []byte
	var found []Problem
	if len(claims) > 0 {
		owner := slices.MinFunc(claims, e.compareHolders)
		value = e.cilium.holdings[owner].entry(a).Encode()
		for _, rival := range claims {
			if rival != owner {
				found = append(found, Problem{Object: rival.String(), Reason: AddressConflict,
					Message: fmt.Sprintf("address %s belongs to the older %s; delete the wrong one", a, owner)})
			}
		}
	}
	e.set(schema.KindIP, schema.IPKey(a.String()), value)
	e.report(place, found)
}

func (e *Exporter) compareHolders(a, b holder) int {
	x, y := e.cilium.holdings[a], e.cilium.holdings[b]
	return cmp.Or(cmp.Compare(x.created, y.created), compareNames(name(a), name(b)))
}

// entry returns the first entry of an address.
func (h *holding) entry(a netip.Addr) *schema.IPEntry {
	text := a.String()
	i := slices.IndexFunc(h.entries, func(e schema.IPEntry) bool { return e.IP == text })
	return &h.entries[i]
}

// touchCilium marks what belongs to a namespace.
func (e *Exporter) touchCilium(namespace string) {
	for number, o := range e.cilium.identities {
		if o.SecurityLabels[namespaceLabel] == namespace {
			e.dirty.identities[number] = struct{}{}
		}
	}
	for h, held := range e.cilium.holdings {
		if held.namespace == namespace {
			e.dirty.holders[h] = struct{}{}
		}
	}
}

// touchAllCilium marks everything.
func (e *Exporter) touchAllCilium() {
	for number := range e.cilium.identities {
		e.dirty.identities[number] = struct{}{}
	}
	for n := range e.cilium.nodes {
		e.dirty.nodes[n] = struct{}{}
	}
	for a := range e.cilium.claims {
		e.dirty.addresses[a] = struct{}{}
	}
}

// encodeCiliumNode keeps annotations, as Cilium's exporter does.
func (e *Exporter) encodeCiliumNode(n *CiliumNode, f *findings) []byte {
	_, wireguard, _ := first(n.Annotations, wireguardAnnotation, oldWireguardAnnotation)
	record := schema.Node{
		Name: n.Name, Cluster: e.config.Cluster, ClusterID: e.config.ClusterID, Source: nodeSource,
		IPAddresses: []schema.NodeAddress{}, Labels: n.Labels, Annotations: n.Annotations,
		IPv4HealthIP: plainAddress(n.Spec.Health.IPv4), IPv6HealthIP: plainAddress(n.Spec.Health.IPv6),
		IPv4IngressIP: plainAddress(n.Spec.Ingress.IPv4), IPv6IngressIP: plainAddress(n.Spec.Ingress.IPv6),
		EncryptionKey: keyIndex(n.Spec.Encryption), WireguardPubKey: wireguard, BootID: n.Spec.BootID,
	}
	for _, a := range n.Spec.Addresses {
		if ip := plainAddress(a.IP); ip != "" {
			record.IPAddresses = append(record.IPAddresses, schema.NodeAddress{Type: a.Type, IP: ip})
		}
	}
	texts := slices.Clone(n.Spec.IPAM.PodCIDRs)
	for _, pool := range n.Spec.IPAM.Pools.Allocated {
		texts = append(texts, pool.CIDRs...)
	}
	for _, p := range parseCIDRs(texts, f) {
		addCIDR(&record, p)
	}
	return record.Encode()
}
