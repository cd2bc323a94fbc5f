package interop

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/clustermesh/kvstoremesh"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	"github.com/cilium/hive/cell"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// startKVStoreMesh runs Cilium's KVStoreMesh of a cluster: it mirrors the
// clusters whose files are given by name into the cluster's etcd. It ends with
// the test.
func (g *ground) startKVStoreMesh(t *testing.T, etcd string, c *cluster, files map[string]string) {
	t.Helper()
	log, dir := g.log(t), g.subdir(t, "kvstoremesh")
	for name, content := range files {
		replace(t, filepath.Join(dir, name), content)
	}
	info := cmtypes.ClusterInfo{ID: c.id, Name: c.name, MaxConnectedClusters: maxClusters}
	client := g.connect(t, log, etcd, admin(c.name))
	run(t, log, baseCells(client, store.NewFactory(log, store.MetricsProvider()), info),
		cell.Provide(
			func() kvstoremesh.Config { return kvstoremesh.DefaultConfig },
			func() cmtypes.ServiceModeV2Config { return cmtypes.DefaultServiceModeV2Config },
			clientConfig,
		),
		kvstoremesh.Cell,
		cell.DecorateAll(func(c common.Config) common.Config {
			c.ClusterMeshConfig = dir
			return c
		}),
		cell.Invoke(func(*kvstoremesh.KVStoreMesh) {}),
	)
}

// mirrored maps the prefixes of an exporter to those of a mirror of cluster
// east.
func mirrored() map[string]string {
	return map[string]string{
		"cilium/state/services/v1/east/":       "cilium/cache/services/v1/east/",
		"cilium/state/endpointslices/v1/east/": "cilium/cache/endpointslices/v1/east/",
		"cilium/state/nodes/v1/east/":          "cilium/cache/nodes/v1/east/",
		"cilium/state/identities/v1/id/":       "cilium/cache/identities/v1/east/id/",
		"cilium/state/ip/v1/default/":          "cilium/cache/ip/v1/east/",
	}
}

// awaitMirror waits until the mirror of east is what its exporter holds, keys
// apart, and returns the number of keys.
func (g *ground) awaitMirror(t *testing.T, source *apiserver, etcd string) int {
	t.Helper()
	from, to := g.etcdClient(t, source.listen, "remote-west"), g.etcdClient(t, etcd, "local-west")
	defer from.Close()
	defer to.Close()
	deadline := time.After(giveUp)
	for {
		var want, has []string
		for state, cache := range mirrored() {
			want = append(want, list(t, from, state, cache)...)
			has = append(has, list(t, to, cache, cache)...)
		}
		slices.Sort(want)
		slices.Sort(has)
		if slices.Equal(has, want) {
			return len(has)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("KVStoreMesh's mirror is not what we publish after %v:\n%s", giveUp, difference(has, want))
		}
	}
}

// list is what is below a prefix, as lines that begin with another prefix.
func list(t *testing.T, client *clientv3.Client, prefix, as string) []string {
	t.Helper()
	answer, err := client.Get(t.Context(), prefix, clientv3.WithPrefix())
	must(t, err)
	var lines []string
	for _, kv := range answer.Kvs {
		lines = append(lines, as+strings.TrimPrefix(string(kv.Key), prefix)+" "+string(kv.Value))
	}
	return lines
}

// announced is where an agent reads from that sees what our apiserver says of
// its cluster.
func (g *ground) announced(t *testing.T, a *apiserver) format {
	t.Helper()
	client := g.etcdClient(t, a.listen, "remote-west")
	defer client.Close()
	answer, err := client.Get(t.Context(), "cilium/cluster-config/east")
	must(t, err)
	var config cmtypes.CiliumClusterConfig
	must(t, json.Unmarshal(answer.Kvs[0].Value, &config))
	if config.Capabilities.EndpointSlicesExportMode == cmtypes.EndpointSlicesExportModeServicesOnly {
		return fromServices
	}
	return fromSlices
}

// heartbeatPath is where every exporter shows that it lives.
const heartbeatPath = kvstore.HeartbeatPath
