package interop

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/cilium/pkg/kvstore"
	etcdinit "github.com/cilium/cilium/pkg/kvstore/etcdinit"
	"github.com/clustermesh/clustermesh/certs"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// log is a log of Cilium's code, in a file.
func (g *ground) log(t *testing.T) *slog.Logger {
	t.Helper()
	path := filepath.Join(g.dir, "log", strings.ReplaceAll(t.Name(), "/", "-")+"-cilium.log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	t.Cleanup(func() { file.Close() })
	return slog.New(slog.NewTextHandler(file, nil))
}

// startEtcd starts an etcd with the users and roles that Cilium makes for a
// cluster, as its clustermesh-apiserver runs one, and returns its address. It
// ends with the test.
func (g *ground) startEtcd(t *testing.T, cluster string) string {
	t.Helper()
	address := g.listen()
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = cluster, g.subdir(t, "etcd-"+strings.TrimPrefix(address, "127.0.0.1:"))
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = urls(t, "https://"+address), urls(t, "https://"+address)
	peer := urls(t, "http://"+g.listen())
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = peer, peer
	cfg.InitialCluster, cfg.InitialClusterToken = cluster+"="+peer[0].String(), t.Name()
	cfg.ClientTLSInfo = transport.TLSInfo{
		CertFile: g.file("server-" + cluster + ".crt"), KeyFile: g.file("server-" + cluster + ".key"),
		TrustedCAFile: g.file("ca.crt"), ClientCertAuth: true,
	}
	cfg.EnableGRPCGateway = false
	cfg.UnsafeNoFsync = true // nothing here outlives the test
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(cfg)
	must(t, err)
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(startLimit):
		t.Fatalf("etcd is not ready after %v", startLimit)
	}
	g.initEtcd(t, cluster, address)
	return address
}

func urls(t *testing.T, text string) []url.URL {
	t.Helper()
	u, err := url.Parse(text)
	must(t, err)
	return []url.URL{*u}
}

// initEtcd lets Cilium make its users and roles and enable authentication.
func (g *ground) initEtcd(t *testing.T, cluster, address string) {
	t.Helper()
	client := g.etcdClient(t, address, admin(cluster))
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	must(t, etcdinit.ClusterMeshEtcdInit(ctx, g.log(t), client, cluster))
}

func admin(cluster string) string { return "admin-" + cluster }

func (g *ground) etcdClient(t *testing.T, address, user string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + address}, TLS: g.clientTLS(t, user), Logger: zap.NewNop(), DialTimeout: startLimit,
	})
	must(t, err)
	return client
}

func (g *ground) clientTLS(t *testing.T, user string) *tls.Config {
	t.Helper()
	files := certs.ClientFiles{CA: g.file("ca.crt"), Cert: g.file(user + ".crt"), Key: g.file(user + ".key")}
	config, err := certs.ClientTLS(files, slog.New(slog.DiscardHandler))
	must(t, err)
	return config
}

// ciliumClient is Cilium's kvstore client of an etcd.
type ciliumClient struct{ kvstore.BackendOperations }

// IsEnabled tells that there is an etcd.
func (ciliumClient) IsEnabled() bool { return true }

// connect connects Cilium's kvstore client as an exporter's: with leases,
// quorum checks and the rate of its own etcd.
func (g *ground) connect(t *testing.T, log *slog.Logger, address, user string) kvstore.Client {
	t.Helper()
	path := filepath.Join(g.subdir(t), user+".yaml")
	replace(t, path, g.etcdConfig(address, user))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // of the client's life
	t.Cleanup(cancel)
	options := map[string]string{kvstore.EtcdOptionConfig: path, kvstore.EtcdRateLimitOption: "10000"}
	client, failed := kvstore.NewClient(ctx, log, kvstore.EtcdBackendName, options, kvstore.ExtraOptions{LeaseTTL: leaseTTL})
	select {
	case err := <-failed:
		must(t, err)
	case <-time.After(startLimit):
		t.Fatalf("Cilium's client of %s is not connected after %v", address, startLimit)
	}
	t.Cleanup(client.Close)
	return ciliumClient{client}
}
