package schema

import "net/netip"

// DecodeIPEntry decodes the address entry at key, which lies below the prefix
// of [KindIP] for src and ends in the entry's address (or address/length) as
// Go's net/netip writes it. The identity must lie in the range of src's
// cluster or be one of the reserved ones below 256, which mean the same
// everywhere; 1 (host) there is the remote host, and the caller's to map. IP and
// HostIP come out as canonical text. The error is an *[Error]. The result is
// the caller's alone.
func DecodeIPEntry(src Source, maxClusters uint32, key string, value []byte, l Limits) (*IPEntry, error) {
	text, err := nameIn(KindIP, src, key)
	if err != nil {
		return nil, err
	}
	d := ipReader{reader: newReader(key, value, l.MaxValueBytes), limits: l}
	e := &IPEntry{}
	d.entry(src, maxClusters, e)
	d.matches(text, e)
	if err := d.result(); err != nil {
		return nil, err
	}
	return e, nil
}

type ipReader struct {
	reader
	limits Limits
}

func (d *ipReader) entry(src Source, maxClusters uint32, e *IPEntry) {
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "IP":
			d.once(&have, 0)
			e.IP = d.addr(d.text()).String()
		case "ID":
			d.once(&have, 1)
			e.ID = d.identity(src, maxClusters)
		case "Mask":
			d.once(&have, 2)
			e.Mask = d.base64()
		case "HostIP":
			d.once(&have, 3)
			e.HostIP = d.optionalIP()
		case "Key":
			d.once(&have, 4)
			e.Key = uint8(d.uint(255))
		case "NamedPorts":
			d.once(&have, 5)
			e.NamedPorts = d.namedPorts()
		default:
			d.origin(&have, e)
		}
	}
	d.require(have, "IP", "ID")
}

// origin reads the members that say which pod has the address.
func (d *ipReader) origin(have *seen, e *IPEntry) {
	switch string(d.path[d.depth]) {
	case "Metadata":
		d.once(have, 6)
		e.Metadata = d.str()
	case "K8sNamespace":
		d.once(have, 7)
		e.K8sNamespace = d.intern()
	case "K8sPodName":
		d.once(have, 8)
		e.K8sPodName = d.intern()
	case "K8sServiceAccount":
		d.once(have, 9)
		e.K8sServiceAccount = d.intern()
	default:
		d.skip()
	}
}

func (d *ipReader) identity(src Source, maxClusters uint32) uint32 {
	id := uint32(d.uint(1<<32 - 1))
	first, last := IdentityRange(src.ClusterID, maxClusters)
	if id >= reservedIdentities && (id < first || id > last) {
		d.fail(decimal(id), "cluster "+src.Cluster+" may use "+decimal(first)+" to "+decimal(last)+
			" and 0 to 255; check that both clusters agree on its id and on maxConnectedClusters")
	}
	return id
}

// matches checks the address and mask against the end of the key.
func (d *ipReader) matches(text string, e *IPEntry) {
	p, ok := e.Prefix()
	if d.err == nil && !ok {
		d.failAt("Mask", e.IP, "must be a contiguous mask of the address's family")
	}
	if d.err == nil && text != keyOf(p, len(e.Mask) > 0) {
		d.failAt("IP", e.IP, "must be "+text+", as in the key")
	}
}

func keyOf(p netip.Prefix, masked bool) string {
	if masked {
		return p.String()
	}
	return p.Addr().String()
}

func (d *ipReader) namedPorts() []NamedPort {
	var list []NamedPort
	for more := d.open('['); more && d.more(']'); {
		d.room(len(list), d.limits.MaxNames)
		list = append(list, d.namedPort())
	}
	return list
}

func (d *ipReader) namedPort() NamedPort {
	var p NamedPort
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "Name":
			d.once(&have, 0)
			p.Name = d.intern()
		case "Port":
			d.once(&have, 1)
			p.Port = d.port()
		case "Protocol":
			d.once(&have, 2)
			p.Protocol = d.protocol()
		default:
			d.skip()
		}
	}
	d.require(have, "Name", "Port", "Protocol")
	return p
}
