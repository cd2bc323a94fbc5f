package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// fakeCluster is a cluster's store with its apiserver or, if it is cached, with
// a relay.
type fakeCluster struct {
	*kvstore.Memory
	name  string
	id    uint32
	local bool
	shape
	down atomic.Bool
	// adjust changes what the own cluster says of its services, or nil.
	adjust func(*schema.LocalService)
	said   map[string]map[string]bool // service -> backends ("ip:port"), nil entry when absent
	codec  schema.SliceCodec
	keys   map[string]bool // written below the kinds' prefixes
	stamp  int64           // of the newest marker
}

// shape is what a cluster publishes and where.
type shape struct {
	mode   string
	cached bool
}

func newFakeCluster(name string, id uint32, l shape) *fakeCluster {
	f := &fakeCluster{Memory: kvstore.NewMemory(), name: name, id: id, shape: l, said: map[string]map[string]bool{}, keys: map[string]bool{}}
	f.publishAll()
	return f
}

func newLocalCluster(name string, id uint32) *fakeCluster {
	f := &fakeCluster{Memory: kvstore.NewMemory(), name: name, id: id, local: true, said: map[string]map[string]bool{}, keys: map[string]bool{}}
	f.publishAll()
	return f
}

func (f *fakeCluster) kinds() []schema.Kind {
	switch {
	case f.local:
		return []schema.Kind{schema.KindLocalService}
	case f.mode == "":
		return []schema.Kind{schema.KindService}
	case f.mode == schema.ModeEndpointSlicesOnly:
		return []schema.Kind{schema.KindEndpointSlice}
	}
	return []schema.Kind{schema.KindService, schema.KindEndpointSlice}
}

// put writes a key of the cluster's shape, or deletes it without a value.
func (f *fakeCluster) put(key string, value []byte) {
	if f.cached {
		key = strings.Replace(key, "cilium/state/", "cilium/cache/", 1)
	}
	f.write(key, value)
	delete(f.keys, key)
	if value != nil && key != schema.ClusterConfigKey(f.name) && key != schema.HeartbeatKey {
		f.keys[key] = true
	}
}

func (f *fakeCluster) write(key string, value []byte) {
	if err := f.Apply(context.Background(), []kvstore.Op{{Key: key, Value: value, Delete: value == nil}}); err != nil {
		panic(err)
	}
}

// publishAll writes everything as a starting apiserver does: the canaries last.
func (f *fakeCluster) publishAll() {
	config := schema.ClusterConfig{ID: f.id, Capabilities: schema.Capabilities{
		SyncedCanaries: true, MaxConnectedClusters: 255, EndpointSlicesExportMode: f.mode, Cached: f.cached,
	}}
	f.ReportProgress(schema.MarkerPrefix(f.name))
	f.put(schema.ClusterConfigKey(f.name), config.Encode())
	f.put(schema.HeartbeatKey, []byte("now"))
	for service := range f.said {
		f.publish(service)
	}
	for _, kind := range f.kinds() {
		f.put(schema.CanaryKey(kind, f.name, false), []byte("now"))
	}
}

// move publishes everything in another shape and withdraws the rest
// afterwards, as a relay does when the cluster behind it changes.
func (f *fakeCluster) move(to shape) {
	old := f.keys
	f.shape, f.keys = to, map[string]bool{}
	f.publishAll()
	for key := range old {
		if !f.keys[key] {
			f.write(key, nil)
		}
	}
}

// restart loses everything and publishes it anew, perhaps in another shape.
func (f *fakeCluster) restart(as shape) {
	f.NewLife()
	f.shape, f.keys = as, map[string]bool{}
	f.publishAll()
}

func (f *fakeCluster) publish(service string) {
	for _, kind := range f.kinds() {
		switch kind {
		case schema.KindLocalService:
			f.put(schema.LocalServiceKey(f.name, "ns", service), f.localRecord(service))
		case schema.KindService:
			f.put(schema.ServiceKey(f.name, "ns", service), f.serviceRecord(service))
		case schema.KindEndpointSlice:
			f.publishSlices(service)
		}
	}
}

