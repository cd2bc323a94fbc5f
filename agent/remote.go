package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/certs"
	"github.com/clustermesh/clustermesh/kvstore"
	"github.com/clustermesh/clustermesh/kvstore/clusterfile"
	"github.com/clustermesh/clustermesh/kvstore/schema"
)

// remote follows one cluster: it connects, hears what the cluster says of
// itself, waits until that is complete, and hands every change to the core.
// It knows only its own cluster, so whatever one cluster does delays no other.
type remote struct {
	name  string
	local bool // the agent's own cluster
	file  clusterfile.File
	cfg   Config
	core  *core
	dial  dialer
	// watcher remembers across connections which keys below prefix the core has
	// been told of.
	watcher *kvstore.Watcher
	prefix  string
}

// connection is an open connection to one cluster's store.
type connection interface {
	kvstore.Reader
	Get(ctx context.Context, key string) (kvstore.KV, bool, error)
	Endpoint() string
	Close() error
}

// dialer opens a connection to a cluster of the given name.
type dialer func(ctx context.Context, name string, file clusterfile.File) (connection, error)

// dialTLS is the dialer over the network.
func dialTLS(log *slog.Logger) dialer {
	return func(ctx context.Context, name string, file clusterfile.File) (connection, error) {
		tlsConfig, err := certs.ClientTLS(certs.ClientFiles{Cert: file.CertFile, Key: file.KeyFile, CA: file.TrustedCAFile}, log.With("cluster", name))
		if err != nil {
			return nil, err
		}
		return kvstore.Dial(ctx, kvstore.ConnConfig{Endpoints: file.Endpoints, HostAliases: file.Aliases(), TLS: tlsConfig})
	}
}

// errHeartbeat ends a connection over which no heartbeat arrives any more.
var errHeartbeat = errors.New("no heartbeat from the cluster's apiserver within the limit; check that process and its log")

// run connects and follows until ctx ends.
func (r *remote) run(ctx context.Context) {
	pause := r.cfg.MinBackoff
	for ctx.Err() == nil {
		synced, err := r.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if synced {
			pause = r.cfg.MinBackoff
		}
		r.report(ctx, err)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
		pause = min(2*pause, r.cfg.MaxBackoff)
	}
}

func (r *remote) report(ctx context.Context, err error) {
	if err == nil {
		err = errors.New("connection ended")
	}
	_ = r.core.do(ctx, func(c *core) { c.disconnected(r.name, err) })
}

// session is one connection from dialling to its loss. synced tells whether
// the cluster was once completely heard in it.
func (r *remote) session(ctx context.Context) (synced bool, err error) {
	_ = r.core.do(ctx, func(c *core) { c.connecting(r.name) })
	conn, err := r.dial(ctx, r.name, r.file)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	cached, canaries, err := r.announce(ctx, conn)
	if err != nil {
		return false, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.watchHeartbeat(ctx, conn) })
	g.Go(func() error {
		if canaries {
			if err := r.awaitCanary(ctx, conn, cached); err != nil {
				return err
			}
		}
		return r.followServices(ctx, conn, cached, &synced)
	})
	err = g.Wait()
	return synced, err
}

// announce reads the cluster's configuration and asks the core to admit it.
func (r *remote) announce(ctx context.Context, conn connection) (cached, canaries bool, err error) {
	kv, ok, err := conn.Get(ctx, schema.ClusterConfigKey(r.name))
	if err != nil {
		return false, false, fmt.Errorf("read cluster config: %w", err)
	}
	if !ok {
		return false, false, fmt.Errorf("read cluster config: key %q does not exist; check that the file name %q is the name the remote cluster gives itself and that its apiserver is ready", schema.ClusterConfigKey(r.name), r.name)
	}
	config, err := schema.DecodeClusterConfig(r.name, kv.Value)
	if err != nil {
		return false, false, err
	}
	var fresh bool
	var admitted error
	if err := r.core.do(ctx, func(c *core) { fresh, admitted = c.connected(r.name, conn.Endpoint(), config) }); err != nil {
		return false, false, err
	}
	if fresh { // the core has dropped everything: it must be told all again
		r.watcher = nil
	}
	// A cluster that speaks Cilium's format only has no records for local agents.
	return config.Capabilities.Cached, config.Capabilities.SyncedCanaries || r.local, admitted
}

func (r *remote) kind() schema.Kind {
	if r.local {
		return schema.KindLocalService
	}
	return schema.KindService
}

// watchHeartbeat fails when no heartbeat arrives within the limit.
func (r *remote) watchHeartbeat(ctx context.Context, conn connection) error {
	beats := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: schema.HeartbeatKey, MaxKeys: 16})
		return w.Follow(ctx, conn, func(u kvstore.Update) error {
			if len(u.Changes) > 0 {
				select {
				case beats <- struct{}{}:
				default:
				}
			}
			return nil
		})
	})
	g.Go(func() error { return expectBeats(ctx, beats, r.cfg.HeartbeatTimeout) })
	return g.Wait()
}

func expectBeats(ctx context.Context, beats <-chan struct{}, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beats:
			timer.Reset(limit)
		case <-timer.C:
			return errHeartbeat
		}
	}
}

// errCanarySeen ends the watch for the canary.
var errCanarySeen = errors.New("canary seen")

// awaitCanary returns once the cluster has declared its services complete. A
// list taken earlier might be partial, and what it lacks would be dropped.
func (r *remote) awaitCanary(ctx context.Context, conn connection, cached bool) error {
	key := schema.CanaryKey(r.kind(), r.name, cached)
	w := kvstore.NewWatcher(kvstore.WatcherConfig{Prefix: key, MaxKeys: 16})
	err := w.Follow(ctx, conn, func(u kvstore.Update) error {
		for _, c := range u.Changes {
			if c.Key == key && !c.Deleted {
				return errCanarySeen
			}
		}
		return nil
	})
	if errors.Is(err, errCanarySeen) {
		return nil
	}
	return fmt.Errorf("wait for the cluster's first complete publication: %w", err)
}

// What one cluster may make this node hold; the mesh bounds what it keeps of it
// more tightly.
const (
	maxKeys  = 50_000
	maxBytes = 128 << 20
)

func (r *remote) watcherConfig(prefix string) kvstore.WatcherConfig {
	return kvstore.WatcherConfig{Prefix: prefix, MaxKeys: maxKeys, MaxBytes: maxBytes}
}

// followServices hands the core every change of the cluster's services.
func (r *remote) followServices(ctx context.Context, conn connection, cached bool, synced *bool) error {
	prefix := schema.WatchPrefix(r.kind(), r.name, cached)
	if r.watcher == nil || r.prefix != prefix {
		r.watcher, r.prefix = kvstore.NewWatcher(r.watcherConfig(prefix)), prefix
		if err := r.core.do(ctx, func(c *core) { c.mesh.Relist(r.name) }); err != nil {
			return err
		}
	}
	err := r.watcher.Follow(ctx, conn, func(u kvstore.Update) error {
		err := r.core.do(ctx, func(c *core) { c.update(r.name, u) })
		if err == nil && u.Synced {
			*synced = true
		}
		return err
	})
	return fmt.Errorf("follow services: %w", err)
}
