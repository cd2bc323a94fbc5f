package mesh

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/agent/lb"
)

// admitsAddress reports whether a remote cluster may name a as a backend.
func (m *Mesh) admitsAddress(c *cluster, a netip.Addr) bool {
	a = a.Unmap()
	switch {
	case !a.IsValid() || a.Zone() != "" || m.denied.has(a):
		return false
	case len(c.allow) > 0:
		return c.allow.has(a)
	}
	return len(m.pinned) == 0 || !m.pinned.has(a)
}

// AdmitsNode reports whether a remote cluster may name an address as one of its
// nodes': none of ours, none that has a meaning of its own on every node, and
// none in the ranges of another cluster's pods.
func (m *Mesh) AdmitsNode(cluster string, a netip.Addr) bool {
	c := m.clusters[cluster]
	if c == nil || c.local || !a.IsValid() || a.Zone() != "" || m.denied.has(a) {
		return false
	}
	return !m.pinned.has(a) || c.allow.has(a)
}

// addressError says why a is refused, and what to change if it should not be.
func (m *Mesh) addressError(c *cluster, name lb.ServiceName, a netip.Addr) error {
	a = a.Unmap()
	what := "backend " + a.String()
	if name != (lb.ServiceName{}) {
		what += " of " + name.String()
	}
	if p, ok := m.denied.find(a.WithZone("")); ok {
		return fmt.Errorf("%s is refused: cluster %s may not name an address of %s, which is ours or has a meaning of its own on every node", what, c.name, p)
	}
	if len(c.allow) > 0 {
		return fmt.Errorf("%s is refused: it lies in none of the ranges accepted of cluster %s, %v; add its pod CIDR to them if it is that cluster's", what, c.name, abbreviate(c.policy.Allow))
	}
	p, _ := m.pinned.find(a)
	return fmt.Errorf("%s is refused: range %s belongs to another cluster than %s; list it for that cluster too if both use it", what, p, c.name)
}

// abbreviate keeps texts about long lists short.
func abbreviate(list []netip.Prefix) []string {
	const most = 8
	var out []string
	for i, p := range list {
		if i == most {
			return append(out, fmt.Sprintf("and %d more", len(list)-most))
		}
		out = append(out, p.String())
	}
	return out
}

// admitsService says why a remote cluster may not add backends to name, or nil.
func (m *Mesh) admitsService(c *cluster, name lb.ServiceName) error {
	switch {
	case c.local:
	case slices.Contains(m.cfg.ProtectedServices, name):
		return fmt.Errorf("service %s takes no backends of cluster %s: it is protected, whatever any annotation says", name, c.name)
	case slices.Contains(m.cfg.ProtectedNamespaces, name.Namespace):
		return fmt.Errorf("service %s takes no backends of cluster %s: its namespace is protected, see --protected-namespaces", name, c.name)
	case len(c.policy.Namespaces) > 0 && !slices.Contains(c.policy.Namespaces, name.Namespace):
		return fmt.Errorf("service %s takes no backends of cluster %s: its namespace is not among those accepted of that cluster; add it to them if it should be", name, c.name)
	}
	return nil
}

// Admit says why nothing, or not the given address, is accepted of a cluster
// for a service as things stand, or nil. An empty name stands for any service,
// an invalid address is not looked at.
func (m *Mesh) Admit(cluster string, name lb.ServiceName, a netip.Addr) error {
	c := m.clusters[cluster]
	if c == nil || c.local {
		return nil
	}
	if name != (lb.ServiceName{}) {
		if err := m.admitsService(c, name); err != nil {
			return err
		}
	}
	if a.IsValid() && !m.admitsAddress(c, a) {
		return m.addressError(c, name, a)
	}
	return nil
}
