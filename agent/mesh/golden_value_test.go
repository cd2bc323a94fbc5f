package mesh_test

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/clustermesh/clustermesh/agent/lb"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// parseValue makes a value of a description. Words after the key are about the
// whole record: "raw" (the body is the value), "shared=false", "affinity=A",
// "service=NAME", "managed-by=NAME", "id=N", "ports=LIST". A line of the body is
// an address with words about it: ports where the record has them per address,
// "zone=Z", "hostname=H", and the conditions "ready", "!ready" and so on; with
// "frontend" before it, it is one of the own cluster's frontends. A port is
// NAME:NUMBER/PROTOCOL.
func (p *play) parseValue(cluster string, kind schema.Kind, name lb.ServiceName, words, body []string) []byte {
	if len(words) > 0 && words[0] == "raw" {
		return []byte(strings.TrimSpace(strings.Join(body, "\n")))
	}
	about := parseWords(words)
	id := p.clusters[cluster].ID
	if text, ok := about["id"]; ok {
		id = uint32(p.number(text))
	}
	var lines []described
	for _, text := range body {
		lines = append(lines, p.parseLine(text))
	}
	switch kind {
	case schema.KindLocalService:
		return p.localValue(cluster, id, name, about, lines)
	case schema.KindService:
		return p.serviceValue(cluster, id, name, about, lines)
	}
	return p.sliceValue(cluster, id, name, about, lines)
}

// described is one line of a value's description.
type described struct {
	frontend  bool
	addresses []netip.Addr
	ports     []schema.SlicePort
	about     map[string]string
}

func parseWords(words []string) map[string]string {
	about := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		about[k] = v
	}
	return about
}

func (p *play) parseLine(text string) (d described) {
	words := strings.Fields(text)
	if words[0] == "frontend" {
		d.frontend, words = true, words[1:]
	}
	for _, a := range strings.Split(words[0], ",") {
		d.addresses = append(d.addresses, netip.MustParseAddr(a))
	}
	if len(words) > 1 && strings.Contains(words[1], ":") {
		d.ports = p.parsePorts(words[1])
	}
	d.about = parseWords(words[1:])
	return d
}

func (p *play) parsePorts(list string) (out []schema.SlicePort) {
	for _, text := range strings.Split(list, ",") {
		name, rest, ok := strings.Cut(text, ":")
		number, protocol, ok2 := strings.Cut(rest, "/")
		if !ok || !ok2 {
			p.Fatalf("bad port %q", text)
		}
		out = append(out, schema.SlicePort{Name: name, Port: uint16(p.number(number)), Protocol: schema.Protocol(protocol)})
	}
	return out
}

func (p *play) number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		p.Fatal(err)
	}
	return n
}

func (d described) condition(name string) schema.Condition {
	if _, yes := d.about[name]; yes {
		return schema.ConditionTrue
	}
	if _, no := d.about["!"+name]; no {
		return schema.ConditionFalse
	}
	return schema.ConditionUnknown
}

func (p *play) localValue(cluster string, id uint32, name lb.ServiceName, about map[string]string, lines []described) []byte {
	s := schema.LocalService{Cluster: cluster, ClusterID: id, Namespace: name.Namespace, Name: name.Name, Shared: true, Affinity: about["affinity"]}
	for _, d := range lines {
		for _, port := range d.ports {
			if d.frontend {
				s.Frontends = append(s.Frontends, schema.LocalFrontend{Address: d.addresses[0], Port: port.Port, Protocol: port.Protocol, PortName: port.Name})
				continue
			}
			ready := d.condition("ready").Or(true)
			b := schema.LocalBackend{Address: d.addresses[0], Port: port.Port, Protocol: port.Protocol, Zone: d.about["zone"],
				Ready: ready, Serving: d.condition("serving").Or(ready), Terminating: d.condition("terminating").Or(false)}
			if port.Name != "" {
				b.PortNames = []string{port.Name}
			}
			s.Backends = append(s.Backends, b)
		}
	}
	return s.Encode()
}

func (p *play) serviceValue(cluster string, id uint32, name lb.ServiceName, about map[string]string, lines []described) []byte {
	s := schema.Service{Cluster: cluster, ClusterID: id, Namespace: name.Namespace, Name: name.Name, IncludeExternal: true, Shared: about["shared"] != "false",
		Backends: map[netip.Addr]schema.PortMap{}, Hostnames: map[netip.Addr]string{}, Zones: map[netip.Addr]schema.Zone{}}
	for _, d := range lines {
		ports := schema.PortMap{}
		for _, port := range d.ports {
			ports[port.Name] = schema.L4{Protocol: port.Protocol, Port: port.Port}
		}
		a := d.addresses[0]
		s.Backends[a] = ports
		if zone := d.about["zone"]; zone != "" {
			s.Zones[a] = schema.Zone{Zone: zone, ForZones: []schema.ForZone{{Name: zone}}}
		}
		if host := d.about["hostname"]; host != "" {
			s.Hostnames[a] = host
		}
	}
	return s.Encode()
}

func (p *play) sliceValue(cluster string, id uint32, name lb.ServiceName, about map[string]string, lines []described) []byte {
	s := schema.EndpointSlice{Cluster: cluster, ClusterID: id, Namespace: name.Namespace, Name: name.Name, AddressType: schema.IPv4,
		Labels: map[string]string{managerLabel: "endpointslice-controller.k8s.io"}}
	if service, ok := about["service"]; ok {
		s.Labels[serviceLabel] = service
	}
	if manager, ok := about["managed-by"]; ok {
		s.Labels[managerLabel] = manager
	}
	if ports, ok := about["ports"]; ok {
		s.Ports = p.parsePorts(ports)
	}
	for _, d := range lines {
		if d.addresses[0].Is6() {
			s.AddressType = schema.IPv6
		}
		e := schema.Endpoint{Addresses: d.addresses, Ready: d.condition("ready"), Serving: d.condition("serving"), Terminating: d.condition("terminating"),
			Hostname: d.about["hostname"], Zone: d.about["zone"], NodeName: "node-1"}
		if e.Zone != "" {
			e.ForZones = []string{e.Zone}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return p.codec.Encode(&s)
}
