package schema

import "slices"

// The values of members of [LocalService] that choose a behaviour.
const (
	AffinityLocal           = "local"
	AffinityRemote          = "remote"
	SessionAffinityClientIP = "ClientIP"
	TrafficPolicyLocal      = "Local"
)

// DecodeLocalService decodes the local service at key, under the same rules as
// [DecodeService]. Frontends and backends come out sorted by address, port and
// protocol; two entries for one of those are refused. MaxFrontends and
// MaxBackends bound distinct addresses, MaxPorts the entries of each. The
// error is an *[Error]. Members that are not known are skipped, so that agents and
// apiservers of different versions understand each other.
//
// The result is the caller's, except that equal lists of names of different
// backends may be one slice: they must not be modified.
func DecodeLocalService(src Source, key string, value []byte, l Limits) (*LocalService, error) {
	namespace, name, err := ParseServiceKey(KindLocalService, src.Cluster, false, key)
	if err != nil {
		return nil, err
	}
	d := localReader{reader: newReader(key, value, l.MaxValueBytes), limits: l}
	s := &LocalService{}
	d.service(src, namespace, name, s)
	d.arrange(s)
	if err := d.result(); err != nil {
		return nil, err
	}
	return s, nil
}

type localReader struct {
	reader
	limits Limits
	lists  recent[[]string]
}

func (d *localReader) service(src Source, namespace, name string, s *LocalService) {
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "cluster":
			d.once(&have, 0)
			s.Cluster = d.exact(src.Cluster, "the name of this connection's cluster")
		case "namespace":
			d.once(&have, 1)
			s.Namespace = d.exact(namespace, "as in the key")
		case "name":
			d.once(&have, 2)
			s.Name = d.exact(name, "as in the key")
		case "clusterID":
			d.once(&have, 3)
			s.ClusterID = d.clusterID(src)
		case "frontends":
			d.once(&have, 4)
			s.Frontends = d.frontends()
		case "backends":
			d.once(&have, 5)
			s.Backends = d.backends()
		default:
			d.policy(&have, s)
		}
	}
	d.require(have, "cluster", "namespace", "name", "clusterID")
}

// policy reads the members that say how the service is balanced.
func (d *localReader) policy(have *seen, s *LocalService) {
	switch string(d.path[d.depth]) {
	case "shared":
		d.once(have, 6)
		s.Shared = d.flag()
	case "affinity":
		d.once(have, 7)
		s.Affinity = d.oneOf("", AffinityLocal, AffinityRemote)
	case "sessionAffinity":
		d.once(have, 8)
		s.SessionAffinity = d.oneOf("", SessionAffinityClientIP)
	case "sessionAffinitySeconds":
		d.once(have, 9)
		s.SessionAffinitySeconds = uint32(d.uint(1<<32 - 1))
	case "internalTrafficPolicy":
		d.once(have, 10)
		s.InternalTrafficPolicy = d.oneOf("", TrafficPolicyLocal)
	case "trafficDistribution":
		d.once(have, 11)
		s.TrafficDistribution = d.intern()
	case "headless":
		d.once(have, 12)
		s.Headless = d.flag()
	case "policy":
		d.once(have, 13)
		s.Policy = orNone(d.texts(d.limits.MaxNames))
	default:
		d.outside(have, s)
	}
}

// outside reads the members about clients outside the cluster.
func (d *localReader) outside(have *seen, s *LocalService) {
	switch string(d.path[d.depth]) {
	case "externalTrafficPolicy":
		d.once(have, 14)
		s.ExternalTrafficPolicy = d.oneOf("", TrafficPolicyLocal)
	case "nodePorts":
		d.once(have, 15)
		s.NodePorts = d.nodePorts()
	case "externalFrontends":
		d.once(have, 16)
		s.ExternalFrontends = d.frontends()
	case "restricted":
		d.once(have, 17)
		s.Restricted = d.flag()
	default:
		d.skip()
	}
}

// orNone makes an empty map and an absent one the same.
func orNone(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}

func (d *localReader) frontends() []LocalFrontend {
	var list []LocalFrontend
	for more := d.open('['); more && d.more(']'); {
		list = append(list, d.frontend())
	}
	return list
}

