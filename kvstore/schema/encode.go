package schema

import (
	"encoding/json"
	"net/netip"
)

// Encode returns the value of the service.
func (s *Service) Encode() []byte {
	c := *s
	if c.Frontends == nil {
		c.Frontends = map[netip.Addr]PortMap{}
	}
	if c.Backends == nil {
		c.Backends = map[netip.Addr]PortMap{}
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	if c.Selector == nil {
		c.Selector = map[string]string{}
	}
	return must(json.Marshal(c))
}

// Encode returns the value of the local service.
func (s *LocalService) Encode() []byte { return must(json.Marshal(s)) }

// Encode returns the value of the node.
func (n *Node) Encode() []byte { return must(json.Marshal(n)) }

// Encode returns the value of the entry.
func (e *IPEntry) Encode() []byte { return must(json.Marshal(e)) }

// Encode returns the value of the cluster configuration.
func (c ClusterConfig) Encode() []byte { return must(json.Marshal(c)) }

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
