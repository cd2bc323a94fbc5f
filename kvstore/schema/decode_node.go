package schema

import "net/netip"

// DecodeNode decodes the node at key, which lies below the prefix of
// [KindNode] for src. The entry must name src's cluster and id and the node in
// its key. Addresses come out as canonical text, "" where the node has none;
// masks are contiguous and of the address's family. The error is an *[Error].
// The result is the caller's alone.
func DecodeNode(src Source, key string, value []byte, l Limits) (*Node, error) {
	name, err := nameIn(KindNode, src, key)
	if err != nil {
		return nil, err
	}
	if !validName(name) {
		return nil, keyError(key, "must end in a node's name")
	}
	d := nodeReader{reader: newReader(key, value, l.MaxValueBytes), limits: l}
	n := &Node{}
	d.node(src, name, n)
	if err := d.result(); err != nil {
		return nil, err
	}
	return n, nil
}

type nodeReader struct {
	reader
	limits Limits
}

func (d *nodeReader) node(src Source, name string, n *Node) {
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "Cluster":
			d.once(&have, 0)
			n.Cluster = d.exact(src.Cluster, "the name of this connection's cluster")
		case "Name":
			d.once(&have, 1)
			n.Name = d.exact(name, "as in the key")
		case "ClusterID":
			d.once(&have, 2)
			n.ClusterID = d.clusterID(src)
		case "IPAddresses":
			d.once(&have, 3)
			n.IPAddresses = d.addresses()
		case "IPv4AllocCIDR":
			d.once(&have, 4)
			n.IPv4AllocCIDR = d.optionalCIDR(is4)
		case "IPv4SecondaryAllocCIDRs":
			d.once(&have, 5)
			n.IPv4SecondaryAllocCIDRs = d.cidrs(is4)
		case "IPv6AllocCIDR":
			d.once(&have, 6)
			n.IPv6AllocCIDR = d.optionalCIDR(is6)
		case "IPv6SecondaryAllocCIDRs":
			d.once(&have, 7)
			n.IPv6SecondaryAllocCIDRs = d.cidrs(is6)
		default:
			d.rest(&have, n)
		}
	}
	d.require(have, "Cluster", "Name", "ClusterID")
}

// rest reads the members that have no part in routing.
func (d *nodeReader) rest(have *seen, n *Node) {
	switch string(d.path[d.depth]) {
	case "IPv4HealthIP":
		d.once(have, 8)
		n.IPv4HealthIP = d.optionalIP()
	case "IPv6HealthIP":
		d.once(have, 9)
		n.IPv6HealthIP = d.optionalIP()
	case "IPv4IngressIP":
		d.once(have, 10)
		n.IPv4IngressIP = d.optionalIP()
	case "IPv6IngressIP":
		d.once(have, 11)
		n.IPv6IngressIP = d.optionalIP()
	case "Source":
		d.once(have, 12)
		n.Source = d.intern()
	case "EncryptionKey":
		d.once(have, 13)
		n.EncryptionKey = uint8(d.uint(255))
	case "Labels":
		d.once(have, 14)
		n.Labels = d.texts(d.limits.MaxNames)
	case "Annotations":
		d.once(have, 15)
		n.Annotations = d.texts(d.limits.MaxNames)
	case "WireguardPubKey":
		d.once(have, 16)
		n.WireguardPubKey = d.intern()
	case "BootID":
		d.once(have, 17)
		n.BootID = d.intern()
	default:
		d.skip()
	}
}

func (d *nodeReader) addresses() []NodeAddress {
	var list []NodeAddress
	for more := d.open('['); more && d.more(']'); {
		d.room(len(list), d.limits.MaxNames)
		list = append(list, d.address())
	}
	return list
}

// address keeps types it does not know: newer ones do no harm.
func (d *nodeReader) address() NodeAddress {
	var a NodeAddress
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "Type":
			d.once(&have, 0)
			a.Type = d.intern()
		case "IP":
			d.once(&have, 1)
			a.IP = d.optionalIP()
		default:
			d.skip()
		}
	}
	d.require(have, "Type", "IP")
	return a
}

func (d *nodeReader) cidrs(family func(netip.Prefix) bool) []CIDR {
	var list []CIDR
	for more := d.open('['); more && d.more(']'); {
		d.room(len(list), d.limits.MaxNames)
		list = append(list, d.cidr(family))
	}
	return list
}

func (d *nodeReader) optionalCIDR(family func(netip.Prefix) bool) *CIDR {
	if d.null() {
		return nil
	}
	c := d.cidr(family)
	return &c
}

func (d *nodeReader) cidr(family func(netip.Prefix) bool) CIDR {
	var c CIDR
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "IP":
			d.once(&have, 0)
			c.IP = d.optionalIP()
		case "Mask":
			d.once(&have, 1)
			c.Mask = d.base64()
		default:
			d.skip()
		}
	}
	d.require(have, "IP", "Mask")
	if p, ok := c.Prefix(); d.err == nil && (!ok || !family(p)) {
		d.fail(c.IP, "must be an address and a contiguous mask of the member's family")
	}
	return c
}