func (f *fakeCluster) serviceRecord(service string) []byte {
	backends, ok := f.said[service]
	if !ok {
		return nil
	}
	s := schema.Service{Cluster: f.name, ClusterID: f.id, Namespace: "ns", Name: service, Shared: true, IncludeExternal: true,
		Backends: map[netip.Addr]schema.PortMap{}}
	for b := range backends {
		ap := netip.MustParseAddrPort(b)
		s.Backends[ap.Addr()] = schema.PortMap{"": {Protocol: schema.TCP, Port: ap.Port()}}
	}
	return s.Encode()
}

// slicesPerService is into how many slices a service is cut, by address.
const slicesPerService = 2

// publishSlices writes each slice that has endpoints, and the first one of a
// service without any, as Kubernetes does.
func (f *fakeCluster) publishSlices(service string) {
	backends, ok := f.said[service]
	var cut [slicesPerService]map[uint16][]schema.Endpoint
	for b := range backends {
		ap := netip.MustParseAddrPort(b)
		at := &cut[int(ap.Addr().AsSlice()[3])%slicesPerService]
		if *at == nil {
			*at = map[uint16][]schema.Endpoint{}
		}
		(*at)[ap.Port()] = append((*at)[ap.Port()], schema.Endpoint{Addresses: []netip.Addr{ap.Addr()}})
	}
	for i, ports := range cut {
		name := fmt.Sprintf("%s-%d", service, i)
		if !ok || len(ports) == 0 && i > 0 {
			f.put(schema.EndpointSliceKey(f.name, "ns", name), nil)
			continue
		}
		f.put(schema.EndpointSliceKey(f.name, "ns", name), f.sliceRecord(service, name, ports))
	}
}

func (f *fakeCluster) sliceRecord(service, name string, ports map[uint16][]schema.Endpoint) []byte {
	s := &schema.EndpointSlice{Cluster: f.name, ClusterID: f.id, Namespace: "ns", Name: name, AddressType: schema.IPv4,
		Labels: map[string]string{"kubernetes.io/service-name": service}}
	for port, endpoints := range ports {
		if len(ports) > 1 {
			panic("backends of one service have one port here")
		}
		s.Ports, s.Endpoints = []schema.SlicePort{{Protocol: schema.TCP, Port: port}}, endpoints
	}
	slices.SortFunc(s.Endpoints, func(a, b schema.Endpoint) int { return a.Addresses[0].Compare(b.Addresses[0]) })
	return f.codec.Encode(s)
}

func (f *fakeCluster) localRecord(service string) []byte {
	backends, ok := f.said[service]
	if !ok {
		return nil
	}
	s := schema.LocalService{Cluster: f.name, ClusterID: f.id, Namespace: "ns", Name: service, Shared: true,
		Frontends: []schema.LocalFrontend{{Address: clusterIP(service), Port: 80, Protocol: schema.TCP}}}
	for b := range backends {
		ap := netip.MustParseAddrPort(b)
		s.Backends = append(s.Backends, schema.LocalBackend{Address: ap.Addr(), Port: ap.Port(), Protocol: schema.TCP, Ready: true, Serving: true})
	}
	slices.SortFunc(s.Backends, func(a, b schema.LocalBackend) int { return a.Address.Compare(b.Address) })
	if f.adjust != nil {
		f.adjust(&s)
	}
	return s.Encode()
}

func clusterIP(service string) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 96, 0, service[len(service)-1]})
}

// memoryConn is a connection to a fakeCluster. Like a real one it is bound to
// the life of the store that answered it first.
type memoryConn struct {
	*fakeCluster
	life atomic.Uint64
}

var errDown = errors.New("connection refused")

func (c *memoryConn) admit(life uint64) error {
	if c.life.CompareAndSwap(0, life) || c.life.Load() == life {
		return nil
	}
	return kvstore.ErrLifeChanged
}

func (c *memoryConn) Range(ctx context.Context, start, end string, limit, revision int64) (kvstore.Range, error) {
	if c.down.Load() {
		return kvstore.Range{}, errDown
	}
	r, err := c.Memory.Range(ctx, start, end, limit, revision)
	if err == nil {
		err = c.admit(r.Life)
	}
	return r, err
}

func (c *memoryConn) Watch(ctx context.Context, start, end string, revision int64, fn func(kvstore.Changes) error) error {
	return c.Memory.Watch(ctx, start, end, revision, func(changes kvstore.Changes) error {
		if err := c.admit(changes.Life); err != nil {
			return err
		}
		return fn(changes)
	})
}

func (c *memoryConn) Endpoint() string { return "memory" }
func (c *memoryConn) Close() error     { return nil }
