package interop

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/cilium/pkg/clustermesh/clustercfg"
	service "github.com/cilium/cilium/pkg/clustermesh/store"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/clustermesh/types/endpointslice"
	"github.com/cilium/cilium/pkg/identity/cache"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/heartbeat"
	"github.com/cilium/cilium/pkg/kvstore/store"
	node "github.com/cilium/cilium/pkg/node/store"
	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
)

// layout is one of the ways in which a Cilium cluster may publish.
type layout struct {
	mode   cmtypes.EndpointSlicesExportMode
	cached bool
}

// writer is the writing half of Cilium's exporter: its stores with leases and
// canaries, its cluster configuration and its heartbeat, all of them Cilium's.
// What it is given comes from the cluster's objects.
type writer struct {
	cluster  *cluster
	services store.SyncStore
	slices   store.SyncStore
	nodes    store.SyncStore
	written  map[string]named // by kind and key
}

// named is a key and the store that it was written to.
type named struct {
	store store.SyncStore
	key   store.Key
}

// startWriter publishes a cluster into an etcd. It ends with the test.
func (g *ground) startWriter(t *testing.T, address string, c *cluster, l layout) *writer {
	t.Helper()
	log := g.log(t)
	client := g.connect(t, log, address, admin(c.name))
	factory := store.NewFactory(log, store.MetricsProvider())
	run(t, log, baseCells(client, factory, cmtypes.ClusterInfo{ID: c.id, Name: c.name, MaxConnectedClusters: maxClusters}),
		cell.Provide(func() cmtypes.CiliumClusterConfig { return l.config(c) }),
		heartbeat.Enabled, heartbeat.Cell,
		cell.Invoke(clustercfg.RegisterEnforcer),
	)
	w := &writer{cluster: c, written: map[string]named{}}
	start := func(prefix string, options ...store.WSSOpt) store.SyncStore {
		return startStore(t, factory.NewSyncStore(c.name, client, l.prefix(prefix), options...))
	}
	w.nodes = start(node.NodeStorePrefix)
	if l.mode != cmtypes.EndpointSlicesExportModeEndpointSlicesOnly {
		w.services = start(service.ServiceStorePrefix)
	}
	if l.mode != cmtypes.EndpointSlicesExportModeServicesOnly {
		w.slices = start(endpointslice.EndpointSliceStorePrefix)
	}
	identities := start(cache.IdentitiesPath)
	addresses := start(ipcache.IPIdentitiesPath)
	w.publish(t)
	for _, s := range []store.SyncStore{w.nodes, w.services, w.slices, identities, addresses} {
		if s != nil {
			must(t, s.Synced(t.Context()))
		}
	}
	return w
}

func (l layout) prefix(p string) string {
	if l.cached {
		return kvstore.StateToCachePrefix(p)
	}
	return p
}

func (l layout) config(c *cluster) cmtypes.CiliumClusterConfig {
	return cmtypes.CiliumClusterConfig{ID: c.id, Capabilities: cmtypes.CiliumClusterConfigCapabilities{
		SyncedCanaries: true, Cached: l.cached, MaxConnectedClusters: maxClusters, EndpointSlicesExportMode: l.mode,
	}}
}

// startStore runs a store until the test ends.
func startStore(t *testing.T, s store.SyncStore) store.SyncStore {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

// publish gives Cilium's stores what the cluster's objects mean now.
func (w *writer) publish(t *testing.T) {
	t.Helper()
	now := map[string]named{}
	for _, s := range w.cluster.exportedServices() {
		w.put(now, "service", w.services, s)
	}
	for _, s := range w.cluster.exportedSlices() {
		w.put(now, "slice", w.slices, s)
	}
	for _, n := range w.cluster.exportedNodes() {
		w.put(now, "node", w.nodes, n)
	}
	for id, n := range w.written {
		if _, still := now[id]; !still {
			must(t, n.store.DeleteKey(t.Context(), n.key))
		}
	}
	for _, n := range now {
		must(t, n.store.UpsertKey(t.Context(), n.key))
	}
	w.written = now
}

func (w *writer) put(into map[string]named, kind string, s store.SyncStore, k store.Key) {
	if s != nil {
		into[kind+" "+k.GetKeyName()] = named{s, k}
	}
}

// baseCells is what every part of Cilium that runs in a hive needs here.
func baseCells(client kvstore.Client, factory store.Factory, info cmtypes.ClusterInfo) cell.Cell {
	return cell.Group(
		job.Cell,
		cell.SimpleHealthCell,
		cell.Provide(
			func() kvstore.Client { return client },
			func() store.Factory { return factory },
			func() cmtypes.ClusterInfo { return info },
			func(r job.Registry, h cell.Health, log *slog.Logger) job.Group {
				return r.NewGroup(h, job.WithLogger(log))
			},
		),
	)
}

// run runs cells until the test ends.
func run(t *testing.T, log *slog.Logger, cells ...cell.Cell) {
	t.Helper()
	h := hive.New(slices.Clone(cells)...)
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	must(t, h.Start(log, ctx))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), startLimit)
		defer cancel()
		must(t, h.Stop(log, ctx))
	})
}