func (d *localReader) frontend() LocalFrontend {
	var f LocalFrontend
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "address":
			d.once(&have, 0)
			f.Address = d.addr(d.text())
		case "port":
			d.once(&have, 1)
			f.Port = d.port()
		case "protocol":
			d.once(&have, 2)
			f.Protocol = d.protocol()
		case "portName":
			d.once(&have, 3)
			f.PortName = d.intern()
		case "external":
			d.once(&have, 4)
			f.External = d.flag()
		default:
			d.skip()
		}
	}
	d.require(have, "address", "port", "protocol")
	return f
}

func (d *localReader) nodePorts() []LocalNodePort {
	var list []LocalNodePort
	for more := d.open('['); more && d.more(']'); {
		d.room(len(list), d.limits.MaxPorts)
		list = append(list, d.nodePort())
	}
	return list
}

func (d *localReader) nodePort() LocalNodePort {
	var p LocalNodePort
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "port":
			d.once(&have, 0)
			p.Port = d.port()
		case "protocol":
			d.once(&have, 1)
			p.Protocol = d.protocol()
		case "portName":
			d.once(&have, 2)
			p.PortName = d.intern()
		default:
			d.skip()
		}
	}
	d.require(have, "port", "protocol")
	return p
}

func (d *localReader) backends() []LocalBackend {
	var list []LocalBackend
	open := d.open('[')
	for start := d.pos; open && d.more(']'); {
		b := d.backend()
		if list == nil {
			list = make([]LocalBackend, 0, d.expect(start, d.limits.MaxBackends))
		}
		list = append(list, b)
	}
	return list
}

func (d *localReader) backend() LocalBackend {
	var b LocalBackend
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "address":
			d.once(&have, 0)
			b.Address = d.addr(d.text())
		case "port":
			d.once(&have, 1)
			b.Port = d.port()
		case "protocol":
			d.once(&have, 2)
			b.Protocol = d.protocol()
		default:
			d.endpoint(&have, &b)
		}
	}
	d.require(have, "address", "port", "protocol")
	return b
}

// endpoint reads the members that describe a backend's state and place.
func (d *localReader) endpoint(have *seen, b *LocalBackend) {
	switch string(d.path[d.depth]) {
	case "portNames":
		d.once(have, 3)
		b.PortNames = d.names()
	case "ready":
		d.once(have, 4)
		b.Ready = d.flag()
	case "serving":
		d.once(have, 5)
		b.Serving = d.flag()
	case "terminating":
		d.once(have, 6)
		b.Terminating = d.flag()
	case "zone":
		d.once(have, 7)
		b.Zone = d.intern()
	case "forZones":
		d.once(have, 8)
		b.ForZones = d.names()
	case "node":
		d.once(have, 9)
		b.Node = d.intern()
	default:
		d.skip()
	}
}

// names reads a set of non-empty names and sorts it.
func (d *localReader) names() []string {
	if known, ok := d.lists.repeated(&d.reader); ok {
		return known
	}
	start := d.pos
	var list []string
	for more := d.open('['); more && d.more(']'); {
		d.room(len(list), d.limits.MaxNames)
		name := d.intern()
		if name == "" {
			d.fail("", "names in this list may not be empty")
		}
		list = append(list, name)
	}
	slices.Sort(list)
	list = slices.Clip(slices.Compact(list))
	d.lists.remember(&d.reader, start, list)
	return list
}

// arrange sorts what must be sorted and checks what can only be seen then.
func (d *localReader) arrange(s *LocalService) {
	if d.err != nil {
		return
	}
	sortIfNeeded(s.Frontends, compareFrontends)
	sortIfNeeded(s.Backends, compareBackends)
	sortIfNeeded(s.NodePorts, compareNodePorts)
	sortIfNeeded(s.ExternalFrontends, compareFrontends)
	checkSorted(d, "frontends", s.Frontends, LocalFrontend.l4, d.limits.MaxFrontends)
	checkSorted(d, "backends", s.Backends, LocalBackend.l4, d.limits.MaxBackends)
	checkSorted(d, "nodePorts", s.NodePorts, LocalNodePort.l4, 1)
	checkSorted(d, "externalFrontends", s.ExternalFrontends, LocalFrontend.l4, d.limits.MaxFrontends)
}

func sortIfNeeded[T any](list []T, compare func(a, b T) int) {
	if !slices.IsSortedFunc(list, compare) {
		slices.SortFunc(list, compare)
	}
}

func compareFrontends(a, b LocalFrontend) int { return a.l4().compare(b.l4()) }

func compareNodePorts(a, b LocalNodePort) int { return a.l4().compare(b.l4()) }

func compareBackends(a, b LocalBackend) int { return a.l4().compare(b.l4()) }
