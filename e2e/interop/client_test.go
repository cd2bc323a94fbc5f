package interop

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/cilium/api/v1/models"
	"github.com/cilium/cilium/pkg/clustermesh"
	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/clustermesh/observer"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/clustermesh/types/endpointslice"
	"github.com/cilium/cilium/pkg/clustermesh/wait"
	"github.com/cilium/cilium/pkg/defaults"
	"github.com/cilium/cilium/pkg/identity/cache"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/cilium/pkg/metrics"
	"github.com/cilium/hive/hivetest"
)

// leaseTTL is the shortest that Cilium takes: a lost lease is then noticed within
// seconds.
const leaseTTL = defaults.LockLeaseTTL

// maxClusters is the limit of the mesh, the same for all.
const maxClusters = defaults.MaxConnectedClusters

// agentSide is the part of a Cilium agent that reads other clusters, all of it
// Cilium's, and what it passes on.
type agentSide struct {
	*heard
	mesh   *clustermesh.ClusterMesh
	config string // directory with one file per cluster
}

// startAgentSide starts it as the agent of cluster with the id, whose own etcd
// keeps the identities. It ends with the test.
func (g *ground) startAgentSide(t *testing.T, cluster string, id uint32) *agentSide {
	t.Helper()
	log := g.log(t)
	a := &agentSide{heard: newHeard(), config: g.subdir(t, "clustermesh")}
	identities := cache.NewCachingIdentityAllocator(log, a.heard, cache.NewTestAllocatorConfig())
	<-identities.InitIdentityAllocator(nil, g.connect(t, log, g.startEtcd(t, cluster), admin(cluster)))
	t.Cleanup(identities.Close)
	factory := store.NewFactory(log, store.MetricsProvider())
	a.mesh = clustermesh.NewClusterMesh(hivetest.Lifecycle(t), clustermesh.Configuration{
		Config:                common.Config{ClusterMeshConfig: a.config},
		ServiceModeV2Config:   cmtypes.DefaultServiceModeV2Config,
		TimeoutConfig:         wait.TimeoutConfigDefault,
		ClusterInfo:           cmtypes.ClusterInfo{ID: id, Name: cluster, MaxConnectedClusters: maxClusters},
		RemoteClientFactory:   common.DefaultRemoteClientFactory(clientConfig()),
		ServiceMerger:         a.heard,
		NodeObserver:          a.heard,
		RemoteIdentityWatcher: identities,
		IPCache:               a.heard,
		ClusterIDsManager:     clustermesh.NewClusterMeshUsedIDs(id),
		ObserverFactories:     []observer.Factory{sliceFactory(factory, a.heard)},
		Metrics:               clustermesh.NewMetrics(),
		CommonMetrics:         common.MetricsProvider(metrics.SubsystemClusterMesh)(),
		StoreFactory:          factory,
		FeatureMetrics:        noFeatureMetrics{},
		Logger:                log,
	})
	return a
}

// clientConfig is what an agent's flags say when nobody sets them.
func clientConfig() kvstore.Config {
	return kvstore.Config{
		KVStoreLeaseTTL:                   leaseTTL,
		KVstoreMaxConsecutiveQuorumErrors: defaults.KVstoreMaxConsecutiveQuorumErrors,
	}
}

// add connects to a cluster.
func (a *agentSide) add(t *testing.T, cluster, content string) {
	t.Helper()
	replace(t, filepath.Join(a.config, cluster), content)
}

// status is what the agent says of its only other cluster.
func (a *agentSide) status() *models.RemoteCluster {
	if all := a.mesh.Status().Clusters; len(all) == 1 {
		return all[0]
	}
	return &models.RemoteCluster{Synced: &models.RemoteClusterSynced{}}
}

// awaitStatus waits until the agent says what is wanted of its other cluster,
// and returns how long it took.
func (a *agentSide) awaitStatus(t *testing.T, want func(*models.RemoteCluster) bool) time.Duration {
	t.Helper()
	begin, deadline := time.Now(), time.After(giveUp)
	for !want(a.status()) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			t.Fatalf("Cilium's agent says after %v: %s", giveUp, text(a.status()))
		}
	}
	return time.Since(begin)
}

func isReady(r *models.RemoteCluster) bool { return r.Ready }

// noFeatureMetrics drops what would count features.
type noFeatureMetrics struct{}

func (noFeatureMetrics) AddClusterMeshConfig(string, string) {}
func (noFeatureMetrics) DelClusterMeshConfig(string, string) {}

// sliceObserver reads endpoint slices where a cluster announces them. Cilium's
// agent of this release reads them with the same store and type and drops what
// it read, and that only in a mode that is off by default.
type sliceObserver struct {
	cluster string
	id      uint32
	enabled atomic.Bool
	synced  func()
	store   store.WatchStore
}

func sliceFactory(factory store.Factory, h *heard) observer.Factory {
	return func(cluster string, onSync func()) observer.Observer {
		o := &sliceObserver{cluster: cluster, synced: onSync}
		o.store = factory.NewWatchStore(cluster,
			endpointslice.KeyCreator(
				endpointslice.ClusterNameValidator(cluster),
				endpointslice.NamespacedNameValidator(),
				endpointslice.ClusterIDValidator(&o.id),
			),
			sliceEvents{h},
			store.RWSWithOnSyncCallback(func(context.Context) { onSync() }),
		)
		return o
	}
}

// Name names the observer in the agent's status.
func (o *sliceObserver) Name() observer.Name { return "slices" }

// Status is part of the agent's readiness.
func (o *sliceObserver) Status() observer.Status {
	return observer.Status{Enabled: o.enabled.Load(), Synced: o.store.Synced(), Entries: o.store.NumEntries()}
}

// Register is called at every connection, before anything is watched.
func (o *sliceObserver) Register(mgr store.WatchStoreManager, backend kvstore.BackendOperations, cfg cmtypes.CiliumClusterConfig) {
	o.id = cfg.ID
	o.enabled.Store(cfg.Capabilities.EndpointSlicesExportMode != cmtypes.EndpointSlicesExportModeServicesOnly)
	if !o.enabled.Load() {
		o.synced()
		return
	}
	prefix := endpointslice.EndpointSliceStorePrefix
	if cfg.Capabilities.Cached {
		prefix = kvstore.StateToCachePrefix(prefix)
	}
	mgr.Register(prefix, func(ctx context.Context) { o.store.Watch(ctx, backend, kvstore.JoinKey(prefix, o.cluster)) })
}

// Drain is called when a cluster is removed.
func (o *sliceObserver) Drain() { o.store.Drain() }

// Revoke is called when contact was lost for too long.
func (o *sliceObserver) Revoke() { o.store.Drain() }

// sliceEvents passes slices on.
type sliceEvents struct{ heard *heard }

// OnUpdate is called for a slice that came or changed.
func (e sliceEvents) OnUpdate(k store.Key) {
	if s, ok := k.(*endpointslice.ValidatingClusterEndpointSlice); ok {
		e.heard.sliceUpdated(&s.ClusterEndpointSlice)
	}
}

// OnDelete is called for a slice that is gone.
func (e sliceEvents) OnDelete(k store.NamedKey) {
	if s, ok := k.(*endpointslice.ValidatingClusterEndpointSlice); ok {
		e.heard.sliceDeleted(s.Namespace + "/" + s.Name)
	}
}
