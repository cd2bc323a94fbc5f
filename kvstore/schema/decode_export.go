package schema

// DecodeServiceExport decodes the service export at key, which lies below the
// prefix of [KindServiceExport] for src. The entry must name src's cluster and
// the namespace and name in its key; the format has no cluster id. Where labels
// or annotations are empty under their name, the capitalised name is read, as
// Cilium up to v1.18 writes it. The error is an *[Error]. The result is the
// caller's alone.
func DecodeServiceExport(src Source, key string, value []byte, l Limits) (*ServiceExport, error) {
	namespace, name, err := ParseServiceKey(KindServiceExport, src.Cluster, src.Cached, key)
	if err != nil {
		return nil, err
	}
	d := exportReader{reader: newReader(key, value, l.MaxValueBytes), limits: l}
	e := &ServiceExport{}
	d.export(src, namespace, name, e)
	if err := d.result(); err != nil {
		return nil, err
	}
	if len(e.Labels) == 0 {
		e.Labels = d.oldLabels
	}
	if len(e.Annotations) == 0 {
		e.Annotations = d.oldAnnotations
	}
	return e, nil
}

type exportReader struct {
	reader
	limits                    Limits
	oldLabels, oldAnnotations map[string]string
}

func (d *exportReader) export(src Source, namespace, name string, e *ServiceExport) {
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "cluster":
			d.once(&have, 0)
			e.Cluster = d.exact(src.Cluster, "the name of this connection's cluster")
		case "namespace":
			d.once(&have, 1)
			e.Namespace = d.exact(namespace, "as in the key")
		case "name":
			d.once(&have, 2)
			e.Name = d.exact(name, "as in the key")
		case "exportCreationTimestamp":
			d.once(&have, 3)
			e.Created = d.created()
		case "type":
			d.once(&have, 4)
			e.Type = d.oneOf(exportTypes()...)
		case "sessionAffinity":
			d.once(&have, 5)
			e.SessionAffinity = d.oneOf(sessionAffinities()...)
		case "ports":
			d.once(&have, 6)
			e.Ports = d.exportPorts()
		default:
			d.optional(&have, e)
		}
	}
	d.require(have, "cluster", "namespace", "name", "exportCreationTimestamp", "type", "sessionAffinity")
}

// optional reads the members that an exporter may leave out.
func (d *exportReader) optional(have *seen, e *ServiceExport) {
	switch string(d.path[d.depth]) {
	case "sessionAffinityConfig":
		d.once(have, 7)
		e.SessionAffinitySeconds = d.affinityConfig()
	case "ipFamilies":
		d.once(have, 8)
		e.IPFamilies = d.families()
	case "internalTrafficPolicy":
		d.once(have, 9)
		e.InternalTrafficPolicy = d.oneOf(trafficPolicies()...)
	case "trafficDistribution":
		d.once(have, 10)
		e.TrafficDistribution = d.oneOf(trafficDistributions()...)
	default:
		d.metadata(have, e)
	}
}

// metadata reads labels and annotations under their present and former names.
func (d *exportReader) metadata(have *seen, e *ServiceExport) {
	switch string(d.path[d.depth]) {
	case "labels":
		d.once(have, 11)
		e.Labels = d.someTexts()
	case "annotations":
		d.once(have, 12)
		e.Annotations = d.someTexts()
	case "Labels":
		d.once(have, 13)
		d.oldLabels = d.someTexts()
	case "Annotations":
		d.once(have, 14)
		d.oldAnnotations = d.someTexts()
	default:
		d.skip()
	}
}

// someTexts reads an object of strings, nil if it is empty.
func (d *exportReader) someTexts() map[string]string {
	m := d.texts(d.limits.MaxNames)
	if len(m) == 0 {
		return nil
	}
	return m
}

func (d *exportReader) created() int64 {
	text := d.text()
	t, ok := parseTime(text)
	if !ok || !isExportTime(t) {
		d.fail(excerpt(text), timeReason)
	}
	return t
}

func (d *exportReader) exportPorts() []ExportPort {
	var list []ExportPort
	for more := d.open('['); more && d.more(']'); {
		d.room(len(list), d.limits.MaxPorts)
		list = append(list, d.exportPort())
	}
	return list
}

// exportPort reads a port; an absent protocol is TCP, as in Kubernetes.
func (d *exportReader) exportPort() ExportPort {
	p := ExportPort{Protocol: TCP}
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "port":
			d.once(&have, 0)
			p.Port = d.port()
		case "name":
			d.once(&have, 1)
			p.Name = d.intern()
		case "protocol":
			d.once(&have, 2)
			p.Protocol = d.protocol()
		case "appProtocol":
			d.once(&have, 3)
			p.AppProtocol = d.intern()
		default:
			d.skip()
		}
	}
	d.require(have, "port")
	return p
}

// families reads the IP families; there are only two, so a longer list repeats
// itself.
func (d *exportReader) families() []IPFamily {
	var list []IPFamily
	for more := d.open('['); more && d.more(']'); {
		d.room(len(list), 2)
		list = append(list, IPFamily(d.oneOf(string(IPv4), string(IPv6))))
	}
	return list
}

func (d *exportReader) affinityConfig() (seconds uint32) {
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		if string(d.name()) != "clientIP" {
			d.skip()
			continue
		}
		d.once(&have, 0)
		seconds = d.clientIP()
	}
	return seconds
}

func (d *exportReader) clientIP() (seconds uint32) {
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		if string(d.name()) != "timeoutSeconds" {
			d.skip()
			continue
		}
		d.once(&have, 0)
		seconds = uint32(d.uint(1<<31 - 1))
	}
	return seconds
}
