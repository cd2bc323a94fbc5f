package interop

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	service "github.com/cilium/cilium/pkg/clustermesh/store"
	"github.com/cilium/cilium/pkg/clustermesh/types/endpointslice"
	"github.com/cilium/cilium/pkg/identity"
	"github.com/cilium/cilium/pkg/ipcache"
	node "github.com/cilium/cilium/pkg/node/types"
	"github.com/cilium/cilium/pkg/source"
	"github.com/cilium/cilium/pkg/types"
	"github.com/cilium/cilium/pkg/u8proto"
	corev1 "k8s.io/api/core/v1"
)

// giveUp ends the wait for something that does not come.
const giveUp = 30 * time.Second

// heard is what Cilium's client passes on to the rest of an agent. It takes the
// place of the load balancer, the node manager, the policy and the ipcache, and
// is safe for concurrent use.
type heard struct {
	mu         sync.Mutex
	changed    chan struct{} // closed at the next change
	services   map[string]string
	slices     map[string]string
	nodes      map[string]string
	addresses  map[string]address
	identities map[identity.NumericIdentity]string
	deleted    []string // every deletion, as "kind name"
}

type address struct {
	text string
	id   identity.NumericIdentity
}

func newHeard() *heard {
	return &heard{
		changed: make(chan struct{}), services: map[string]string{}, slices: map[string]string{}, nodes: map[string]string{},
		addresses: map[string]address{}, identities: map[identity.NumericIdentity]string{},
	}
}

// note runs a change under the lock and wakes who waits.
func (h *heard) note(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *heard) forget(kind, name string) { h.deleted = append(h.deleted, kind+" "+name) }

// MergeExternalServiceUpdate is called for a service of another cluster.
func (h *heard) MergeExternalServiceUpdate(s *service.ClusterService) {
	h.note(func() { h.services[s.Namespace+"/"+s.Name] = text(s) })
}

// MergeExternalServiceDelete is called when another cluster's service is gone.
func (h *heard) MergeExternalServiceDelete(s *service.ClusterService) {
	h.note(func() {
		delete(h.services, s.Namespace+"/"+s.Name)
		h.forget("service", s.Namespace+"/"+s.Name)
	})
}

// NodeUpdated is called for a node of another cluster.
func (h *heard) NodeUpdated(n node.Node) { h.note(func() { h.nodes[n.Name] = text(n) }) }

// NodeDeleted is called when another cluster's node is gone.
func (h *heard) NodeDeleted(n node.Node) {
	h.note(func() { delete(h.nodes, n.Name); h.forget("node", n.Name) })
}

// Upsert is called for an address of another cluster.
func (h *heard) Upsert(ip string, host net.IP, key uint8, meta *ipcache.K8sMetadata, id ipcache.Identity) (bool, error) {
	e := endpoint{address: ip, host: host.String()}
	if meta != nil {
		e.pod, e.ports = meta.Namespace+"/"+meta.PodName, theirPortsText(meta.NamedPorts)
	}
	if key != 0 || id.Source != source.ClusterMesh {
		e.host += fmt.Sprintf(" key %d source %s", key, id.Source)
	}
	h.note(func() { h.addresses[ip] = address{e.String(), id.ID} })
	return false, nil
}

// Delete is called when an address of another cluster is gone.
func (h *heard) Delete(ip string, _ source.Source) bool {
	h.note(func() { delete(h.addresses, ip); h.forget("ip", ip) })
	return false
}

// UpdateIdentities is called with changes of identities.
func (h *heard) UpdateIdentities(added, deleted identity.IdentityMap) <-chan struct{} {
	h.note(func() {
		for id := range deleted {
			h.forget("identity", h.identities[id])
			delete(h.identities, id)
		}
		for id, labels := range added {
			var all []string
			for _, l := range labels {
				all = append(all, l.Source+":"+l.Key+"="+l.Value)
			}
			slices.Sort(all)
			h.identities[id] = strings.Join(all, ";")
		}
	})
	done := make(chan struct{})
	close(done)
	return done
}

// GetNodeSuffix is part of owning an identity allocator.
func (h *heard) GetNodeSuffix() string { return "node" }

func (h *heard) sliceUpdated(s *endpointslice.ClusterEndpointSlice) {
	h.note(func() { h.slices[s.Namespace+"/"+s.Name] = text(s) })
}

func (h *heard) sliceDeleted(namespacedName string) {
	h.note(func() { delete(h.slices, namespacedName); h.forget("slice", namespacedName) })
}

// text is a record as JSON: maps are sorted in it.
func text(record any) string {
	data, err := json.Marshal(record)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (e endpoint) String() string {
	return fmt.Sprintf("%s host=%s pod=%s ports=[%s]", e.address, e.host, e.pod, e.ports)
}

func portsText(ports []corev1.ContainerPort) string {
	var all []string
	for _, p := range ports {
		all = append(all, fmt.Sprintf("%s=%d/%s", p.Name, p.ContainerPort, p.Protocol))
	}
	return strings.Join(all, " ")
}

func theirPortsText(ports types.NamedPortMap) string {
	var all []string
	for name, p := range ports {
		all = append(all, fmt.Sprintf("%s=%d/%s", name, p.Port, u8proto.U8proto(p.Proto)))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// lines is everything that is known as sorted text.
func (h *heard) lines() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for name, s := range h.services {
		all = append(all, "service "+name+" "+s)
	}
	for name, s := range h.slices {
		all = append(all, "slice "+name+" "+s)
	}
	for name, n := range h.nodes {
		all = append(all, "node "+name+" "+n)
	}
	for _, a := range h.addresses {
		all = append(all, "ip "+a.text+" "+h.identities[a.id])
	}
	for _, labels := range h.identities {
		all = append(all, "identity "+labels)
	}
	slices.Sort(all)
	return all
}

// expected is what a client must know of a cluster.
func (c *cluster) expected(withSlices bool) []string {
	var all []string
	for _, s := range c.exportedServices() {
		all = append(all, "service "+s.Namespace+"/"+s.Name+" "+text(s))
	}
	if withSlices {
		for _, s := range c.exportedSlices() {
			all = append(all, "slice "+s.Namespace+"/"+s.Name+" "+text(s))
		}
	}
	for _, n := range c.exportedNodes() {
		all = append(all, "node "+n.Name+" "+text(n))
	}
	for _, e := range c.exportedEndpoints() {
		all = append(all, "ip "+e.String()+" "+e.labels, "identity "+e.labels)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// await waits until exactly the given lines are known, and returns how long it
// took. It ends the test when that does not happen.
func (h *heard) await(t *testing.T, want []string) time.Duration {
	t.Helper()
	begin, deadline := time.Now(), time.After(giveUp)
	for {
		h.mu.Lock()
		changed := h.changed
		h.mu.Unlock()
		has := h.lines()
		if slices.Equal(has, want) {
			return time.Since(begin)
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("Cilium's client does not know what is published after %v:\n%s", giveUp, difference(has, want))
		}
	}
}

// difference shows what is missing in sorted lines and what is beyond.
func difference(has, want []string) string {
	var out []string
	for _, line := range want {
		if _, found := slices.BinarySearch(has, line); !found {
			out = append(out, "missing: "+line)
		}
	}
	for _, line := range has {
		if _, found := slices.BinarySearch(want, line); !found {
			out = append(out, "beyond:  "+line)
		}
	}
	return strings.Join(out, "\n")
}
