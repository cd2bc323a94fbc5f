package schema

import "net/netip"

// DecodeService decodes the service at key, which lies below the prefix of
// [KindService] for src. The entry must name src's cluster and id and the
// namespace and name in its key. Addresses come out canonical: IPv4-mapped ones
// unmapped, none with a zone. A service that is no longer shared decodes too;
// to readers it means a deletion. The error is an *[Error].
//
// The result is the caller's, except that equal port maps and zone hints of
// different backends may be one map or slice: they must not be modified.
func DecodeService(src Source, key string, value []byte, l Limits) (*Service, error) {
	namespace, name, err := ParseServiceKey(KindService, src.Cluster, src.Cached, key)
	if err != nil {
		return nil, err
	}
	d := serviceReader{reader: newReader(key, value, l.MaxValueBytes), limits: l}
	s := &Service{}
	d.service(src, namespace, name, s)
	if err := d.result(); err != nil {
		return nil, err
	}
	s.fillEmpty()
	return s, nil
}

type serviceReader struct {
	reader
	limits Limits
	ports  recent[PortMap]
	zones  recent[Zone]
}

func (d *serviceReader) service(src Source, namespace, name string, s *Service) {
	const keyReason, sourceReason = "as in the key", "the name of this connection's cluster"
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "cluster":
			d.once(&have, 0)
			s.Cluster = d.exact(src.Cluster, sourceReason)
		case "namespace":
			d.once(&have, 1)
			s.Namespace = d.exact(namespace, keyReason)
		case "name":
			d.once(&have, 2)
			s.Name = d.exact(name, keyReason)
		case "clusterID":
			d.once(&have, 3)
			s.ClusterID = d.clusterID(src)
		case "frontends":
			d.once(&have, 4)
			s.Frontends = d.portMaps(d.limits.MaxFrontends)
		case "backends":
			d.once(&have, 5)
			s.Backends = d.portMaps(d.limits.MaxBackends)
		default:
			d.rest(&have, s)
		}
	}
	d.require(have, "cluster", "namespace", "name", "clusterID")
}

// rest reads the members that are not needed to identify or to balance.
func (d *serviceReader) rest(have *seen, s *Service) {
	switch string(d.path[d.depth]) {
	case "hostnames":
		d.once(have, 6)
		s.Hostnames = addrMap(&d.reader, d.limits.MaxBackends, d.intern)
	case "zones":
		d.once(have, 7)
		s.Zones = addrMap(&d.reader, d.limits.MaxBackends, d.zone)
	case "labels":
		d.once(have, 8)
		s.Labels = d.texts(d.limits.MaxNames)
	case "selector":
		d.once(have, 9)
		s.Selector = d.texts(d.limits.MaxNames)
	case "includeExternal":
		d.once(have, 10)
		s.IncludeExternal = d.flag()
	case "shared":
		d.once(have, 11)
		s.Shared = d.flag()
	default:
		d.skip()
	}
}

// fillEmpty makes the maps that are always encoded non-nil.
func (s *Service) fillEmpty() {
	if s.Frontends == nil {
		s.Frontends = map[netip.Addr]PortMap{}
	}
	if s.Backends == nil {
		s.Backends = map[netip.Addr]PortMap{}
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.Selector == nil {
		s.Selector = map[string]string{}
	}
}

func (d *serviceReader) portMaps(limit int) map[netip.Addr]PortMap {
	return addrMap(&d.reader, limit, d.portMap)
}

func (d *serviceReader) portMap() PortMap {
	if known, ok := d.ports.repeated(&d.reader); ok {
		return known
	}
	start, ports := d.pos, PortMap{}
	for more := d.open('{'); more && d.more('}'); {
		n := len(ports)
		name := string(d.portName(d.name()))
		ports[name] = d.l4()
		d.grown(n, len(ports), d.limits.MaxPorts)
	}
	d.ports.remember(&d.reader, start, ports)
	return ports
}

// portName checks the name of a port just read.
func (r *reader) portName(text []byte) []byte {
	if len(text) > maxPortName {
		r.fail(excerpt(text), portNameReason)
	}
	return r.token(text)
}

func (r *reader) l4() L4 {
	var have seen
	var p L4
	for more := r.open('{'); more && r.more('}'); {
		switch string(r.name()) {
		case "Protocol":
			r.once(&have, 0)
			p.Protocol = r.protocol()
		case "Port":
			r.once(&have, 1)
			p.Port = r.port()
		default:
			r.skip()
		}
	}
	r.require(have, "Protocol", "Port")
	return p
}

func (d *serviceReader) zone() Zone {
	if known, ok := d.zones.repeated(&d.reader); ok {
		return known
	}
	start := d.pos
	var have seen
	var z Zone
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "zone":
			d.once(&have, 0)
			z.Zone = d.intern()
		case "forZones":
			d.once(&have, 1)
			z.ForZones = d.forZones()
		default:
			d.skip()
		}
	}
	d.zones.remember(&d.reader, start, z)
	return z
}

func (d *serviceReader) forZones() []ForZone {
	var zones []ForZone
	for more := d.open('['); more && d.more(']'); {
		d.room(len(zones), d.limits.MaxNames)
		zones = append(zones, d.forZone())
	}
	return zones
}

func (r *reader) forZone() ForZone {
	var z ForZone
	var have seen
	for more := r.open('{'); more && r.more('}'); {
		switch string(r.name()) {
		case "name":
			r.once(&have, 0)
			z.Name = r.intern()
		default:
			r.skip()
		}
	}
	return z
}
